"""Logits of hidden states, as the model's own forward makes them, for a few tokens or for all."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ..grammar import SidGrammar
from .decoder import decoder_of
from .reader import reader_of


def code_logits(model: PreTrainedModel, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of `tokens` only.

    The model's own forward runs over the hidden states, so that whatever a family does around its head (a scale, a
    cap, a transform before the matrix) is done here too. Only the rows of `tokens` are multiplied; where an adapter, a
    quantised layer or an offloading hook stands in the head's place, the whole head runs and the columns are taken
    from its output.

    Args:
        model: Any causal LM.
        hidden: float [n, d], its decoder's last hidden states.
        tokens: int64 [K].

    Returns:
        float32 [n, K].
    """
    head = model.get_output_embeddings()
    name = next((name for name, child in model.named_children() if child is head), None)
    if name is None or type(head) is not nn.Linear or "forward" in vars(head):
        return _own_logits(model, hidden)[:, tokens].float()
    return _own_logits(model, hidden, {name: _Rows(head, tokens)}).float()


def token_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of the whole vocabulary, float32 [n, V], of hidden states float [n, d]; as [`code_logits`]."""
    return _own_logits(model, hidden).float()


class _Rows(nn.Module):
    """Some rows of a linear head."""

    def __init__(self, head: nn.Linear, tokens: torch.Tensor):
        super().__init__()
        self.weight = head.weight[tokens]
        self.bias = None if head.bias is None else head.bias[tokens]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.weight, self.bias)


class _Read(BaseModelOutput):
    """Last hidden states, and nothing of all else that a family's forward may hand on."""

    def __getattr__(self, name: str) -> None:
        return None


class _ReadBefore(nn.Module):
    """Stands in the decoder's place and gives hidden states that were read before."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden

    @property
    def decoder(self) -> "_ReadBefore":
        return self  # some families call their decoder past the base model

    def forward(self, *_: Any, **__: Any) -> _Read:
        return _Read(last_hidden_state=self.hidden)


def _own_logits(
    model: PreTrainedModel, hidden: torch.Tensor, instead: dict[str, nn.Module] | None = None
) -> torch.Tensor:
    """Logits [n, columns] of the class's forward on a twin of the model, which shares all of it but its decoder and
    what stands `instead` of other children. The twin is thrown away: threads may share the model."""
    twin, decoder = object.__new__(type(model)), decoder_of(model)
    parts: dict[str, nn.Module] = dict(instead or {})
    parts |= {name: _ReadBefore(hidden[None]) for name, child in model.named_children() if child is decoder}
    vars(twin).update(vars(model) | {"_modules": {**model._modules, **parts}})
    vars(twin).pop("forward", None)  # wrappers of the model that is trained
    ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
    return type(model).forward(twin, input_ids=ids).logits[0]


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
    reader = reader_of(model)
    if not reader.branches:
        hidden = reader.all(hidden[:, 0], codes)
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
    return decoder_of(model)(use_cache=False, **inputs).last_hidden_state


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the head's matrix is the input embedding's."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight
