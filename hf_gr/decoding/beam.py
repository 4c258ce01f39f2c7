"""Beam search on a tree: the prompt is read once, beams are branches of its cache.

Every step feeds the W newest tokens of each prompt as one row of W columns. An additive mask lets each see the prompt
and its own ancestors, so the cache is never copied or reordered: it grows by W columns a step.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from ..branches import additive_mask
from ..errors import HfGrError
from ..grammar import ItemFilter, SidGrammar
from ..models import code_logits
from ..vocabulary import SidVocabulary
from .support import tree_support


Method = Literal["beam", "sample"]
Score = Literal["constrained", "model"]


@dataclass(frozen=True)
class Beams:
    """Answers to B prompts, W each.

    Attributes:
        codes: int64 [B, W, L]; −1 in beams that hold no answer (fewer SIDs than beams).
        states: int64 [B, W], the grammar's final state, −1 likewise.
        scores: float32 [B, W], sum of the codes' log-probabilities, −inf likewise; falling for `method="beam"`.
        log_probs: float32 [B, W, L], log-probability of every code.
    """

    codes: torch.Tensor
    states: torch.Tensor
    scores: torch.Tensor
    log_probs: torch.Tensor


@torch.no_grad()
def tree_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    vocabulary: SidVocabulary,
    *,
    num_beams: int,
    method: Method = "beam",
    score: Score = "constrained",
    temperature: float = 1.0,
    item_filter: ItemFilter | None = None,
    generator: torch.Generator | None = None,
) -> Beams:
    """Searches the SIDs that best continue each prompt.

    Args:
        model: A full-attention decoder ([`tree_support`]); else [`HfGrError`].
        prompts: B lists of token ids, of any lengths ≥ 1.
        grammar: What may follow. Every beam is a live item's SID; W beams are distinct SIDs with `method="beam"`.
        vocabulary: Token ids of the codes.
        num_beams: W.
        method: `"beam"`, or `"sample"` for W independent draws from the constrained policy.
        score: `"constrained"`: log-probabilities renormalised over what is allowed (the policy that GRPO trains);
            `"model"`: over the whole vocabulary, then masked, as `generate` with a logits processor has them.
        temperature: Divides the logits (`method="sample"`).
        item_filter: One row per prompt. A row without live items raises [`HfGrError`].
        generator: Source of the draws, on the model's device.
    """
    supported, reason = tree_support(model, max(map(len, prompts)) + grammar.num_levels)
    if not supported:
        raise HfGrError(f"tree search is not for this model: {reason}; use generate_search.")
    if item_filter is not None and (dead := (grammar.live_items(item_filter) == 0).nonzero()[:, 0]).numel():
        raise HfGrError(f"the filter of request {dead[0]} leaves no live item; allow more or exclude less.")
    search = _TreeSearch(model, prompts, grammar, vocabulary, num_beams, score, temperature)
    for level in range(grammar.num_levels):
        search.extend(level, method, item_filter, generator)
    return search.result()


class _TreeSearch:
    """State of one search: B prompts, W beams, a shared cache of P + W·(levels fed) columns."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        grammar: SidGrammar,
        vocabulary: SidVocabulary,
        num_beams: int,
        score: Score,
        temperature: float,
    ):
        self.model, self.vocabulary, self.score, self.temperature = model, vocabulary, score, temperature
        device = model.device
        self.grammar = grammar.to(device)
        self.batch, self.width, self.device = len(prompts), num_beams, device
        ids, mask = pad_left(prompts, fill=0, device=device)
        self.real = mask.bool()
        self.lengths = self.real.sum(1, keepdim=True)
        self.cache = DynamicCache(config=model.config)
        hidden = self._forward(ids, (self.real.cumsum(1) - 1).clamp(min=0), self._prompt_mask())
        self.hidden = hidden[:, -1:]  # what the next code is read from: [B, 1, d], later [B, W, d]
        self.states = self.grammar.initial(self.batch).view(self.batch, 1)
        self.codes = torch.empty(self.batch, 1, 0, dtype=torch.int64, device=device)
        self.log_probs = torch.empty(self.batch, 1, 0, device=device)
        self.scores = torch.zeros(self.batch, 1, device=device)
        self.ancestors = torch.empty(self.batch, 1, 0, dtype=torch.int64, device=device)  # cache column by level

    def extend(
        self, level: int, method: Method, item_filter: ItemFilter | None, generator: torch.Generator | None
    ) -> None:
        """Feeds the codes chosen last (if any) and chooses those of `level`."""
        if level:
            self._feed(level)
        beams = self.states.shape[1]
        rows = None
        if item_filter is not None:
            rows = item_filter.to(self.device).rows(
                torch.arange(self.batch, device=self.device).repeat_interleave(beams)
            )
        options = self.grammar.successors(self.states.reshape(-1, 1), level, rows)
        log_probs = self._log_probs(level, options.codes, options.allowed)
        missing = max(0, -(-self.width // beams) - log_probs.shape[1]) if method == "beam" else 0
        shape = (self.batch, beams, log_probs.shape[1] + missing)  # never fewer candidates than beams
        log_probs = F.pad(log_probs, (0, missing), value=-torch.inf).view(shape)
        codes, states = (F.pad(x, (0, missing)).view(shape) for x in (options.codes, options.states))
        parent, option = self._best(log_probs) if method == "beam" else self._draw(log_probs, generator)
        self._advance(parent, option, log_probs, codes, states)

    def result(self) -> Beams:
        dead = torch.isneginf(self.scores)
        return Beams(
            self.codes.masked_fill(dead[..., None], -1), self.states.masked_fill(dead, -1), self.scores, self.log_probs
        )

    def _best(self, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best = (self.scores[..., None] + log_probs).flatten(1).topk(self.width, dim=1).indices
        return best // log_probs.shape[2], best % log_probs.shape[2]

    def _draw(self, log_probs: torch.Tensor, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
        if log_probs.shape[1] == 1:
            log_probs = log_probs.expand(-1, self.width, -1)
            parent = torch.zeros(self.batch, self.width, dtype=torch.int64, device=self.device)
        else:
            parent = torch.arange(self.width, device=self.device).expand(self.batch, -1)
        option = torch.multinomial(log_probs.flatten(0, 1).exp(), 1, generator=generator)
        return parent, option.view(self.batch, self.width)

    def _advance(
        self,
        parent: torch.Tensor,
        option: torch.Tensor,
        log_probs: torch.Tensor,
        codes: torch.Tensor,
        states: torch.Tensor,
    ) -> None:
        def pick(table: torch.Tensor) -> torch.Tensor:
            return table.flatten(1).gather(1, parent * table.shape[2] + option)

        def inherit(history: torch.Tensor) -> torch.Tensor:
            return history.gather(1, parent[..., None].expand(-1, -1, history.shape[2]))

        chosen = pick(log_probs)
        self.scores = self.scores.gather(1, parent) + chosen
        self.codes = torch.cat([inherit(self.codes), pick(codes)[..., None]], dim=2)
        self.log_probs = torch.cat([inherit(self.log_probs), chosen[..., None]], dim=2)
        self.ancestors = inherit(self.ancestors)
        self.states = pick(states).masked_fill(torch.isneginf(self.scores), -1)

    def _feed(self, level: int) -> None:
        """One forward pass over the W newest tokens of every prompt."""
        columns = self.real.shape[1] + self.width * (level - 1)
        newest = columns + torch.arange(self.width, device=self.device).expand(self.batch, -1)
        self.ancestors = torch.cat([self.ancestors, newest[..., None]], dim=2)
        ids = self.vocabulary.level_token_ids(level - 1, self.device)[self.codes[..., -1]]
        visible = torch.zeros(self.batch, self.width, columns + self.width, dtype=torch.bool, device=self.device)
        visible[:, :, : self.real.shape[1]] = self.real[:, None]
        visible.scatter_(2, self.ancestors, True)
        positions = (self.lengths + level - 1).expand(-1, self.width)
        self.hidden = self._forward(ids, positions, additive_mask(visible, self.model.dtype))

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = self.model.base_model(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self.cache, use_cache=True
        )
        return output.last_hidden_state

    def _prompt_mask(self) -> torch.Tensor:
        length = self.real.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        return additive_mask(causal & self.real[:, None], self.model.dtype)

    def _log_probs(self, level: int, codes: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Log-probabilities float32 [B·beams, D] of the codes that may follow, −inf elsewhere."""
        hidden = self.hidden.flatten(0, 1)
        tokens = self.vocabulary.level_token_ids(level, self.device)
        if self.score == "model":
            logits = torch.log_softmax(self.model.get_output_embeddings()(hidden).float(), -1)[:, tokens]
        else:
            logits = code_logits(self.model, hidden, tokens)
        logits = logits.gather(1, codes).masked_fill(~allowed, -torch.inf)
        if self.score == "model":
            return logits
        # rows without an allowed code are beams that died before: they stay −inf instead of NaN
        return torch.log_softmax(logits / self.temperature, -1).masked_fill(~allowed, -torch.inf)


def pad_left(rows: list[list[int]], fill: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [B, P] padded on the left, and their attention mask int64 [B, P]."""
    longest = max(map(len, rows))
    ids = torch.tensor([[fill] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
