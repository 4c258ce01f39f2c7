"""From answers as written to items, best first."""

from dataclasses import dataclass

import torch

from ..grammar import ItemFilter, SidGrammar
from .beams import Beams


@dataclass(frozen=True, eq=False)
class Ranking:
    """Items for B prompts, best first.

    Attributes:
        items: int64 [B, K], catalog rows: min(K, live items) distinct ones, then −1.
        scores: float32 [B, K], log-probability of the item's SID under the grammar, whatever the filter, of a model
            with several outputs the mixture of [`mixed_ranking`]; −inf after the last.
        sids: int64 [B, K, C], its SID; −1 likewise.
        pruned: float32 [B], only with a reflection: as in [`Beams`], of the search that found the first items.
    """

    items: torch.Tensor
    scores: torch.Tensor
    sids: torch.Tensor
    pruned: torch.Tensor | None = None

    @classmethod
    def empty(cls, top_k: int, num_codes: int, device: torch.device | str) -> "Ranking":
        """Of no prompts."""
        items = torch.empty(0, top_k, dtype=torch.int64, device=device)
        return cls(items, items.float(), items[..., None].expand(-1, -1, num_codes))


def ranked(beams: Beams, grammar: SidGrammar, item_filter: ItemFilter | None, top_k: int) -> Ranking:
    """Opens the SIDs' buckets in order of the beams' scores; an item that comes twice counts once."""
    batch, width = beams.scores.shape
    if item_filter is not None:
        item_filter = item_filter.to(beams.scores.device)
    grammar = grammar.to(beams.scores.device)
    scores, order = beams.scores.sort(dim=1, descending=True, stable=True)
    states = beams.states.gather(1, order[..., None].expand(-1, -1, beams.states.shape[2]))
    tokens = beams.tokens.gather(1, order[..., None].expand(-1, -1, beams.tokens.shape[2]))
    items = grammar.items(states.flatten(0, 1), item_filter, limit=top_k).view(batch, width, -1)
    bucket = items.shape[2]
    items = items.flatten(1)
    place = torch.arange(width, device=items.device).repeat_interleave(bucket).expand(batch, -1)
    items = torch.where(_repeated(items), -1, items)
    order = (items < 0).sort(dim=1, stable=True).indices[:, :top_k]  # answers first, their order kept
    items, place = items.gather(1, order), place.gather(1, order)
    missing = top_k - items.shape[1]
    items = torch.nn.functional.pad(items, (0, missing), value=-1)
    place = torch.nn.functional.pad(place, (0, missing))
    gone = items < 0
    sids = grammar.codes(tokens)
    return Ranking(
        items,
        scores.gather(1, place).masked_fill(gone, -torch.inf),
        sids.gather(1, place[..., None].expand(-1, -1, sids.shape[2])).masked_fill(gone[..., None], -1),
        beams.pruned,
    )


def _repeated(items: torch.Tensor) -> torch.Tensor:
    """Whether an item stood further left in its row already, bool like `items` [B, n]."""
    values, order = items.sort(dim=1, stable=True)
    again = torch.zeros_like(values, dtype=torch.bool)
    again[:, 1:] = values[:, 1:] == values[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)
