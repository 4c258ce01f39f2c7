"""What a memory counts and how it is read: chosen on validation cases by the memory alone, in seconds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from ..dataset import Cases, Histories
from ..evaluation.metrics import MISS, ndcg
from ..scorers import Memory, MemoryConfig
from ..tables import TimeKind


# What [`choose_memory`] tries, one setting after the other, each with the best of those before. [ours: by the
# validation parts of Beauty, Scientific and MovieLens]
SPACE: dict[str, tuple[Any, ...]] = {
    "window": (1, 2, 5, 10, 20),
    "backward": (0.0, 0.25, 1.0),
    "normalizer": (0.25, 0.5, 1.0),
    "discount": (0.0, 0.25, 0.5),
    "decay": (0.0, 0.5, 1.0),
    "recency": (0.5, 1.0, 1.5, 2.0, 3.0),
}
CASES = 10_000  # at most so many choose a memory
_BLOCK = 512  # histories whose affinities are held at a time


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and their NDCG@10 on the validation cases."""

    settings: dict[str, Any]
    validation: float


def choose_memory(
    train: Histories, validation: Cases, num_items: int, time: TimeKind, *, exclude_seen: bool, seed: int = 0
) -> tuple[Memory, list[Trial]]:
    """The memory of the highest NDCG@10 alone on validation cases, at most 10,000 drawn at random.

    One setting after the other is tried ([`SPACE`]), the first of equals is taken, and so once more.

    Args:
        train: Training histories, which are counted.
        validation: What chooses.
        num_items: N of the catalog.
        time: What the times of the events are.
        exclude_seen: Whether lists leave out what is in the history.
        seed: Of the cases drawn.

    Returns:
        The memory, and all trials in the order in which they were made.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(validation))[:CASES])
    cases = validation.take(rows)
    counted: dict[tuple[float, float], Memory] = {}
    tried: dict[MemoryConfig, Trial] = {}

    def memory_of(config: MemoryConfig) -> Memory:
        counts = (config.window, config.decay)
        if counts not in counted:
            counted.clear()  # one at a time: they are large
            counted[counts] = Memory.of(train, num_items, config, time)
        return replace(counted[counts], config=config)

    def value(config: MemoryConfig) -> float:
        if config not in tried:
            ranks = memory_ranks(memory_of(config), cases, exclude_seen=exclude_seen)
            settings = {name: vars(config)[name] for name in SPACE}
            tried[config] = Trial(settings, float(ndcg(ranks, 10).mean()))
        return tried[config].validation

    best = MemoryConfig()
    for _ in range(2):
        for name, values in SPACE.items():
            configs = [replace(best, **{name: one}) for one in values]
            best = max([best, *configs], key=value)
    return memory_of(best), list(tried.values())


def memory_ranks(memory: Memory, cases: Cases, *, exclude_seen: bool) -> np.ndarray:
    """Rank of each case's target by its affinity, int64 [cases]: behind all that have more, in the middle of its
    equals, `MISS` where it has none."""
    histories, ranks = list(cases), np.full(len(cases), MISS)
    for start in range(0, len(histories), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores = memory.affinities(histories[block])
        if exclude_seen:
            scores = _without(scores, histories[block])
        rows = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
        target = np.zeros(scores.shape[0])
        is_target = scores.indices == cases.targets[block][rows]
        target[rows[is_target]] = scores.data[is_target]
        higher = np.bincount(rows[scores.data > target[rows]], minlength=len(target))
        equal = np.bincount(rows[(scores.data == target[rows]) & ~is_target], minlength=len(target))
        ranks[block] = np.where(target > 0, higher + equal // 2, MISS)
    return ranks


def _without(scores: sparse.csr_array, histories: Sequence[np.ndarray]) -> sparse.csr_array:
    """Scores [B, N] without those of the histories' own items."""
    owners = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    ones = np.ones(len(owners), bool)
    seen = sparse.coo_array((ones, (owners, np.concatenate(histories))), shape=scores.shape).tocsr()
    return sparse.csr_array(scores - scores.multiply(seen > 0))
