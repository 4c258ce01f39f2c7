import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hf_gr.errors import HfGrError
from hf_gr.quantizers import RQKMeans, RQKMeansConfig


def blobs(rows: int = 400, dim: int = 12, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(10, dim)) * 3
    return (centres[random.integers(10, size=rows)] + random.normal(size=(rows, dim))).astype(np.float32)


def fitted(vectors: np.ndarray, sizes: tuple[int, ...] = (8, 6, 4), seed: int = 0, **options: Any) -> RQKMeans:
    config = RQKMeansConfig(dim=vectors.shape[1], codebook_sizes=sizes, **options)
    return RQKMeans(config).fit(vectors, seed=seed, progress=False)


def prices(quantizer: RQKMeans) -> list[np.ndarray]:
    return [quantizer.get_buffer(f"prices_{level}").numpy() for level in range(quantizer.num_levels)]


def reference_codes(vectors: np.ndarray, quantizer: RQKMeans, allowed: list[np.ndarray] | None = None) -> np.ndarray:
    residual, codes = vectors.astype(np.float64), []
    for level, price in enumerate(prices(quantizer)):
        codebook = quantizer.code_vectors(level)
        costs = ((residual[:, None] - codebook[None]) ** 2).sum(-1) + price
        codes.append((costs if allowed is None else np.where(allowed[level], costs, np.inf)).argmin(1))
        residual = residual - codebook[codes[-1]]
    return np.stack(codes, 1)


BALANCES = pytest.mark.parametrize("balance", ["none", "last", "all"])


@BALANCES
def test_codes_and_vectors_equal_a_numpy_line(balance: str):
    vectors = blobs()
    quantizer = fitted(vectors, balance=balance)
    assert [bool(price.any()) for price in prices(quantizer)] == [
        balance == "all",
        balance == "all",
        balance != "none",
    ]
    codebooks = [quantizer.code_vectors(level) for level in range(3)]
    codes = quantizer.encode(vectors, batch_size=37)
    assert codes.dtype == np.int32
    assert np.array_equal(codes, reference_codes(vectors, quantizer))
    decoded = quantizer.decode(codes, batch_size=41)
    assert decoded.dtype == np.float32
    assert np.allclose(decoded, sum(codebooks[level][codes[:, level]] for level in range(3)), atol=1e-5)


def test_a_prefix_decodes_to_the_sum_of_its_codes():
    vectors = blobs(50)
    quantizer = fitted(vectors)
    codes, expected = quantizer.encode(vectors), np.zeros_like(vectors)
    for level in range(3):
        expected = expected + quantizer.code_vectors(level)[codes[:, level]]
        assert np.allclose(quantizer.decode(codes[:, : level + 1]), expected, atol=1e-5)
    assert quantizer.side(vectors, codes).shape == (50, 0)
    assert np.array_equal(quantizer.decode(codes, side=quantizer.side(vectors, codes)), quantizer.decode(codes))


@BALANCES
def test_only_allowed_codes_are_given(balance: str):
    vectors, random = blobs(), np.random.default_rng(1)
    quantizer = fitted(vectors, balance=balance)
    allowed = [random.random(size) < 0.5 for size in (8, 6, 4)]
    for mask in allowed:
        mask[0] = True
    codes = quantizer.encode(vectors, batch_size=70, allowed=allowed)
    assert np.array_equal(codes, reference_codes(vectors, quantizer, allowed))
    assert not np.array_equal(codes, quantizer.encode(vectors))
    everything = [np.ones(size, bool) for size in (8, 6, 4)]
    assert np.array_equal(quantizer.encode(vectors, allowed=everything), quantizer.encode(vectors))


@BALANCES
def test_distances_are_those_to_the_vectors_that_the_codes_would_decode_to(balance: str):
    vectors = blobs(50)
    quantizer = fitted(vectors, balance=balance)
    codes = quantizer.encode(vectors)
    for level in range(3):
        found = quantizer.distances(vectors, codes, level)
        prefix = sum((quantizer.code_vectors(i)[codes[:, i]] for i in range(level)), np.zeros_like(vectors))
        for code in range(quantizer.config.codebook_sizes[level]):
            expected = ((vectors - prefix - quantizer.code_vectors(level)[code]) ** 2).sum(1)
            assert np.allclose(found[:, code], expected + prices(quantizer)[level][code], atol=1e-3)


def uneven(rows: int, dim: int = 16) -> np.ndarray:
    """40 clusters of very different size and width."""
    random = np.random.default_rng(0)
    weights = 1 / np.arange(1, 41) ** 1.5
    centres, widths = random.normal(size=(40, dim)) * 3, random.uniform(0.3, 1.5, size=40)
    cluster = random.choice(40, rows, p=weights / weights.sum())
    return (centres[cluster] + random.normal(size=(rows, dim)) * widths[cluster, None]).astype(np.float32)


def test_balanced_levels_hold_their_share_and_the_others_do_not():
    vectors = uneven(2048)
    fullest = {}
    for balance in ("none", "last", "all"):
        codes = fitted(vectors, (32, 32), balance=balance).encode(vectors)
        fullest[balance] = [np.bincount(codes[:, level]).max() / (2048 / 32) for level in range(2)]
    assert min(fullest["none"]) > 2
    assert fullest["last"][0] == fullest["none"][0] and fullest["last"][1] < 1.3
    assert max(fullest["all"]) < 1.3


def test_a_balanced_code_does_not_depend_on_who_else_is_encoded():
    vectors = uneven(1024)
    quantizer = fitted(vectors[:512], (16, 8), balance="all")
    together = quantizer.encode(vectors)
    alone = np.concatenate([quantizer.encode(vectors[row : row + 1]) for row in range(500, 530)])
    assert np.array_equal(alone, together[500:530])


def test_every_level_lowers_the_error():
    vectors = blobs()
    quantizer = fitted(vectors)
    codes = quantizer.encode(vectors)
    decoded, errors = np.zeros_like(vectors), [np.square(vectors - vectors.mean(0)).sum()]
    for level in range(3):
        decoded += quantizer.code_vectors(level)[codes[:, level]]
        errors.append(np.square(vectors - decoded).sum())
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


@BALANCES
def test_reload_and_a_second_run_give_identical_codes(balance: str, tmp_path: Path):
    vectors = blobs()
    quantizer = fitted(vectors, balance=balance)
    assert np.array_equal(fitted(vectors, balance=balance).encode(vectors), quantizer.encode(vectors))
    quantizer.save_pretrained(tmp_path)
    loaded = RQKMeans.from_pretrained(tmp_path)
    assert loaded.config.codebook_sizes == [8, 6, 4]
    assert np.array_equal(loaded.encode(vectors), quantizer.encode(vectors))
    assert loaded.dtype == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "hf_gr_rq_kmeans"


@pytest.mark.parametrize("missing", ["codebooks.1", "prices_2"])
def test_an_incomplete_checkpoint_cannot_be_used(missing: str, tmp_path: Path):
    vectors = blobs()
    fitted(vectors).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[missing]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(HfGrError, match=f"{missing} .*not set"):
        RQKMeans.from_pretrained(tmp_path).encode(vectors)


def test_a_quantizer_that_was_not_fitted_says_so():
    quantizer = RQKMeans(RQKMeansConfig(dim=3, codebook_sizes=[4]))
    for call in (
        lambda: quantizer.encode(np.zeros((2, 3), np.float32)),
        lambda: quantizer.decode(np.zeros((2, 1), np.int32)),
        lambda: quantizer.code_vectors(0),
    ):
        with pytest.raises(HfGrError, match="fit"):
            call()


def test_the_same_seed_gives_the_same_codebooks_on_one_and_two_threads():
    vectors = blobs(3000, 24)
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    try:
        weights = []
        for threads in (1, 1, 2):
            faiss.omp_set_num_threads(threads)
            torch.set_num_threads(threads)
            quantizer = fitted(vectors, (32, 32))
            weights.append(b"".join(quantizer.code_vectors(level).tobytes() for level in range(2)))
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])
    assert weights[0] == weights[1] == weights[2]
    assert fitted(vectors, (32, 32), seed=1).code_vectors(0).tobytes() != weights[0][: 32 * 24 * 4]


@pytest.mark.filterwarnings("ignore:.*repeat another one")  # they are meant
@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 24),
    extra=st.integers(0, 30),
    copies=st.integers(1, 60),
    seed=st.integers(0, 999),
)
def test_every_code_of_the_first_level_is_used(size: int, extra: int, copies: int, seed: int):
    """At least K vectors differ, and one of them has many copies: K-means alone starts several centres on it."""
    random = np.random.default_rng(seed)
    distinct = random.normal(size=(size + extra, 3)).astype(np.float32)
    vectors = np.concatenate([np.repeat(distinct[:1], copies, axis=0), distinct])
    codes = fitted(vectors, (size, 2), seed=seed, n_iter=3).encode(vectors)
    assert len(np.unique(codes[:, 0])) == size


@BALANCES
def test_as_many_codes_as_different_vectors_give_each_its_own(balance: str):
    vectors = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    with pytest.warns(UserWarning, match="27 item vectors repeat"):
        quantizer = fitted(vectors, (3, 3), balance=balance)
    codes = quantizer.encode(vectors)
    assert len(np.unique(codes, axis=0)) == 3
    assert np.allclose(quantizer.decode(codes), vectors, atol=1e-5)


def test_a_sample_is_enough_to_learn_from():
    vectors = blobs(2000)
    quantizer = fitted(vectors, (8, 4), max_points_per_code=20)
    codes = quantizer.encode(vectors)
    error = np.square(vectors - quantizer.decode(codes)).mean()
    assert error < 0.5 * np.square(vectors - vectors.mean(0)).mean()
    assert quantizer.code_vectors(0).tobytes() != fitted(vectors, (8, 4)).code_vectors(0).tobytes()


def test_memory_mapped_vectors_are_read_and_left_alone(tmp_path: Path):
    vectors = blobs(300)
    mapped = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=vectors.shape)
    mapped[:] = vectors
    mapped.flush()
    read_only = np.memmap(tmp_path / "vectors", np.float32, "r", shape=vectors.shape)
    assert np.array_equal(fitted(read_only).encode(read_only), fitted(vectors).encode(vectors))
    assert np.array_equal(read_only, vectors)


def test_a_file_is_never_in_memory_as_a_whole(tmp_path: Path):
    """tracemalloc sees NumPy's own memory, not the pages of the file; torch takes NumPy's batches as they are."""
    shape = (150_000, 64)
    written = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=shape)
    for start in range(0, len(written), 10_000):
        written[start : start + 10_000] = blobs(10_000, 64, seed=start)
    vectors = np.memmap(tmp_path / "vectors", np.float32, "r", shape=shape)
    tracemalloc.start()
    codes = fitted(vectors, (8, 4)).encode(vectors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert codes.shape == (150_000, 2)
    assert peak < vectors.nbytes / 3


def test_bad_vectors_are_refused():
    vectors = blobs(20)
    ids = [f"item-{row}" for row in range(20)]

    def fit(vectors: np.ndarray, size: int = 8) -> None:
        RQKMeans(RQKMeansConfig(dim=12, codebook_sizes=[4, size])).fit(vectors, item_ids=ids, progress=False)

    with pytest.raises(HfGrError, match=r"20 item vectors are fewer than the 24 codes of level 1.*20 or less"):
        fit(vectors, 24)
    with pytest.raises(HfGrError, match=r"only 5 different values.*'item-4', 'item-5', 'item-6' and 13 more are all"):
        fit(np.concatenate([vectors[:4], np.ones((16, 12), np.float32)]))
    broken = vectors.copy()
    broken[7, 2] = np.nan
    with pytest.raises(HfGrError, match="item 'item-7' hold"):
        fit(broken)
    quantizer = fitted(vectors)
    with pytest.raises(HfGrError, match="item row 7 hold"):
        quantizer.encode(broken)
    with pytest.raises(HfGrError, match="width 12"):
        quantizer.encode(vectors[:, :5])
    with pytest.raises(HfGrError, match=r"item row 1 has codes \[0, 6, 0\]"):
        quantizer.decode(np.array([[0, 0, 0], [0, 6, 0]], np.int32))
    with pytest.raises(HfGrError, match=r"shape \[4, 4\], but there are 3 codebooks"):
        quantizer.decode(np.zeros((4, 4), np.int32))
