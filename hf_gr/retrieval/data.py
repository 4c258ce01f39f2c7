"""Histories as rows of a dense retriever: the start, then items, and what follows at every position."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..dataset import Histories
from ..models.bsarec import PADDING, pad_histories


@dataclass(frozen=True, eq=False)
class TrainingRows(Dataset):
    """Rows of training.

    Attributes:
        num_items: Size of the catalog.
        inputs: For every row int64 [T]: the number of items (the start), then rows of the catalog, oldest first.
        labels: For every row int64 [T]: what follows each position, −1 where it does not count.
    """

    num_items: int
    inputs: list[np.ndarray]
    labels: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.inputs[row], "labels": self.labels[row]}


def training_rows(train: Histories, num_items: int, max_history: int, causal: bool) -> TrainingRows:
    """Every training event once as a target, after at most `max_history` events.

    Args:
        train: Training histories, of E events.
        num_items: Size of the catalog.
        max_history: Events that a row holds at most.
        causal: All positions of a row teach: a user is one row or, with a history longer than `max_history` + 1,
            several that overlap by half [ours]. Else every event has a row of its own with what came before it, E rows
            [known].
    """
    inputs, labels = [], []
    for history in train:
        if causal:
            spans = _spans(len(history), max_history)
        else:
            spans = [(max(0, end - max_history), end, end) for end in range(len(history))]
        for start, first, last in spans:
            row = history[start : last + 1]
            label = row.copy()
            label[: first - start] = PADDING
            inputs.append(np.concatenate([[num_items], row[:-1]]))
            labels.append(label)
    return TrainingRows(num_items, inputs, labels)


def _spans(length: int, max_history: int) -> list[tuple[int, int, int]]:
    """Windows of a history: where each starts, and its first and its last target."""
    spans, first, step = [], 0, max(1, max_history // 2)
    while first < length:
        last = min(length - 1, max_history if not first else first + step - 1)
        spans.append((max(0, last - max_history), first, last))
        first = last + 1
    return spans


class AlikeLengths(Sampler[int]):
    """Rows in random order, but those of a batch about as long, so that there is little padding.

    An order belongs to a seed and an epoch: a run that goes on in the middle of one finds the same again.

    Args:
        lengths: int64 [rows].
        batch_size: Rows that go together.
        seed: Of the orders.
        pool: Batches whose rows are sorted among themselves.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, pool: int = 16):
        self.lengths, self.batch_size, self.seed, self.pool = np.asarray(lengths), batch_size, seed, pool
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        order, size = random.permutation(len(self.lengths)), self.batch_size * self.pool
        order = np.concatenate(
            [
                rows[np.argsort(self.lengths[rows], kind="stable")]
                for rows in (order[at : at + size] for at in range(0, len(order), size))
            ]
        )
        whole = len(order) // self.batch_size * self.batch_size
        batches = random.permutation(order[:whole].reshape(-1, self.batch_size))
        return iter([*batches.ravel().tolist(), *order[whole:].tolist()])


def collate(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """A batch of [`TrainingRows`]: `input_ids` and `labels`, int64 [B, T]."""
    return {name: pad_histories([row[name] for row in rows]) for name in ("input_ids", "labels")}
