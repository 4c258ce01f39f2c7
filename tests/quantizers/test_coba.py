import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from hf_gr.embedding.propagation import propagate
from hf_gr.errors import HfGrError
from hf_gr.quantizers.coba import CoBa, CoBaConfig, repulsion


SMALL = {"hidden_sizes": [16], "latent_dim": 4, "codebook_sizes": [8, 6], "batch_size": 64, "epochs": 3}


def skewed(rows: int = 600, dim: int = 10, seed: int = 0) -> np.ndarray:
    """Most rows in one blob, the others in eleven."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(12, dim)) * 3
    blob = random.choice(12, size=rows, p=[0.67] + [0.03] * 11)
    return (centres[blob] + random.normal(size=(rows, dim))).astype(np.float32)


def fitted(data: np.ndarray, seed: int = 0, **options) -> CoBa:
    quantizer = CoBa(CoBaConfig(dim=data.shape[1], **(SMALL | options)))
    return quantizer.fit(data, seed=seed, progress=False)


def perplexity(codes: np.ndarray) -> float:
    shares = np.unique(codes, return_counts=True)[1] / len(codes)
    return math.exp(-(shares * np.log(shares)).sum())


def test_the_load_equals_the_formula():
    quantizer = CoBa(CoBaConfig(dim=3, gamma=0.3, rho=0.2))
    counts = np.array([4.0, 4.0, 0.0, 12.0, 5.0, 3.0, 0.0], np.float32)  # mean 4
    expected = [1.0, 1.0, 0.8, 1.2, 1.075, 0.925, 0.8]
    assert quantizer._load(torch.from_numpy(counts)).tolist() == pytest.approx(expected)
    assert quantizer._load(torch.full((5,), 3.3)).tolist() == pytest.approx([1.0] * 5)
    unclipped = CoBa(CoBaConfig(dim=3, gamma=0.1, rho=0.9))
    for load, count in zip(unclipped._load(torch.from_numpy(counts)).tolist(), counts, strict=True):
        assert load == pytest.approx(1 + 0.1 * (count / 4 - 1))
    assert CoBa(CoBaConfig(dim=3, gamma=0.0))._load(torch.from_numpy(counts)).tolist() == [1.0] * 7


def test_codes_are_the_least_of_scaled_distances():
    data = skewed()
    quantizer = fitted(data)
    residual = quantizer.latents(torch.from_numpy(data)).detach().numpy().astype(np.float64)
    codes = quantizer.encode(data)
    loads = [quantizer._load(quantizer._counts(level)).numpy() for level in range(2)]
    for level in range(2):
        codebook = quantizer.code_vectors(level)
        expected = ((residual[:, None] - codebook[None]) ** 2).sum(-1) * loads[level]
        assert quantizer.distances(data, codes, level) == pytest.approx(expected, abs=1e-4)
        assert np.array_equal(codes[:, level], expected.argmin(1))
        residual = residual - codebook[codes[:, level]]
    assert loads[0].min() < 0.95 and loads[0].max() > 1.05
    alone = np.concatenate([quantizer.encode(row[None]) for row in data[:60]])
    assert np.array_equal(alone, codes[:60])


def test_the_repulsion_and_its_gradient_equal_brute_force():
    codes = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    delta, value, gradient = 2.5, 0.0, np.zeros((9, 4))
    points = codes.detach().numpy()
    pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
    for i, j in pairs:
        distance = np.linalg.norm(points[i] - points[j])
        short = max(0.0, delta - distance)
        value += short**2 / len(pairs)
        step = -2 * short * (points[i] - points[j]) / distance / len(pairs)
        gradient[i] += step
        gradient[j] -= step
    found = repulsion(codes, delta)
    found.backward()
    assert found.item() == pytest.approx(value)
    assert codes.grad.numpy() == pytest.approx(gradient)
    near = sum(np.linalg.norm(points[i] - points[j]) < delta for i, j in pairs)
    assert 0 < near < len(pairs)  # both sides of the hinge were seen
    assert np.abs(gradient).max() > 0.01


def test_codes_that_coincide_or_stand_alone_do_not_break_the_repulsion():
    codes = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.5, 2.0]], requires_grad=True)
    found = repulsion(codes, 1.0)
    found.backward()
    assert found.item() == pytest.approx((1 + 0.25 + 0.25) / 3)
    assert codes.grad.isfinite().all()
    assert codes.grad[2, 0] > 0.1 or codes.grad[2, 0] < -0.1
    assert repulsion(torch.ones(1, 2), 1.0).item() == 0  # a codebook of one code has no pairs
    data = skewed(100)
    assert math.isfinite(fitted(data, codebook_sizes=[1, 6]).fit_log[-1]["uniformity"])


def test_the_part_of_the_loss_is_the_sum_over_levels_in_units_of_their_residuals():
    data = skewed()
    quantizer = fitted(data, uniformity=0.7, delta=0.4)
    parts = quantizer._losses(torch.from_numpy(data[:50]))
    assert list(parts) == ["reconstruction", "commitment", "codebook", "uniformity"]
    expected = 0.0
    for level, (residual, _) in enumerate(quantizer._seen):
        delta = 0.4 * np.sqrt(np.square(residual.numpy()).sum(1).mean())
        points = quantizer.code_vectors(level)
        gaps = [np.linalg.norm(one - other) for i, one in enumerate(points) for other in points[:i]]
        expected += 0.7 * np.mean([max(0.0, delta - gap) ** 2 for gap in gaps])
    assert expected > 0
    assert parts["uniformity"].item() == pytest.approx(expected, rel=1e-4)
    assert "uniformity" not in fitted(data, uniformity=0.0, epochs=1).fit_log[0]


def test_vectors_are_propagated_where_there_is_a_graph():
    data = skewed(30)
    random = np.random.default_rng(0)
    links = np.triu(random.random((30, 30)) < 0.1, 1).astype(np.float32)
    graph = sp.csr_array(links + links.T)
    quantizer = CoBa(CoBaConfig(dim=10, alpha=0.4, hops=2))
    before = data.copy()
    assert np.array_equal(quantizer.align(data, graph), propagate(data, graph, 0.4, 2, keep_lengths=True))
    assert not np.array_equal(quantizer.align(data, graph), data)
    assert np.array_equal(data, before)
    assert np.array_equal(quantizer.align(data, None), data)
    assert np.array_equal(CoBa(CoBaConfig(dim=10, hops=0)).align(data, graph), data)
    assert quantizer.uses_graph


def test_scaled_distances_share_the_load():
    found = []
    for seed in range(3):
        data = skewed(seed=seed)
        for gamma in (0.3, 0.0):
            quantizer = fitted(data, seed, codebook_sizes=[16], epochs=10, uniformity=0.0, gamma=gamma)
            found.append(perplexity(quantizer.encode(data)[:, 0]))
    assert np.mean(found[::2]) > np.mean(found[1::2]) + 0.3, found


def test_repulsion_needs_codes_that_learn():
    with pytest.raises(HfGrError, match="gradient"):
        CoBa(CoBaConfig(dim=3, codebook_update="ema"))
    CoBa(CoBaConfig(dim=3, codebook_update="ema", uniformity=0.0))
