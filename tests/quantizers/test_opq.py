import warnings
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hf_gr.errors import HfGrError
from hf_gr.quantizers import OPQ, OPQConfig
from hf_gr.quantizers.kmeans import kmeans, nearest


def correlated(rows: int = 400, dim: int = 10, seed: int = 0) -> np.ndarray:
    """Few directions, none along an axis, matter."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(dim, dim)) * np.geomspace(5, 0.05, dim)[:, None]
    return (random.normal(size=(rows, dim)) @ mixed + random.normal(size=dim) * 3).astype(np.float32)


def fitted(vectors: np.ndarray, sizes: tuple[int, ...] = (8, 6, 4), seed: int = 0, **options: int) -> OPQ:
    config = OPQConfig(dim=vectors.shape[1], codebook_sizes=sizes, **options)
    return OPQ(config).fit(vectors, seed=seed, progress=False)


def weights(quantizer: OPQ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Mean, rotation and codebooks, float64."""
    found = {name: weight.numpy().astype(np.float64) for name, weight in quantizer.state_dict().items()}
    return found["mean"], found["rotation"], [found[f"codebooks.{level}"] for level in range(quantizer.num_levels)]


def reference_distances(vectors: np.ndarray, quantizer: OPQ) -> list[np.ndarray]:
    """[n, K_l] of every level, of x padded with zeros and turned by a square rotation."""
    mean, rotation, codebooks = weights(quantizer)
    turned = (vectors - mean) @ rotation.T
    parts = np.split(turned, len(codebooks), axis=1)
    return [np.square(part[:, None] - book[None]).sum(-1) for part, book in zip(parts, codebooks, strict=True)]


@pytest.mark.parametrize(("dim", "sizes"), [(10, (8, 6, 4)), (12, (16, 16)), (2, (4, 3, 5))])
def test_codes_distances_and_vectors_equal_numpy(dim: int, sizes: tuple[int, ...]):
    """Also where d is no multiple of L, and less than it."""
    vectors = correlated(dim=dim)
    quantizer = fitted(vectors, sizes)
    mean, rotation, codebooks = weights(quantizer)
    width = -(-dim // len(sizes))
    assert rotation.shape == (width * len(sizes), dim)
    assert np.allclose(rotation.T @ rotation, np.eye(dim), atol=1e-5)
    assert np.allclose(mean, vectors.mean(0), atol=1e-4)
    expected = reference_distances(vectors, quantizer)
    codes = quantizer.encode(vectors, batch_size=37)
    assert codes.dtype == np.int32
    assert np.array_equal(codes, np.stack([distances.argmin(1) for distances in expected], 1))
    decoded = np.zeros((len(vectors), len(sizes) * width))
    for level, size in enumerate(sizes):
        assert np.allclose(quantizer.distances(vectors, codes, level), expected[level], rtol=1e-3, atol=1e-3)
        decoded[:, level * width : (level + 1) * width] = codebooks[level][codes[:, level]]
        prefix = quantizer.decode(codes[:, : level + 1], batch_size=41)
        assert prefix.dtype == np.float32
        assert np.allclose(prefix, mean + decoded @ rotation, atol=1e-3)  # later parts are at their mean
        assert quantizer.code_vectors(level).shape == (size, dim) and quantizer.code_vectors(level).dtype == np.float32
    added = sum(quantizer.code_vectors(level)[codes[:, level]] for level in range(len(sizes)))
    assert np.allclose(quantizer.decode(codes), mean + added, atol=1e-3)
    assert quantizer.side(vectors, codes).shape == (len(vectors), 0)


def test_only_allowed_codes_are_given():
    vectors = correlated()
    quantizer = fitted(vectors)
    allowed = [np.arange(size) % 2 == 1 for size in (8, 6, 4)]
    expected = [
        np.where(mask, d, np.inf).argmin(1)
        for mask, d in zip(allowed, reference_distances(vectors, quantizer), strict=True)
    ]
    assert np.array_equal(quantizer.encode(vectors, allowed=allowed), np.stack(expected, 1))


def clustered(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.uniform(-1, 1, size=(60, 12)) * np.geomspace(3, 1, 12)
    return (centres[random.integers(60, size=2000)] + 0.1 * random.normal(size=(2000, 12))).astype(np.float32)


def error(vectors: np.ndarray, **options: int) -> float:
    quantizer = fitted(vectors, (16, 16, 16), **options)
    return float(np.square(vectors - quantizer.decode(quantizer.encode(vectors))).sum())


def test_the_rotation_starts_below_the_error_of_plain_product_codes():
    vectors, cut = correlated(2000, 12), 0.0
    for part in map(np.ascontiguousarray, np.split(vectors, 3, axis=1)):
        centres = kmeans(part, 16, 25, seed=0)
        cut += float(np.square(part - centres[nearest(part, centres)]).sum())
    assert error(vectors, rounds=0) < 0.5 * cut


def test_rounds_lower_the_error_to_that_of_faiss():
    vectors = clustered()
    centred = vectors - vectors.mean(0)
    rotation, codes = faiss.OPQMatrix(12, 3), faiss.ProductQuantizer(12, 3, 4)
    rotation.pq = codes
    rotation.train(centred)
    turned = rotation.apply(centred)
    codes.train(turned)
    theirs = float(np.square(turned - codes.decode(codes.compute_codes(turned))).sum())
    assert error(vectors) < 1.05 * theirs
    assert error(vectors) < 0.8 * error(vectors, rounds=0)


def test_every_code_is_used():
    vectors = correlated(300)
    codes = fitted(vectors, (16, 16)).encode(vectors)
    assert [len(np.unique(codes[:, level])) for level in range(2)] == [16, 16]


def test_reload_and_the_same_seed_give_identical_codes_on_one_and_two_threads(tmp_path: Path):
    vectors = correlated(1000, 24)
    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    try:
        codes = []
        for threads in (1, 1, 2):
            faiss.omp_set_num_threads(threads)
            torch.set_num_threads(threads)
            quantizer = fitted(vectors, (16, 16), rounds=3)
            codes.append(quantizer.encode(vectors))
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])
    assert np.array_equal(codes[0], codes[1]) and np.array_equal(codes[0], codes[2])
    quantizer.save_pretrained(tmp_path)
    assert np.array_equal(OPQ.from_pretrained(tmp_path).encode(vectors), codes[0])
    assert not np.array_equal(fitted(vectors, (16, 16), rounds=3, seed=1).encode(vectors), codes[0])


def test_directions_without_variance_do_no_harm():
    vectors = np.zeros((40, 6), np.float32)
    vectors[:, 2] = np.arange(40)
    quantizer = fitted(vectors, (8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = quantizer.decode(quantizer.encode(vectors))
    assert np.abs(decoded - vectors)[:, 2].max() < 4 and np.allclose(np.delete(decoded, 2, 1), 0, atol=1e-3)


@pytest.mark.parametrize("missing", ["mean", "rotation", "codebooks.1"])
def test_an_incomplete_checkpoint_cannot_be_used(missing: str, tmp_path: Path):
    vectors = correlated(50)
    fitted(vectors).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HfGrError, match=f"{missing} .*not set"):
        OPQ.from_pretrained(tmp_path).encode(vectors)


def test_memory_mapped_vectors_are_read_and_left_alone(tmp_path: Path):
    vectors = correlated(300)
    vectors.tofile(tmp_path / "vectors")
    mapped = np.memmap(tmp_path / "vectors", np.float32, "r", shape=vectors.shape)
    codes = [fitted(given, max_points_per_code=10).encode(given) for given in (mapped, vectors)]
    assert np.array_equal(*codes)
    assert np.array_equal(mapped, vectors)
