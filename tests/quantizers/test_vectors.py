import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.errors import HfGrError
from hf_gr.quantizers import vectors as module
from hf_gr.quantizers.vectors import check_distinct, check_vectors, sample_rows, shuffled_batches


IDS = [f"item-{row}" for row in range(50)]


@pytest.fixture
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read a few rows at a time."""
    monkeypatch.setattr(module, "CHUNK", 7)
    monkeypatch.setattr(module, "_HASHED", 5)


def normal(rows: int, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


@pytest.mark.usefixtures("small_reads")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_items_are_named(value: float):
    vectors = normal(50)
    check_vectors(vectors, 3)
    vectors[[8, 9, 11, 12], [0, 1, 2, 2]] = value
    with pytest.raises(HfGrError, match=r"items 'item-8', 'item-9', 'item-11' and 1 more hold NaN or infinity"):
        check_vectors(vectors, 3, IDS)
    vectors[[8, 9, 11]] = 0
    with pytest.raises(HfGrError, match=r"item row 12 hold"):
        check_vectors(vectors, 3)


@pytest.mark.parametrize("shape", [(4, 2), (4,), (4, 3, 1)])
def test_another_shape_is_refused(shape: tuple[int, ...]):
    with pytest.raises(HfGrError, match=r"width 3, not shape \["):
        check_vectors(np.zeros(shape, np.float32), 3)


@pytest.mark.usefixtures("small_reads")
def test_too_few_items_or_too_few_different_ones_are_refused():
    with pytest.raises(
        HfGrError, match=r"6 item vectors are fewer than the 8 codes of level 1; set codebook_size to 6"
    ):
        check_distinct(normal(6), [4, 8])
    vectors = normal(12)
    vectors[[2, 5, 7, 9, 11]] = vectors[1]
    with pytest.raises(
        HfGrError, match=r"12 item vectors take only 7 different values, fewer than the 8 codes of le"
    ) as e:
        check_distinct(vectors, [8, 4], np.array(IDS))
    assert "items 'item-1', 'item-2', 'item-5' and 3 more are all the same" in str(e.value)
    assert "level 0" in str(e.value) and "7 or less" in str(e.value)
    with pytest.raises(
        HfGrError, match=r"take only 1 different .* items 'item-0', 'item-1', 'item-2' and 47 more|only 1"
    ):
        check_distinct(np.ones((50, 3), np.float32), [2], IDS)


@pytest.mark.usefixtures("small_reads")
def test_items_that_repeat_are_warned_of_by_name():
    vectors = normal(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_distinct(vectors, [8], IDS)
    vectors[[3, 17]] = vectors[6]
    vectors[4] = vectors[5]
    with pytest.warns(
        UserWarning, match=r"3 item vectors repeat another one; .* 'item-3', 'item-6', 'item-17'\. Only"
    ):
        check_distinct(vectors, [8], IDS)
    with pytest.warns(
        UserWarning, match=r"2 item vectors repeat .* items row 0, row 1\. Only"
    ):  # of two pairs the first
        check_distinct(np.repeat(normal(2), 2, axis=0), [2])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    dim=st.integers(1, 4),
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 1e-45, 3e38]), min_size=1, max_size=4),
    seed=st.integers(0, 999),
)
def test_different_vectors_are_counted_as_numpy_counts_them(rows: int, dim: int, values: list[float], seed: int):
    vectors = np.random.default_rng(seed).choice(np.array(values, np.float32), (rows, dim))
    groups = np.unique(vectors, axis=0, return_inverse=True)[1].ravel()
    hashes = module._row_hashes(vectors)
    assert np.array_equal(hashes[:, None] == hashes[None], groups[:, None] == groups[None])


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 200), batch=st.integers(1, 30), chunk=st.integers(1, 60), seed=st.integers(0, 99))
def test_an_epoch_has_every_row_once(rows: int, batch: int, chunk: int, seed: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        batches = list(shuffled_batches(rows, batch, np.random.default_rng(seed)))
        again = list(shuffled_batches(rows, batch, np.random.default_rng(seed)))
    assert sorted(np.concatenate([[], *batches]).tolist()) == list(range(rows))
    assert all(0 < len(found) <= batch for found in batches)
    assert all(np.ptp(found) < chunk for found in batches)
    assert all(np.array_equal(*pair) for pair in zip(batches, again, strict=True))


def test_epochs_differ_and_are_mixed():
    random = np.random.default_rng(0)
    first, second = (np.concatenate(list(shuffled_batches(500, 50, random))) for _ in range(2))
    assert not np.array_equal(first, second) and not np.array_equal(first, np.sort(first))


def test_a_sample_is_some_rows_in_their_order():
    vectors = normal(40)
    sample = sample_rows(vectors, 10, seed=3)
    rows = [int(np.flatnonzero((vectors == row).all(1))[0]) for row in sample]
    assert len(rows) == 10 and rows == sorted(set(rows))
    assert np.array_equal(sample, sample_rows(vectors, 10, seed=3))
    assert not np.array_equal(sample, sample_rows(vectors, 10, seed=4))
    everything = sample_rows(vectors, 40, seed=3)
    assert np.array_equal(everything, vectors) and not np.shares_memory(everything, vectors)


def test_checks_and_samples_hold_little_of_a_file_in_memory(tmp_path: Path):
    """tracemalloc sees NumPy's own memory, not the pages of the file."""
    shape = (150_000, 64)
    written = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=shape)
    for start in range(0, len(written), 10_000):
        written[start : start + 10_000] = normal(10_000, 64, seed=start)
    vectors = np.memmap(tmp_path / "vectors", np.float32, "r", shape=shape)
    tracemalloc.start()
    check_vectors(vectors, 64)
    check_distinct(vectors, [8])
    sample_rows(vectors, 1000, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < vectors.nbytes / 3
