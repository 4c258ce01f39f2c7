"""What a batch's softmax runs over beside its targets: items that are drawn, and how often each is expected.

A sampler is a class with `draw` and `log_counts`, and a line in `sampler_of`. Known: in-batch negatives with a
correction (Yi et al., RecSys 2019), mixed with uniform ones (Yang et al., WWW 2020), by popularity (word2vec).
"""

import math
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch


NegativesFrom = Literal["uniform", "popularity", "in_batch", "mixed"]


class Negatives(NamedTuple):
    """Distinct items, ascending, int64 [C], and the logarithm of what each counts, float32 [C]."""

    items: torch.Tensor
    log_weights: torch.Tensor


class Sampler(Protocol):
    """Draws items for a batch of M targets."""

    def draw(self, targets: torch.Tensor) -> torch.Tensor:
        """Items, int64 [m] on the device of the targets int64 [M], with repeats."""

    def log_counts(self, items: torch.Tensor, batch: int) -> torch.Tensor:
        """Logarithm of how often each of some items, int64 [C], is expected among the negatives of a row, float32 [C]:
        log m + log q of m independent draws; `batch` is M."""


class Uniform:
    """Every item alike: q = 1 / N."""

    def __init__(self, num_items: int, count: int):
        self.num_items, self.count = num_items, count

    def draw(self, targets: torch.Tensor) -> torch.Tensor:
        return torch.randint(self.num_items, (self.count,)).to(targets.device)

    def log_counts(self, items: torch.Tensor, batch: int) -> torch.Tensor:
        return torch.full(items.shape, math.log(self.count / self.num_items), device=items.device)


class Popularity:
    """By training events: q ∝ n + 1. The one more lets items be drawn that nobody has used. [ours]"""

    def __init__(self, events: np.ndarray, count: int):
        """`events` int64 [N], how often each item is a target."""
        shares = (events + 1) / (events.sum() + len(events))
        self.count, self.ends = count, torch.from_numpy(np.cumsum(shares))
        self.log_shares = torch.from_numpy(np.log(shares).astype(np.float32))

    def draw(self, targets: torch.Tensor) -> torch.Tensor:
        drawn = torch.searchsorted(self.ends, torch.rand(self.count, dtype=torch.float64))
        return drawn.clamp(max=len(self.ends) - 1).to(targets.device)

    def log_counts(self, items: torch.Tensor, batch: int) -> torch.Tensor:
        return self.log_shares.to(items.device)[items] + math.log(self.count)


class InBatch:
    """The targets of the other rows: q = n / Σ n, as often as training has them; other items are no negatives."""

    def __init__(self, events: np.ndarray):
        with np.errstate(divide="ignore"):
            self.log_shares = torch.from_numpy(np.log(events / events.sum()).astype(np.float32))

    def draw(self, targets: torch.Tensor) -> torch.Tensor:
        return targets

    def log_counts(self, items: torch.Tensor, batch: int) -> torch.Tensor:
        return self.log_shares.to(items.device)[items] + math.log(max(batch - 1, 1))


class Mixed:
    """In-batch and uniform ones together: popular items are pushed apart, and no item is left out."""

    def __init__(self, events: np.ndarray, count: int):
        self.parts: tuple[Sampler, Sampler] = (InBatch(events), Uniform(len(events), count))

    def draw(self, targets: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.draw(targets) for part in self.parts])

    def log_counts(self, items: torch.Tensor, batch: int) -> torch.Tensor:
        first, second = (part.log_counts(items, batch) for part in self.parts)
        return torch.logaddexp(first, second)


def sampler_of(kind: NegativesFrom, events: np.ndarray, count: int) -> Sampler:
    """The sampler of a training whose targets are `events`, int64 [N], times each item; `count` are drawn."""
    if kind == "in_batch":
        return InBatch(events)
    if kind == "uniform":
        return Uniform(len(events), count)
    return Popularity(events, count) if kind == "popularity" else Mixed(events, count)


def negatives(sampler: Sampler, targets: torch.Tensor, log_q: bool) -> Negatives:
    """The negatives of a batch.

    Args:
        sampler: Draws them.
        targets: int64 [M], of the batch.
        log_q: Whether each counts times drawn / times expected, so that the loss tends to the full softmax's; else
            every distinct one counts once.
    """
    items, times = sampler.draw(targets).unique(return_counts=True)
    if not log_q:
        return Negatives(items, torch.zeros(items.shape, device=items.device))
    return Negatives(items, times.log() - sampler.log_counts(items, len(targets)))
