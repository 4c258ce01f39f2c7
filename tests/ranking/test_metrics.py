"""AUC, GAUC, ECE and the rest against pairs and loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_gr.ranking.metrics import Ordered, auc, expected_calibration_error, gauc, reliability, row_losses, summary


ROWS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 6).map(lambda n: n / 6), st.integers(0, 3)), min_size=1, max_size=30
)


def by_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    clicks, others = scores[labels > 0], scores[labels == 0]
    pairs = [(click > other) + 0.5 * (click == other) for click in clicks for other in others]
    return float(np.mean(pairs)) if pairs else float("nan")


def columns(rows: list[tuple[bool, float, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, users = map(np.array, zip(*rows, strict=True))
    return labels.astype(np.float32), scores.astype(np.float32), users


@given(ROWS)
def test_auc_counts_pairs(rows):
    labels, scores, _ = columns(rows)
    assert auc(labels, scores) == pytest.approx(by_pairs(labels, scores), nan_ok=True)


@given(ROWS, st.integers(0, 2**16))
def test_weights_are_rows_that_come_several_times(rows, seed):
    labels, scores, _ = columns(rows)
    times = np.random.default_rng(seed).integers(0, 3, len(labels))
    expected = by_pairs(np.repeat(labels, times), np.repeat(scores, times))
    assert Ordered(labels, scores).auc(times.astype(float)) == pytest.approx(expected, nan_ok=True)


@given(ROWS)
def test_gauc_weighs_users_by_their_rows(rows):
    labels, scores, users = columns(rows)
    total, weight = 0.0, 0
    for user in set(users.tolist()):
        mine = users == user
        value = by_pairs(labels[mine], scores[mine])
        if not np.isnan(value):
            total, weight = total + value * mine.sum(), weight + mine.sum()
    assert gauc(labels, scores, users) == pytest.approx(total / weight if weight else np.nan, nan_ok=True)


@given(ROWS)
def test_calibration_by_a_loop_over_bins(rows):
    labels, scores, _ = columns(rows)
    error, seen = 0.0, 0
    for place in range(10):
        last = place == 9
        mine = (scores * 10 >= place) & ((scores * 10 < place + 1) | last)
        if mine.any():
            error += mine.mean() * abs(scores[mine].mean() - labels[mine].mean())
            seen += 1
    assert expected_calibration_error(labels, scores) == pytest.approx(error, abs=1e-6)
    assert len(reliability(labels, scores)) == seen


def test_losses_stay_finite():
    losses = row_losses(np.array([1.0, 0.0, 1.0]), np.array([0.25, 0.5, 0.0], np.float32))
    assert losses[:2] == pytest.approx([np.log(4), np.log(2)])
    assert np.isfinite(losses[2])


def test_a_summary_holds_plain_values_and_their_intervals():
    random = np.random.default_rng(0)
    users = random.integers(0, 80, 600)
    scores = random.random(600).astype(np.float32)
    labels = (random.random(600) < scores).astype(np.float32)  # calibrated by construction
    found = summary(labels, scores, users * 7, samples=100)
    expected = {"AUC": by_pairs(labels, scores), "GAUC": gauc(labels, scores, users)}
    expected |= {"log_loss": row_losses(labels, scores).mean(), "ratio": scores.sum() / labels.sum()}
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-6)
        assert found[name]["low"] < value < found[name]["high"]
    assert found["ratio"]["low"] < 1 < found["ratio"]["high"] and found["ECE"] < 0.08
    assert (found["rows"], found["clicks"], found["users"]) == (600, int(labels.sum()), len(np.unique(users)))
    one = summary(np.ones(3, np.float32), scores[:3], users[:3], samples=5)
    assert one["AUC"]["value"] is None and one["GAUC"]["value"] is None
