"""Logits of a few tokens, without the rest of the vocabulary, inside a model's own forward."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..grammar import SidGrammar
from .intrr import recursion_of


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


def answer_logits(
    model: PreTrainedModel, hidden: torch.Tensor, codes: torch.Tensor, grammar: SidGrammar
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of what the grammar allows at every code of n given answers, −inf where it does not.

    Args:
        model: For its head.
        hidden: float [n, C, d], what each code is read from. Of a model whose codes come by recursion the first alone
            counts, with which the recursion begins.
        codes: int64 [n, C], the answers' code tokens in the order written.
        grammar: On the device of `hidden`.

    Returns:
        For each of the C steps, the logits float32 [n, D] and the option (int64 [n], into D) that the answer takes.
    """
    index = grammar.step_index(codes.repeat_interleave(grammar.stride, dim=1))[:, list(grammar.code_columns)]
    if (recursive := recursion_of(model)) is not None:
        hidden = recursive.queries(hidden[:, 0], codes)
    states = grammar.initial(len(codes))
    logits, chosen = [], []
    for step in range(grammar.num_codes):
        options = grammar.successors(states, step)
        logits.append(options.masked(code_logits(model, hidden[:, step], grammar.step_tokens(step))))
        chosen.append(options.option_of(index[:, step]))
        states = grammar.advance(states, step, chosen[-1])
    return logits, chosen


def add_inner_call(model: PreTrainedModel) -> None:
    """Gives a model's forward the argument `inner`, a function called in its place, whose result it returns.

    Arithmetic on parameters (rows of the head, heads of our own) must happen inside the forward of the module that DDP
    or FSDP wraps; this is the way in. Without the argument the forward is as before. Call it before PEFT wraps the
    model.
    """
    original = model.forward

    @functools.wraps(original)
    def forward(*args: Any, inner: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if inner is None else inner()

    model.forward = forward


def last_hidden(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    """Last hidden states float [B, T, d] of a causal LM, what its head is applied to; nothing is cached."""
    return model.base_model(use_cache=False, **inputs).last_hidden_state
