"""Prompts in a model's cache: read once, then extended by branches."""

from typing import Literal

import torch
from transformers import DynamicCache, PreTrainedModel

from ..branches import additive_mask
from ..grammar import SidGrammar, Successors
from ..models import code_logits
from .prefix_cache import PrefixCache


Score = Literal["constrained", "model"]


class Trunk:
    """B prompts of any lengths ≥ 1 in P columns, padded on the left, and the branches fed since.

    The cache only ever grows: an additive mask tells every new token which columns it sees.

    Attributes:
        hidden: float [B, 1, d], what each prompt's next token is read from.
        columns: Columns fed since the prompts.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], prefix_cache: PrefixCache | None = None):
        self.model, self.device = model, model.device
        self.cache = DynamicCache()  # plain layers: a window never matters here, but would count the beams' columns
        self.lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=self.device)
        taken = [0] * len(prompts) if prefix_cache is None else prefix_cache.load(prompts, self.cache, model)
        ids, mask = pad_left([prompt[start:] for prompt, start in zip(prompts, taken, strict=True)], 0, self.device)
        known, new = max(taken), ids.shape[1]
        start = torch.tensor([[n] for n in taken], device=self.device)
        prefix = torch.arange(known, device=self.device) >= known - start
        self.real = torch.cat([prefix, mask.bool()], dim=1)
        self.columns = 0
        positions = (start + mask.cumsum(1) - 1).clamp(min=0)
        causal = torch.ones(new, new, dtype=torch.bool, device=self.device).tril()
        visible = torch.cat([prefix[:, None].expand(-1, new, -1), causal & mask.bool()[:, None]], dim=2)
        self.hidden = self._forward(ids, positions, visible)[:, -1:]
        if prefix_cache is not None:
            prefix_cache.store(prompts, taken, self.cache, model)

    def feed(self, ids: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Last hidden states [B, n, d] of n new tokens a prompt.

        Args:
            ids: int64 [B, n].
            depths: int64 [n], how many tokens after the prompt's end each one stands, from 0.
            visible: bool [B, n, columns + n], which of the columns since the prompts each token sees; all see their
                prompt.
        """
        prompt = self.real[:, None].expand(-1, ids.shape[1], -1)
        hidden = self._forward(ids, self.lengths + depths, torch.cat([prompt, visible], dim=2))
        self.columns += ids.shape[1]
        return hidden

    def drop(self) -> None:
        """Forgets everything after the prompts."""
        if self.columns:
            for layer in self.cache.layers:  # `crop` of the cache changed its meaning between versions
                layer.keys = layer.keys[:, :, : -self.columns]
                layer.values = layer.values[:, :, : -self.columns]
        self.columns = 0

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        output = self.model.base_model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=additive_mask(visible, self.model.dtype),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state


def step_log_probs(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    grammar: SidGrammar,
    step: int,
    options: Successors,
    score: Score,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Log-probabilities float32 [rows, D] of the options of a step, −inf where not allowed.

    Args:
        hidden: float [rows, d], what the step's code is read from.
        score: `"constrained"`: renormalised over what is allowed, which takes only the step's rows of the LM head;
            `"model"`: over the whole vocabulary, then masked.
        temperature: Divides the logits.
    """
    tokens = grammar.step_tokens(step)
    if score == "model":
        logits = model.get_output_embeddings()(hidden).float() / temperature
        return options.masked(torch.log_softmax(logits, -1)[:, tokens])
    logits = options.masked(code_logits(model, hidden, tokens) / temperature)
    # rows without an allowed option are beams that died before: they stay −inf instead of NaN
    return torch.log_softmax(logits, -1).masked_fill(~options.allowed, -torch.inf)


def pad_left(rows: list[list[int]], fill: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [B, P] padded on the left, and their attention mask int64 [B, P]."""
    longest = max(map(len, rows))
    ids = torch.tensor([[fill] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
