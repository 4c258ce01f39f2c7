"""Where items moved: how far the codes that a model learned to read each item as are from its SID (IntRR)."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..catalog import SidCatalog


if TYPE_CHECKING:
    from ..decoding.recommender import Recommender

_BATCH, _GROUPS, _EXAMPLES, _NEAREST = 65_536, 5, 12, 2


def judge_redistribution(recommender: "Recommender") -> dict[str, Any] | None:
    """What [`redistribution`] finds of a model that reads items through learned codes; `None` for another model, those
    of `read: sum` among them."""
    import torch

    from ..models import learned_codes, reads_learned_codes

    if not reads_learned_codes(recommender.model):
        return None
    codes, probability = [], []
    for items in torch.from_numpy(np.flatnonzero(recommender.catalog.live)).split(_BATCH):
        best, sure = learned_codes(recommender.model, items)
        codes.append(best.cpu().numpy())
        probability.append(sure.float().cpu().numpy())
    return redistribution(recommender.catalog, np.concatenate(codes), np.concatenate(probability))


def redistribution(catalog: SidCatalog, learned: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    """How far the live items' learned codes are from their SIDs. METHODS names the idea (SID redistribution); these
    figures of it are ours.

    Args:
        catalog: With the SIDs and the popularity (training events) of its items.
        learned: int [n, L], the codes learned for the n live items, in the catalog's order.
        probability: float [n, L], how sure the model is of each of them.

    Returns:
        JSON-serialisable: `all`, with `items`, `moved` (share with any other code than the SID's), `levels` (share by
        level) and `changed` (share of the items with 0, 1, …, L other codes); `by_popularity`, the same for five
        groups of items that hold a fifth of the training events each, the most popular first, with `events` (fewest
        and most of an item), and for those without any, if there are some; `probability` (mean by level);
        `distinct_learned` and `distinct_sids` (how many there are); and `examples`, the most popular items that moved:
        `title`, `events`, `sid`, `learned` and `nearest`, two other items whose SIDs share the most codes with
        `learned` (then the longest prefix, then the most popular), each with `title`, `sid` and `shared`.
    """
    live = np.flatnonzero(catalog.live)
    own, events = catalog.codes[live], catalog.popularity[live]
    changed = learned != own
    groups = _popularity_groups(events)
    inside = [groups == group for group in np.unique(groups)]
    return {
        "all": _moves(changed),
        "by_popularity": [
            {"events": [int(events[rows].min()), int(events[rows].max())]} | _moves(changed[rows]) for rows in inside
        ],
        "probability": probability.mean(0, dtype=np.float64).tolist(),
        "distinct_learned": len(np.unique(learned, axis=0)),
        "distinct_sids": len(np.unique(own, axis=0)),
        "examples": _examples(catalog, live, learned, changed),
    }


def _moves(changed: np.ndarray) -> dict[str, Any]:
    """Of bool [n, L]."""
    counts = np.bincount(changed.sum(1), minlength=changed.shape[1] + 1)
    return {
        "items": len(changed),
        "moved": float(changed.any(1).mean()),
        "levels": changed.mean(0).tolist(),
        "changed": (counts / len(changed)).tolist(),
    }


def _popularity_groups(events: np.ndarray) -> np.ndarray:
    """Group of every item, int64 [n]: lined up from the most popular on, by the share of the events of those before;
    items without events are a group of their own."""
    order = np.argsort(-events, kind="stable")
    before = np.cumsum(events[order]) - events[order]
    groups = np.empty(len(events), np.int64)
    groups[order] = np.minimum(_GROUPS * before // max(events.sum(), 1), _GROUPS - 1)
    groups[events == 0] = _GROUPS
    return groups


def _examples(catalog: SidCatalog, live: np.ndarray, learned: np.ndarray, changed: np.ndarray) -> list[dict[str, Any]]:
    own, events = catalog.codes[live], catalog.popularity[live]
    moved = np.flatnonzero(changed.any(1))
    return [
        {
            "title": catalog.titles[live[place]],
            "events": int(events[place]),
            "sid": own[place].tolist(),
            "learned": learned[place].tolist(),
            "nearest": [
                {
                    "title": catalog.titles[live[other]],
                    "sid": own[other].tolist(),
                    "shared": int((own[other] == learned[place]).sum()),
                }
                for other in _nearest(own, learned[place], place, events)
            ],
        }
        for place in moved[np.argsort(-events[moved], kind="stable")][:_EXAMPLES]
    ]


def _nearest(sids: np.ndarray, codes: np.ndarray, itself: int, events: np.ndarray) -> np.ndarray:
    """Rows of the items, but one, whose SIDs int [n, L] are nearest to codes int [L], the nearest first."""
    same = sids == codes
    shared, prefix = same.sum(1), np.cumprod(same, axis=1).sum(1)
    shared[itself] = -1
    least = np.sort(shared)[-_NEAREST:][0]
    close = np.flatnonzero((shared >= least) & (shared >= 0))
    return close[np.lexsort((-events[close], -prefix[close], -shared[close]))][:_NEAREST]
