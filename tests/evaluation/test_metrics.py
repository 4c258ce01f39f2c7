import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from hf_gr.evaluation import metrics as m


NUM_ITEMS = 8


@st.composite
def cases(draw):
    """Lists with invalid and repeated entries, padded at the end with -1, and targets."""
    width = draw(st.integers(1, 7))
    rows = draw(
        st.lists(st.lists(st.integers(-2, NUM_ITEMS + 2).filter(lambda i: i != -1), max_size=width), min_size=1)
    )
    recommended = np.array([row + [-1] * (width - len(row)) for row in rows], np.int64)
    targets = draw(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=len(rows), max_size=len(rows)))
    return recommended, np.array(targets, np.int64)


@given(cases())
def test_metrics_equal_a_loop(case):
    recommended, targets = case
    ranks = m.target_ranks(recommended, targets)
    for k in (1, 2, 5, 10):
        for row, (items, target) in enumerate(zip(recommended.tolist(), targets.tolist(), strict=True)):
            place = next((place for place, item in enumerate(items[:k], 1) if item == target), None)
            assert m.hit_rate(ranks, k)[row] == (place is not None)
            assert m.ndcg(ranks, k)[row] == pytest.approx(1 / math.log2(place + 1) if place else 0)
            assert m.mrr(ranks, k)[row] == pytest.approx(1 / place if place else 0)


def test_a_miss_is_beyond_a_k_larger_than_the_lists():
    ranks = m.target_ranks(np.array([[1, 2]]), np.array([3]))
    assert m.hit_rate(ranks, 50).sum() == m.ndcg(ranks, 50).sum() == m.mrr(ranks, 50).sum() == 0


def test_ndcg_equals_sklearn():
    random = np.random.default_rng(0)
    scores = random.normal(size=(30, 12))
    targets = random.integers(12, size=30)
    ranks = m.target_ranks(np.argsort(-scores, axis=1), targets)
    for k in (1, 3, 10):
        assert m.ndcg(ranks, k).mean() == pytest.approx(ndcg_score(np.eye(12)[targets], scores, k=k))


@given(st.lists(st.integers(0, 60), min_size=1))
def test_a_gain_in_ndcg_fits_the_gain_in_hit_rate(ranks):
    """A hit between k1 and k2 adds between 1/log2(k2 + 1) and 1/log2(k1 + 2)."""
    ranks = np.array(ranks)
    for k1, k2 in zip(m.KS, m.KS[1:], strict=False):
        hits = (m.hit_rate(ranks, k2) - m.hit_rate(ranks, k1)).mean()
        gain = (m.ndcg(ranks, k2) - m.ndcg(ranks, k1)).mean()
        assert hits / math.log2(k2 + 1) - 1e-9 <= gain <= hits / math.log2(k1 + 2) + 1e-9


@given(cases(), st.lists(st.integers(-1, 3), min_size=NUM_ITEMS, max_size=NUM_ITEMS))
def test_sid_ranks_equal_a_loop(case, sids):
    recommended, targets = case
    ranks = m.sid_ranks(recommended, targets, np.array(sids))
    for items, target, rank in zip(recommended.tolist(), targets.tolist(), ranks.tolist(), strict=True):
        distinct: list = []
        for place, item in enumerate(items):
            sid = sids[item] if 0 <= item < NUM_ITEMS and sids[item] >= 0 else f"invalid {place}"
            if item != -1 and sid not in distinct:
                distinct.append(sid)
        wanted = sids[target]
        assert rank == (distinct.index(wanted) if wanted >= 0 and wanted in distinct else m.MISS)


def test_sid_numbers_tell_codes_apart():
    numbers = m.sid_numbers(np.array([[1, 2], [1, 3], [1, 2], [-1, -1]]))
    assert numbers[0] == numbers[2] != numbers[1]
    assert numbers[3] == -1


@given(cases())
def test_list_qualities_equal_a_loop(case):
    recommended, _ = case
    counts, emitted, invalid, repeated = [0] * NUM_ITEMS, 0, 0, 0
    for items in recommended.tolist():
        items = [item for item in items if item != -1]
        emitted += len(items)
        for place, item in enumerate(items):
            if 0 <= item < NUM_ITEMS:
                counts[item] += 1
            else:
                invalid += 1
            repeated += item >= 0 and item in items[:place]
    total = max(emitted, 1)
    assert m.catalog_coverage(recommended, NUM_ITEMS) == sum(c > 0 for c in counts) / NUM_ITEMS
    assert m.invalid_rate(recommended, NUM_ITEMS) == pytest.approx(invalid / total)
    assert m.duplicate_rate(recommended) == pytest.approx(repeated / total)
    differences = sum(abs(a - b) for a in counts for b in counts)  # the definition by mean absolute difference
    assert m.gini(recommended, NUM_ITEMS) == pytest.approx(differences / max(2 * NUM_ITEMS * sum(counts), 1))


def test_bootstrap_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    low, high = m.bootstrap_interval(values, seed=0)
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_bootstrap_draws_metrics_together_and_is_seeded():
    values = np.random.default_rng(1).random((50, 2))
    both = m.bootstrap_interval(values, seed=3)
    assert both[0][1] == pytest.approx(m.bootstrap_interval(values[:, 1], seed=3)[0])
    assert m.bootstrap_interval(values, seed=4)[0][0] != both[0][0]


def test_bootstrap_draws_a_users_cases_together():
    """Copies of a user's case tell nothing new: the interval stays that of the users."""
    values = np.random.default_rng(1).random(40)
    low, high = m.bootstrap_interval(np.repeat(values, 5), seed=0, groups=np.repeat(np.arange(40), 5))
    np.testing.assert_allclose((low, high), m.bootstrap_interval(values, seed=0))
    narrow = m.bootstrap_interval(np.repeat(values, 5), seed=0)
    assert narrow[1] - narrow[0] < 0.7 * (high - low)


def test_memory_bound_steps_do_not_change_the_distribution():
    values = np.random.default_rng(1).random(2**14)  # 256 resamples at a time
    low, high = m.bootstrap_interval(values, seed=0)
    error = values.std() / 2**7
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.1)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_paired_differences_are_narrower_than_unpaired_ones(seed):
    random = np.random.default_rng(seed)
    a = random.normal(size=300)
    b = a - 0.1 + 0.01 * random.normal(size=300)
    difference, low, high = m.paired_bootstrap(a, b, seed)
    assert difference == pytest.approx(0.1, abs=0.01)
    assert 0.09 < low < difference < high < 0.11
