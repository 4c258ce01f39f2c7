"""Rows of trunks and answers as one batch of tensors ([`Packed`]): in whole arrays, without a loop over tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
import pyarrow as pa
import torch

from .branches import IGNORED, Packed, Row


@dataclass(frozen=True, eq=False)
class Rows:
    """n trunks with m answers, as flat arrays: [`Row`]s one after the other. All int64 but `weights`.

    Attributes:
        ids: [t], the trunks' tokens.
        lengths: [n], tokens of each trunk.
        counts: [n], answers of each trunk, at least 1.
        attach: [m], as [`Row`] has it; so are the next.
        tokens, token_counts: [a] and [m], the answers' tokens, and how many each has.
        labels, label_counts: [b] and [m].
        weights: float64 [m].
    """

    ids: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    attach: np.ndarray
    tokens: np.ndarray
    token_counts: np.ndarray
    labels: np.ndarray
    label_counts: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Self:
        """Makes them of lists."""
        answers = [answer for row in rows for answer in row["answers"]]
        labels = [answer for row in rows for answer in row["labels"]]
        return cls(
            _flat([row["input_ids"] for row in rows]),
            _lengths([row["input_ids"] for row in rows]),
            _lengths([row["attach"] for row in rows]),
            _flat([row["attach"] for row in rows]),
            _flat(answers),
            _lengths(answers),
            _flat(labels),
            _lengths(labels),
            np.array([weight for row in rows for weight in row["weights"]], np.float64),
        )

    @classmethod
    def of_table(cls, table: pa.Table) -> Self:
        """Makes them of a table with the columns of [`Row`]; nothing becomes a Python object."""
        columns = {name: table[name].combine_chunks() for name in Row.__annotations__}
        answers, labels = columns["answers"].flatten(), columns["labels"].flatten()
        return cls(
            _values(columns["input_ids"].flatten()),
            _values(columns["input_ids"].value_lengths()),
            _values(columns["attach"].value_lengths()),
            _values(columns["attach"].flatten()),
            _values(answers.flatten()),
            _values(answers.value_lengths()),
            _values(labels.flatten()),
            _values(labels.value_lengths()),
            columns["weights"].flatten().to_numpy(zero_copy_only=False),
        )


def pack(
    rows: Sequence[Row] | Rows, *, think_ids: Sequence[int] = (), max_columns: int = 0, crowd: bool = False
) -> Packed:
    """Puts trunks with their branches into as few rows as fit, each whole, the longest first.

    Args:
        rows: At least one; each as long as [`~hf_gr.branches.fit`] leaves it.
        think_ids: Token ids of the L thinking tokens, which are found in the answers.
        max_columns: Columns a packed row may have. 0: as many as the longest trunk with its branches needs, so that
            short ones share rows and nothing is padded for their sake; trunks that have no branches at all then stay
            alone, since plain causal attention is faster than a mask.
        crowd: Let those share rows as well where they would be half padding: then the mask is faster.
    """
    r = rows if isinstance(rows, Rows) else Rows.of(rows)
    of_answer = np.repeat(np.arange(len(r.counts)), r.counts)
    first, first_token = offsets(r.lengths)[:-1], offsets(r.token_counts)[:-1]
    fed = np.maximum(r.token_counts - 1, 0)  # nothing is predicted after the last

    # an answer whose tokens the trunk has anyway stands there, all others on branches
    answer, place = _each(fed)
    column = r.attach[answer] + place
    beyond = column >= r.lengths[of_answer[answer]]
    read = r.ids[np.where(beyond, 0, first[of_answer[answer]] + column)]
    differs = beyond | (read != r.tokens[first_token[answer] + place])
    branched = np.bincount(answer[differs], minlength=len(fed)) > 0
    begins = offsets(r.counts)[:-1]
    trunk_columns = np.maximum.reduceat(r.attach + np.where(branched, 0, fed), begins)
    own = np.where(branched, fed, 0)
    before = offsets(own)[:-1]
    start = np.where(branched, trunk_columns[of_answer] + before - before[begins][of_answer], r.attach)
    number = np.cumsum(branched)  # of branches up to each, then within the trunk
    branches = np.add.reduceat(branched.astype(np.int64), begins)
    number = number - offsets(branches)[:-1][of_answer]
    lengths = trunk_columns + np.add.reduceat(own, begins)

    wasteful = crowd and len(lengths) * lengths.max() > 2 * lengths.sum()
    if max_columns or wasteful or branched.any():
        places = first_fit(lengths.tolist(), max(max_columns, int(lengths.max())))
    else:
        places = [(row, 0) for row in range(len(lengths))]
    row, left = np.array(places, np.int64).T
    columns, num_rows = int((left + lengths).max()), int(row.max()) + 1
    base = row * columns + left
    taken = np.zeros(num_rows, np.int64)
    beside = np.empty_like(row)  # branches of the trunks before, on the same row
    for trunk, count in enumerate(branches.tolist()):
        beside[trunk] = taken[row[trunk]]
        taken[row[trunk]] += count

    table = np.zeros((5, num_rows * columns), np.int64)
    table[2] = -1
    part, place = _each(trunk_columns)
    at = base[part] + place
    table[0, at], table[1, at], table[2, at], table[4, at] = r.ids[first[part] + place], place, part, place
    answer, place = _each(own)
    part = of_answer[answer]
    at, attach = base[part] + start[answer] + place, r.attach[answer]
    table[0, at], table[1, at], table[2, at] = r.tokens[first_token[answer] + place], attach + place, part
    table[3, at], table[4, at] = number[answer] + beside[part], attach - 1

    answer, place = _each(r.label_counts)
    last_read = np.where((place > 0) & (r.token_counts[answer] > 0), start[answer] + place, r.attach[answer]) - 1
    predicted = np.flatnonzero(r.labels != IGNORED)
    answer, last_read = answer[predicted], last_read[predicted]
    per_answer = np.bincount(answer, minlength=len(fed))
    place = np.arange(len(answer)) - offsets(per_answer)[:-1][answer]
    labels = np.full((len(fed), int(per_answer.max(initial=0))), IGNORED, np.int64)
    predictors = np.zeros_like(labels)
    labels[answer, place] = r.labels[predicted]
    predictors[answer, place] = base[of_answer[answer]] + last_read

    thoughts = np.full((len(fed), len(think_ids)), -1, np.int64)
    for level, think in enumerate(think_ids):
        found = np.flatnonzero(r.tokens == think)[::-1]  # so that the first one is written last
        answer = np.searchsorted(first_token, found, side="right") - 1
        thoughts[answer, level] = base[of_answer[answer]] + start[answer] + found - first_token[answer]
    tensors = [torch.from_numpy(values.reshape(num_rows, columns)) for values in table]
    answers = [labels, predictors, base[of_answer] + r.attach - 1, thoughts, r.weights.astype(np.float32)]
    return Packed(*tensors, *map(torch.from_numpy, answers))


def _each(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every entry of lists of these lengths, the list that it is in, and its place there."""
    return np.repeat(np.arange(len(counts)), counts), ranges(np.zeros_like(counts), counts)


def ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The numbers of every range `first:last`, one range after the other."""
    lengths = last - first
    return np.arange(lengths.sum()) + np.repeat(first - offsets(lengths)[:-1], lengths)


def offsets(lengths: np.ndarray | pa.Array) -> np.ndarray:
    """Where each of n lists of these lengths begins, one after the other, and where the last ends; int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _lengths(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(map(len, lists), np.int64, len(lists))


def _flat(lists: Iterable[Sequence[int]]) -> np.ndarray:
    return np.array(list(chain.from_iterable(lists)), np.int64)


def _values(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def first_fit(lengths: Sequence[int], columns: int) -> list[tuple[int, int]]:
    """Row and first column of every part: the longest first, each into the first row with room for it."""
    room: list[int] = []
    places = [(0, 0)] * len(lengths)
    for number in sorted(range(len(lengths)), key=lambda part: -lengths[part]):
        row = next((row for row, left in enumerate(room) if left >= lengths[number]), len(room))
        if row == len(room):
            room.append(columns)
        places[number] = (row, columns - room[row])
        room[row] -= lengths[number]
    return places
