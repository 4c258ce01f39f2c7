import numpy as np
import pytest

from hf_gr.dataset import Cases, Histories
from hf_gr.errors import HfGrError
from hf_gr.evaluation.judging import BUCKETS, compare, judge, length_bins, popularity_buckets, user_numbers


NUM_ITEMS = 12


def histories(lengths, seed=0, users=None) -> Histories:
    random = np.random.default_rng(seed)
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    users = [f"u{n}" for n in range(len(lengths))] if users is None else users
    items = (random.random(ptr[-1]) ** 2 * (NUM_ITEMS - 2)).astype(np.int64)  # the last two are never seen
    return Histories(np.array(users, dtype=object), ptr, items, np.arange(ptr[-1]))


@pytest.fixture
def cases() -> Cases:
    random = np.random.default_rng(2)
    return Cases(histories(random.integers(1, 9, 80), seed=3), random.integers(NUM_ITEMS, size=80))


@pytest.fixture
def recommended() -> np.ndarray:
    random = np.random.default_rng(4)
    return np.array([random.permutation(NUM_ITEMS)[:10] for _ in range(80)])


def test_numbers_and_groups_equal_a_loop(cases, recommended):
    train = histories([30, 20, 10])
    codes = np.array([[item // 2] for item in range(NUM_ITEMS)])
    result = judge(recommended, cases, train, NUM_ITEMS, codes=codes)
    counts = np.bincount(train.items, minlength=NUM_ITEMS)
    hits = np.array([t in row[:5] for row, t in zip(recommended.tolist(), cases.targets, strict=True)])
    assert result["item"]["HR@5"]["value"] == pytest.approx(hits.mean())
    assert result["item"]["HR@5"]["low"] < hits.mean() < result["item"]["HR@5"]["high"]
    assert "HR@10" in result["item"] and "HR@20" not in result["item"]
    pairs = [list(dict.fromkeys(item // 2 for item in row)) for row in recommended.tolist()]
    sid_hits = [t // 2 in row[:3] for row, t in zip(pairs, cases.targets, strict=True)]
    assert result["sid"]["HR@3"]["value"] == pytest.approx(np.mean(sid_hits))
    unseen = counts[cases.targets] == 0
    assert result["by_popularity"]["unseen"]["cases"] == unseen.sum() == result["unseen"]["targets"] > 0
    assert result["by_popularity"]["unseen"]["HR@5"]["value"] == pytest.approx(hits[unseen].mean())
    assert sum(group["cases"] for group in result["by_popularity"].values()) == len(cases)
    total = 0
    for label, group in result["by_history_length"].items():
        low, *high = map(int, label.split("-"))
        lengths = cases.histories.lengths
        inside = (lengths >= low) & (lengths <= (high or [low])[0])
        assert group["cases"] == inside.sum()
        assert group["HR@5"]["value"] == pytest.approx(hits[inside].mean())
        total += group["cases"]
    assert total == len(cases)
    assert result["invalid_rate"] == result["duplicate_rate"] == 0
    assert result["mean_length"] == 10
    assert result["unseen"]["share_of_lists"] == pytest.approx(
        np.isin(recommended, np.flatnonzero(counts == 0)).mean()
    )


def test_popularity_buckets_take_a_third_of_the_events_each():
    counts = np.array([1, 0, 30, 10, 20, 9, 20, 0])  # 90 events: 30 | 20 20 | 10 9 1
    names = [BUCKETS[bucket] for bucket in popularity_buckets(counts)]
    assert names == ["tail", "unseen", "head", "tail", "mid", "tail", "mid", "unseen"]


def test_length_bins_keep_equal_lengths_together():
    bins, labels = length_bins(np.array([3, 3, 3, 3, 3, 9, 4, 0]))
    assert labels[bins[7]] == "0-3" and labels[bins[5]] in ("4-9", "9")
    assert len({bins[i] for i in range(5)}) == 1
    assert length_bins(np.array([7, 7]))[1] == ["7"]


def test_no_metrics_where_there_are_no_cases(cases, recommended):
    train = histories([300])
    train.items[:] = np.arange(300) % NUM_ITEMS  # nothing is unseen
    assert judge(recommended, cases, train, NUM_ITEMS)["by_popularity"]["unseen"] == {"cases": 0}


def test_a_user_with_many_cases_widens_the_interval():
    hits = np.repeat(np.random.default_rng(0).integers(2, size=20), 10)
    recommended = np.where(hits == 1, 5, 6)[:, None]
    one_each = Cases(histories([2] * 200), np.full(200, 5))
    shared = Cases(histories([2] * 200, users=np.repeat([f"u{n}" for n in range(20)], 10)), np.full(200, 5))
    assert len(np.unique(user_numbers(shared))) == 20
    train = histories([30])
    a, b = (judge(recommended, c, train, NUM_ITEMS)["item"]["HR@1"] for c in (one_each, shared))
    assert a["value"] == b["value"]
    assert b["high"] - b["low"] > 2 * (a["high"] - a["low"])


def test_best_is_marked_only_where_the_intervals_say_so(cases):
    right, wrong = cases.targets[:, None], (cases.targets[:, None] + 1) % NUM_ITEMS
    close = right.copy()
    close[0] = wrong[0]
    assert compare({"a": wrong, "b": right, "c": wrong}, cases, (1,), 0)["best"]["HR@1"] == "b"
    assert compare({"a": right, "b": close}, cases, (1,), 0)["best"]["HR@1"] is None  # one case: may be chance
    assert compare({"a": right}, cases, (1,), 0)["best"]["HR@1"] is None
    difference = compare({"a": wrong, "b": right}, cases, (1,), 0)["differences"]["b"]["HR@1"]
    assert difference == {"value": -1.0, "low": -1.0, "high": -1.0}


def test_lists_that_are_too_short_are_refused(cases, recommended):
    with pytest.raises(HfGrError, match="too short"):
        judge(recommended[:, :2], cases, histories([30]), NUM_ITEMS, ks=(3, 5))
