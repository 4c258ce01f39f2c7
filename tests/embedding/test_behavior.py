import math

import numpy as np
import pytest

from hf_gr.dataset import Histories
from hf_gr.embedding.behavior import behavior_vectors, cooccurrence, ppmi
from hf_gr.errors import HfGrError


def histories(*rows: list[int]) -> Histories:
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    items = np.array([item for row in rows for item in row], np.int64)
    return Histories(np.array([f"u{i}" for i in range(len(rows))], object), ptr, items, np.arange(len(items)))


def random_histories(num_items: int, seed: int = 0) -> Histories:
    random = np.random.default_rng(seed)
    return histories(*(random.integers(num_items, size=random.integers(1, 9)).tolist() for _ in range(40)))


def dense_counts(train: Histories, num_items: int, window: int) -> np.ndarray:
    counts = np.zeros((num_items, num_items))
    for history in train:
        for i, left in enumerate(history):
            for j, right in enumerate(history):
                if i != j and left != right and abs(i - j) <= window:
                    counts[left, right] += 1 / abs(i - j)
    return counts


def dense_ppmi(counts: np.ndarray) -> np.ndarray:
    total, result = counts.sum(), np.zeros_like(counts)
    for i, j in zip(*np.nonzero(counts), strict=True):
        result[i, j] = max(0.0, math.log(counts[i, j] * total / (counts[i].sum() * counts[j].sum())))
    return result


@pytest.mark.parametrize("window", [1, 3, 20])
def test_counts_and_ppmi_equal_dense_brute_force(window: int):
    train = random_histories(12)
    counts = cooccurrence(train, 13, window)
    expected = dense_counts(train, 13, window)
    assert np.allclose(counts.toarray(), expected)
    assert np.allclose(ppmi(counts).toarray(), dense_ppmi(expected))


def test_vectors_are_the_truncated_svd_of_ppmi():
    train = random_histories(12)
    left, values, _ = np.linalg.svd(dense_ppmi(dense_counts(train, 12, 3)))
    vectors = behavior_vectors(train, 12, dim=4, window=3).astype(np.float64)
    # Signs are free, so compare what does not depend on them.
    expected = left[:, :4] * np.sqrt(values[:4])
    assert np.allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)
    assert np.allclose(np.square(vectors).sum(0), values[:4], atol=1e-5)


def test_the_largest_entry_of_every_column_is_positive_whatever_the_seed():
    train = random_histories(12)
    first, second = (behavior_vectors(train, 12, dim=5, window=3, seed=seed) for seed in (0, 1))
    assert (first[np.abs(first).argmax(0), np.arange(5)] > 0).all()
    assert np.allclose(first, second, atol=1e-5)
    assert behavior_vectors(train, 12, dim=5, window=3).tobytes() == first.tobytes()


def test_items_without_company_get_zeros():
    train = histories([0, 1, 2], [1, 0], [2, 0, 1], [3])
    vectors = behavior_vectors(train, 6, dim=2, window=2)
    assert (vectors[3:] == 0).all()  # 3 stands alone, 4 and 5 are never seen
    assert np.isfinite(vectors).all()
    assert (np.abs(vectors[:3]).sum(1) > 0).all()


def test_users_are_not_joined():
    assert cooccurrence(histories([0, 1], [2, 3]), 4, 5).toarray()[1, 2] == 0


def test_columns_beyond_the_rank_are_zero():
    train = random_histories(30)
    rank = np.linalg.matrix_rank(dense_ppmi(dense_counts(train, 30, 3)))
    vectors = behavior_vectors(train, 80, dim=60, window=3)
    assert (np.abs(vectors).sum(0) > 0).tolist() == [True] * rank + [False] * (60 - rank)


@pytest.mark.parametrize(
    ("train", "num_items", "options", "message"),
    [
        (histories([0, 1]), 4, {"dim": 4}, "behavior_dim 4"),
        (histories([0], [1]), 4, {"dim": 2}, "no two items"),
        (histories([0, 1]), 4, {"dim": 2, "window": 0}, "window 0"),
    ],
)
def test_what_cannot_work_is_refused(train: Histories, num_items: int, options: dict, message: str):
    with pytest.raises(HfGrError, match=message):
        behavior_vectors(train, num_items, **options)
