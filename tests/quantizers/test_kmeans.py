import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hf_gr.quantizers.kmeans import balanced_kmeans, compared, fair_prices, kmeans, means, nearest, squared_distances


def normal(rows: int, dim: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def uneven(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """40 clusters of very different size and width."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 41) ** 1.5
    centres, widths = random.normal(size=(40, dim)) * 3, random.uniform(0.3, 1.5, size=40)
    cluster = random.choice(40, rows, p=weights / weights.sum())
    return (centres[cluster] + random.normal(size=(rows, dim)) * widths[cluster, None]).astype(np.float32)


def loads(codes: np.ndarray, size: int) -> np.ndarray:
    """What every code holds, in even shares."""
    return np.bincount(codes, minlength=size) / (len(codes) / size)


def table(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.square(points[:, None].astype(np.float64) - centres[None]).sum(-1)


def test_distances_means_and_the_nearest_equal_numpy():
    points, centres, prices = normal(60), normal(7, seed=1), np.abs(normal(7, 1, seed=2))[:, 0]
    expected = table(points, centres)
    tensors = torch.from_numpy(points), torch.from_numpy(centres)
    assert np.allclose(squared_distances(*tensors), expected, atol=1e-4)
    rest = expected + prices - np.square(points).sum(1, keepdims=True)
    assert np.allclose(compared(*tensors, torch.from_numpy(prices)), rest, atol=1e-4)
    assert np.array_equal(nearest(points, centres), expected.argmin(1))
    assert np.array_equal(nearest(points, centres, prices), (expected + prices).argmin(1))
    assert not np.array_equal(nearest(points, centres, prices), nearest(points, centres))
    codes = np.arange(60) % 6
    found = means(points, codes, centres)
    assert np.allclose(found[:6], [points[codes == code].mean(0) for code in range(6)], atol=1e-6)
    assert np.array_equal(found[6], centres[6])  # nobody's


def test_kmeans_goes_on_from_given_centres():
    points, start = normal(50), normal(5, seed=1)
    one_step = means(points, nearest(points, start), start)
    assert np.allclose(kmeans(points, 5, 1, seed=0, start=start), one_step, atol=1e-5)


def test_fair_prices_solve_the_transport():
    """Their sum of least costs is the dual's greatest, so it equals the cost of the best assignment of equal parts."""
    points, centres = normal(60), normal(6, seed=1)
    prices = fair_prices(points, centres, stages=60).astype(np.float64)
    costs = table(points, centres)
    rows, seats = linear_sum_assignment(np.repeat(costs, 10, axis=1))
    best = costs[rows, seats // 10].sum()
    assert prices.min() == 0
    assert (costs + prices).min(1).sum() - 10 * prices.sum() == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_balanced_codes_hold_their_share(scale: float):
    points = uneven(4096, 16) * np.float32(scale)
    plain = kmeans(points, 32, 10, seed=0)
    centres, prices = balanced_kmeans(points, plain, rounds=5)
    assert loads(nearest(points, plain), 32).max() > 2.5
    found = loads(nearest(points, centres, prices), 32)
    assert found.max() < 1.3 and found.min() > 0.6
    new = uneven(8192, 16)[4096:] * np.float32(scale)
    assert loads(nearest(new, centres, prices), 32).max() < 1.6


def test_moving_the_centres_lowers_the_error():
    points = uneven(2048, 8)
    plain = kmeans(points, 16, 10, seed=0)

    def error(rounds: int) -> float:
        centres, prices = balanced_kmeans(points, plain, rounds)
        return float(np.square(points - centres[nearest(points, centres, prices)]).sum(1).mean())

    assert error(5) < 0.9 * error(1)


def test_equal_points_and_equal_centres_end():
    points = np.repeat(normal(3), 10, axis=0)
    centres, prices = balanced_kmeans(points, kmeans(points, 5, 5, seed=0), rounds=3)
    assert np.isfinite(centres).all() and np.isfinite(prices).all()
    assert fair_prices(points, np.zeros((4, 4), np.float32)).tolist() == [0] * 4
