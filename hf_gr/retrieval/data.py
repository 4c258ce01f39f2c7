"""Histories as rows of a dense retriever: the start, then items, and what follows at every position."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ..dataset import Histories
from .bsarec import PADDING


@dataclass(frozen=True)
class TrainingRows(Dataset):
    """Rows of training.

    Attributes:
        num_items: Size of the catalogue.
        inputs: For every row int64 [T]: the number of items (the start), then rows of the catalogue, oldest first.
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
        num_items: Size of the catalogue.
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


def history_rows(histories: Iterable[np.ndarray], num_items: int, max_history: int) -> list[np.ndarray]:
    """The row to predict from of every history: the start and its latest `max_history` events, int64 [≤ n] each."""
    return [np.concatenate([[num_items], history[-max_history:]]) for history in histories]


def padded(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """Rows side by side, int64 [B, longest], −1 behind their ends."""
    lengths = np.array([len(row) for row in rows])
    filled = np.full((len(rows), lengths.max()), PADDING, np.int64)
    filled[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(rows)
    return torch.from_numpy(filled)


def collate(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """A batch of [`TrainingRows`]: `input_ids` and `labels`, int64 [B, T]."""
    return {name: padded([row[name] for row in rows]) for name in ("input_ids", "labels")}
