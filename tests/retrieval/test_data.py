"""Rows of training against a loop over single events."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_gr.dataset import Histories
from hf_gr.models.bsarec import PADDING, history_rows
from hf_gr.retrieval.data import AlikeLengths, collate, training_rows


N = 1000


def histories(*users: list[int]) -> Histories:
    ptr = np.cumsum([0, *map(len, users)])
    items = np.array([item for user in users for item in user], np.int64)
    return Histories(np.arange(len(users)).astype(str), ptr, items, np.arange(len(items)))


@given(
    st.lists(st.lists(st.integers(0, N - 1), max_size=30), min_size=1, max_size=5), st.integers(1, 8), st.booleans()
)
def test_every_event_is_a_target_once_after_what_came_before(users, max_history, causal):
    rows = training_rows(histories(*users), N, max_history, causal)
    found = []
    for inputs, labels in zip(rows.inputs, rows.labels, strict=True):
        assert len(inputs) == len(labels) <= max_history + 1 and inputs[0] == N
        for place in np.flatnonzero(labels != PADDING):
            found.append((tuple(inputs[1 : place + 1]), labels[place]))
    expected = [(user[:end], item) for user in users for end, item in enumerate(user)]
    assert len(found) == len(expected) and (causal or len(rows) == len(expected))
    unmatched = list(expected)
    for known, item in found:
        at_least = max_history // 2 if causal else max_history
        matching = [
            (before, target)
            for before, target in unmatched
            if target == item
            and tuple(before[len(before) - len(known) :]) == known
            and len(known) >= min(len(before), at_least)
        ]
        assert matching
        unmatched.remove(matching[0])


def test_a_history_that_fits_is_one_row():
    rows = training_rows(histories([4, 5, 6], [7]), N, 2, causal=True)
    assert [row.tolist() for row in rows.inputs] == [[N, 4, 5], [N]]
    assert [row.tolist() for row in rows.labels] == [[4, 5, 6], [7]]


def test_as_published_every_event_has_a_row():
    rows = training_rows(histories([4, 5, 6, 7]), N, 2, causal=False)
    assert [row.tolist() for row in rows.inputs] == [[N], [N, 4], [N, 4, 5], [N, 5, 6]]
    assert [row.tolist() for row in rows.labels] == [[4], [-1, 5], [-1, -1, 6], [-1, -1, 7]]


def test_batches_are_padded_behind():
    rows = training_rows(histories([4, 5, 6], [7]), N, 5, causal=True)
    batch = collate([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[N, 4, 5], [N, -1, -1]]
    assert batch["labels"].tolist() == [[4, 5, 6], [7, -1, -1]]


@pytest.mark.parametrize(("history", "expected"), [([], [N]), ([1, 2], [N, 1, 2]), ([1, 2, 3, 4], [N, 2, 3, 4])])
def test_rows_to_predict_from_hold_the_latest_events(history, expected):
    (row,) = history_rows([np.array(history, np.int64)], N, 3)
    assert row.tolist() == expected


def test_batches_hold_rows_about_as_long_and_an_epoch_has_its_order():
    lengths = np.random.default_rng(0).integers(1, 50, 1000)
    sampler = AlikeLengths(lengths, 10, seed=0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first == again != second and sorted(first) == sorted(second) == list(range(1000)) and len(sampler) == 1000
    spread = np.ptp(lengths[first].reshape(-1, 10), axis=1).mean()
    assert spread < np.ptp(lengths.reshape(-1, 10), axis=1).mean() / 5
    assert sorted(AlikeLengths(lengths[:7], 3, seed=0)) == list(range(7))
    batches = lengths[first].reshape(-1, 10).mean(axis=1)
    assert np.abs(np.corrcoef(batches, np.arange(100))[0, 1]) < 0.3  # short rows do not come first
