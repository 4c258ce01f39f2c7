import itertools
import json
from pathlib import Path

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


def fitted(vectors: np.ndarray, sizes: tuple[int, ...] = (8, 6, 4), seed: int = 0, **options: int) -> RQKMeans:
    config = RQKMeansConfig(dim=vectors.shape[1], codebook_sizes=sizes, **options)
    return RQKMeans(config).fit(vectors, seed=seed, progress=False)


def reference_codes(vectors: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    residual, codes = vectors.astype(np.float64), []
    for codebook in codebooks:
        codes.append(((residual[:, None] - codebook[None]) ** 2).sum(-1).argmin(1))
        residual = residual - codebook[codes[-1]]
    return np.stack(codes, 1)


def test_codes_and_vectors_equal_a_numpy_line():
    vectors = blobs()
    quantizer = fitted(vectors)
    codebooks = [quantizer.code_vectors(level) for level in range(3)]
    codes = quantizer.encode(vectors, batch_size=37)
    assert codes.dtype == np.int32
    assert np.array_equal(codes, reference_codes(vectors, codebooks))
    decoded = quantizer.decode(codes, batch_size=41)
    assert decoded.dtype == np.float32
    assert np.allclose(decoded, sum(codebooks[level][codes[:, level]] for level in range(3)), atol=1e-5)


def test_distances_are_those_to_the_vectors_that_the_codes_would_decode_to():
    vectors = blobs(50)
    quantizer = fitted(vectors)
    codes = quantizer.encode(vectors)
    for level in range(3):
        found = quantizer.distances(vectors, codes, level)
        prefix = sum((quantizer.code_vectors(i)[codes[:, i]] for i in range(level)), np.zeros_like(vectors))
        for code in range(quantizer.config.codebook_sizes[level]):
            expected = ((vectors - prefix - quantizer.code_vectors(level)[code]) ** 2).sum(1)
            assert np.allclose(found[:, code], expected, atol=1e-3)


def test_every_level_lowers_the_error():
    vectors = blobs()
    quantizer = fitted(vectors)
    codes = quantizer.encode(vectors)
    decoded, errors = np.zeros_like(vectors), [np.square(vectors - vectors.mean(0)).sum()]
    for level in range(3):
        decoded += quantizer.code_vectors(level)[codes[:, level]]
        errors.append(np.square(vectors - decoded).sum())
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def test_reload_gives_identical_codes(tmp_path: Path):
    vectors = blobs()
    quantizer = fitted(vectors)
    quantizer.save_pretrained(tmp_path)
    loaded = RQKMeans.from_pretrained(tmp_path)
    assert loaded.config.codebook_sizes == [8, 6, 4]
    assert np.array_equal(loaded.encode(vectors), quantizer.encode(vectors))
    assert loaded.dtype == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "hf_gr_rq_kmeans"


def test_a_checkpoint_without_a_codebook_cannot_be_used(tmp_path: Path):
    vectors = blobs()
    fitted(vectors).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["codebooks.1"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(HfGrError, match=r"codebooks\.1 .*not set"):
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


def test_few_distinct_vectors_end_and_get_their_own_codes():
    vectors = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    quantizer = fitted(vectors, (8, 8))
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


def test_bad_vectors_are_refused():
    vectors = blobs(20)
    with pytest.raises(HfGrError, match=r"20 item vectors are fewer than the 24 codes of level 1.*20 or less"):
        fitted(vectors, (8, 24))
    broken = vectors.copy()
    broken[7, 2] = np.nan
    quantizer = fitted(vectors)
    for call in (lambda: fitted(broken), lambda: quantizer.encode(broken)):
        with pytest.raises(HfGrError, match="item row 7"):
            call()
    with pytest.raises(HfGrError, match="width 12"):
        quantizer.encode(vectors[:, :5])
    with pytest.raises(HfGrError, match=r"item row 1 has codes \[0, 6, 0\]"):
        quantizer.decode(np.array([[0, 0, 0], [0, 6, 0]], np.int32))
    with pytest.raises(HfGrError, match="3 codebooks"):
        quantizer.decode(np.zeros((4, 2), np.int32))
