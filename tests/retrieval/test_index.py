"""Indexes and filtered search against every product."""

import numpy as np
import pytest

from hf_gr.errors import HfGrError
from hf_gr.retrieval import search as search_module
from hf_gr.retrieval.index import LARGEST_FLAT, VectorIndex, exact_best, kind_for, recall_of
from hf_gr.retrieval.search import MISSING, search


ITEMS, WIDTH = 2000, 16


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    random = np.random.default_rng(0)
    centers = random.normal(size=(30, WIDTH))
    return (centers[random.integers(0, 30, ITEMS)] + 0.5 * random.normal(size=(ITEMS, WIDTH))).astype(np.float32)


@pytest.fixture(scope="module")
def users() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(40, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module", params=["flat", "ivf", "hnsw"])
def index(request, vectors, users) -> VectorIndex:
    return VectorIndex.build(vectors, request.param, users)


def best_of(vectors: np.ndarray, user: np.ndarray, k: int) -> list[int]:
    return np.argsort(-(vectors @ user), kind="stable")[:k].tolist()


def test_recall_is_what_is_said_and_asked_for(index, vectors, users):
    exact = np.array([best_of(vectors, user, 50) for user in users])
    assert np.array_equal(exact_best(vectors, users, 50), exact)
    scores, items = index.search(users, 50)
    shares = [len(set(own) & set(best)) / 50 for own, best in zip(items.tolist(), exact.tolist(), strict=True)]
    assert recall_of(items, exact) == pytest.approx(np.mean(shares)) and index.recall == pytest.approx(np.mean(shares))
    assert index.recall >= 0.98 and (index.kind != "flat" or index.recall == 1)
    assert np.allclose(scores, np.take_along_axis(users @ vectors.T, items, 1), atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_more_effort_finds_more(vectors, users):
    found = [VectorIndex.build(vectors, "ivf", users, recall=recall) for recall in (0.5, 0.9, 1.0)]
    assert found[0].effort < found[1].effort < found[2].effort <= found[2].most_effort
    assert found[0].recall < found[1].recall < found[2].recall == 1


def test_items_that_are_added_are_found(vectors, users, index):
    again = VectorIndex.build(vectors[:1500], index.kind, users)
    again.add(vectors[1500:])
    assert recall_of(again.search(users, 50)[1], exact_best(vectors, users, 50)) > 0.9
    assert (again.search(users, 50)[1] >= 1500).any() and len(again) == ITEMS


@pytest.mark.parametrize("left", [1000, 30, 3, 0])
def test_filters_never_cost_an_answer(index, vectors, users, left, monkeypatch):
    """Whatever the filter leaves, K answers or all that there are; right ones where the search became exhaustive."""
    monkeypatch.setattr(search_module, "_FEW", 0)  # so that the index is asked first
    random = np.random.default_rng(2)
    allowed = np.sort(random.choice(ITEMS, left, replace=False))
    banned = ~np.isin(np.arange(ITEMS), allowed)
    exclude = [random.choice(ITEMS, 5, replace=False) for _ in users]
    items, scores = search(index, vectors, users, 10, banned, exclude)
    for user, own, score, gone in zip(users, items, scores, exclude, strict=True):
        rows = np.setdiff1d(allowed, gone)
        found = own[own != MISSING]
        assert len(found) == min(10, len(rows)) and np.isin(found, rows).all() and len({*found}) == len(found)
        assert np.isneginf(score[len(found) :]).all() and (own[len(found) :] == MISSING).all()
        if left < 100:
            assert found.tolist() == rows[best_of(vectors[rows], user, 10)].tolist()
        assert np.allclose(score[: len(found)], vectors[found] @ user, atol=1e-4)


def test_few_items_are_all_looked_at(index, vectors, users):
    banned = np.arange(ITEMS) % 2 == 0
    rows = np.flatnonzero(~banned)
    items = search(index, vectors, users, 10, banned)[0]
    assert items.tolist() == [rows[best_of(vectors[rows], user, 10)].tolist() for user in users]


def test_it_is_saved_without_a_pickle(index, tmp_path, users):
    index.save(tmp_path)
    again = VectorIndex.load(tmp_path)
    assert np.array_equal(again.search(users, 20)[1], index.search(users, 20)[1])
    assert again.said() == index.said() and {file.name for file in tmp_path.iterdir()} == {"index.faiss", "index.json"}
    (tmp_path / "index.faiss").write_bytes(b"\x80\x04nothing of faiss")
    with pytest.raises(HfGrError, match="is no index"):
        VectorIndex.load(tmp_path)


def test_large_catalogs_are_approximate_by_default():
    assert kind_for("auto", LARGEST_FLAT) == "flat" and kind_for("auto", LARGEST_FLAT + 1) == "ivf"
    assert kind_for("hnsw", 10) == "hnsw"
