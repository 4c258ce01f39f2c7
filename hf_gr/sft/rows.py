"""Rows of trunks and answers, put together for all users at once: lists of unequal lengths as Arrow has them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, LargeList, Value

from ..dataset import Histories
from ..packing import Rows, offsets, ranges


Answers = tuple[pa.LargeListArray, pa.LargeListArray]  # tokens and labels of some answers

_TOKENS = LargeList(Value("int64"))  # int64 offsets: a data set may hold more than 2³¹ tokens
FEATURES = Features(
    {
        "input_ids": _TOKENS,
        "attach": _TOKENS,
        "answers": LargeList(_TOKENS),
        "labels": LargeList(_TOKENS),
        "weights": LargeList(Value("float64")),
    }
)


class RowBatches(torch.utils.data.Dataset):
    """A data set of [`~hf_gr.branches.Row`]s that gives whole batches as arrays.

    Args:
        rows: In these columns.
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows, self._tables = rows, rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one row by its columns; samplers that group by length ask for it."""
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> Rows:
        """Returns the rows of a batch; data loaders ask for them at once."""
        return Rows.of_table(self._tables[indices])


def windows_of(histories: Histories, length: int) -> tuple[np.ndarray, np.ndarray]:
    """First event of windows of at most `length` events that cover every history, counted from its end, and the event
    after their last; int64 [rows], users in order, of each the latest window first."""
    counts = -(-histories.lengths // length)
    number = ranges(np.zeros_like(counts), counts)
    last = np.repeat(histories.ptr[1:], counts) - number * length
    return np.maximum(np.repeat(histories.ptr[:-1], counts), last - length), last


def following(
    first: np.ndarray, last: np.ndarray, live: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Targets of every position of windows `first:last` of events, those of one position together.

    Returns:
        int64 [n] each: row (number of the window), position (the event that the history ends before), target (an event
        of the window that is `live`, at most `steps` − 1 after the position), and how many after.
    """
    row, position = np.repeat(np.arange(len(first)), last - first), ranges(first, last)
    target = position[:, None] + np.arange(steps)
    inside = target < last[row][:, None]
    place, step = (inside & live[np.where(inside, target, 0)]).nonzero()
    return row[place], position[place], target[place, step], step


def rows_of(
    fronts: pa.LargeListArray,
    events: pa.LargeListArray,
    windows: tuple[np.ndarray, np.ndarray],
    row: np.ndarray,
    position: np.ndarray,
    answers: Answers,
    weights: np.ndarray | None = None,
) -> Dataset:
    """Rows whose trunk is a front and the tokens of a window of events.

    Args:
        fronts: Tokens that open each row.
        events: Tokens of every event.
        windows: First event of every row and the one after its last.
        row: int64 [n], ascending: which row each answer belongs to. Rows without one are left out.
        position: int64 [n], the event before which the answer is attached.
        answers: Tokens and labels of the n answers.
        weights: float64 [n]; left out: 1 each.
    """
    counts = np.bincount(row, minlength=len(fronts))
    before = offsets(events.value_lengths())
    opened = fronts.value_lengths().to_numpy()
    attach = opened[row] + before[position] - before[windows[0][row]]
    kept = np.flatnonzero(counts)
    first, last, fronts = windows[0][kept], windows[1][kept], fronts.take(kept)
    read = offsets(before[last] - before[first])
    flat = events.take(ranges(first, last)).flatten().to_numpy()
    trunks = np.insert(flat, np.repeat(read[:-1], opened[kept]), fronts.flatten().to_numpy())
    by_row = offsets(counts[kept])
    columns = {
        "input_ids": split_lists(trunks, read + offsets(opened[kept])),
        "attach": split_lists(attach, by_row),
        "answers": split_lists(answers[0], by_row),
        "labels": split_lists(answers[1], by_row),
        "weights": split_lists(np.ones(len(row)) if weights is None else weights, by_row),
    }
    return Dataset.from_dict(columns, features=FEATURES)


def split_lists(values: np.ndarray | pa.Array, begins: np.ndarray) -> pa.LargeListArray:
    """Values cut into lists at [`offsets`]."""
    return pa.LargeListArray.from_arrays(pa.array(begins, pa.int64()), values)


def matrix(values: np.ndarray) -> pa.LargeListArray:
    """The rows of an array [n, m] as lists."""
    return split_lists(values.ravel(), np.arange(len(values) + 1) * values.shape[1])


def lists(values: Iterable[Sequence[int]]) -> pa.LargeListArray:
    return pa.array(values, pa.large_list(pa.int64()))
