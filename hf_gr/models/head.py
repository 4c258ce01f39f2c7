"""Logits of a few tokens, without the rest of the vocabulary, inside a model's own forward."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel


def code_logits(model: PreTrainedModel, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of `tokens` only.

    Multiplies by those rows of the LM head alone; where an adapter or a quantised layer stands in the head's place,
    the whole head runs and the columns are taken from its output.

    Args:
        model: Causal LM whose logits are its head applied to the last hidden state.
        hidden: float [n, d].
        tokens: int64 [K].

    Returns:
        float32 [n, K].
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return head(hidden)[:, tokens].float()
    bias = None if head.bias is None else head.bias[tokens]
    return F.linear(hidden, head.weight[tokens], bias).float()


def add_inner_call(model: PreTrainedModel) -> None:
    """Gives a model's forward the argument `inner`, a function of the last hidden state whose result it returns.

    Arithmetic on parameters (rows of the head) must happen inside the forward of the module that DDP or FSDP wraps;
    this is the way in. Without the argument the forward is as before. Call it before PEFT wraps the model.
    """
    original = model.forward

    @functools.wraps(original)
    def forward(*args: Any, inner: Callable[[torch.Tensor], Any] | None = None, **kwargs: Any) -> Any:
        if inner is None:
            return original(*args, **kwargs)
        return inner(model.base_model(*args, use_cache=False, **kwargs).last_hidden_state)

    model.forward = forward
