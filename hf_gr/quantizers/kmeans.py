"""K-means by faiss with every code put to use, and K-means whose codes all get their share."""

from collections.abc import Iterable

import faiss
import numpy as np
import torch

from .vectors import CHUNK


_SHARE_ROWS = 64  # points per code are enough to move the centres of a balanced codebook
_ANNEALED, _UPDATES = 5000.0, 10  # the first temperature over the last, Sinkhorn updates at each


def kmeans(points: np.ndarray, size: int, n_iter: int, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    """Centres float32 [size, d] of points float32 [n, d]; every centre is the nearest of at least one point.

    Unless fewer than `size` points differ: then every point lies on its centre, and the others have nothing to do.

    Args:
        points: float32 [n, d].
        size: Number of centres.
        n_iter: Iterations.
        seed: Of the first centres, which are points.
        start: The first centres, float32 [size, d], in their place.
    """
    learned = faiss.Kmeans(
        points.shape[1],
        size,
        niter=n_iter,
        seed=seed,
        spherical=False,
        min_points_per_centroid=1,  # no warning about few points
        max_points_per_centroid=len(points),  # the caller draws the sample
    )
    learned.train(points, init_centroids=start)
    return _use_every_code(points, np.asarray(learned.centroids))


def balanced_kmeans(points: np.ndarray, centres: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres float32 [K, d] and prices float32 [K]: by squared distance + price, every code gets about n/K points.

    From plain centres on, points are given out at fair prices and centres become the means of what they got, in turns
    [K-means under capacities is known; that it is held by prices kept with the codebook is ours]. A code thus depends
    on the one vector that is encoded; equal vectors get one code, however many they are.

    Args:
        points: float32 [n, d].
        centres: float32 [K, d] to start from.
        rounds: How often the prices are found; the centres move between, learning from 64 points per code.
    """
    part = np.ascontiguousarray(points[:: max(1, len(points) // (_SHARE_ROWS * len(centres)))])
    for _ in range(rounds - 1):
        prices = fair_prices(part, centres, stages=12)  # rough ones will do
        centres = means(part, nearest(part, centres, prices), centres)
    return centres, fair_prices(points, centres)


def fair_prices(points: np.ndarray, centres: np.ndarray, stages: int = 24) -> np.ndarray:
    """Prices float32 [K], the least 0, by which argmin_k ‖x − c_k‖² + price_k gives every code about n/K points.

    They are the codes' dual variables of entropic optimal transport of the points (weight 1) to the codes (n/K each),
    found by Sinkhorn's updates (Cuturi, 2013) at `stages` falling temperatures ε. What is found at one temperature
    goes into the exponents of the next (Schmitzer, 2019), which is as stable as the log domain and needs one
    exponential a temperature. Takes 8·n·K bytes.
    """
    costs = squared_distances(torch.from_numpy(points), torch.from_numpy(centres))
    prices = torch.zeros(len(centres))
    share = len(points) / len(centres)
    spread = float(costs.mean() - costs.min(1).values.mean()) / 4
    if spread <= 0:  # all centres are one
        return prices.numpy()
    for epsilon in np.geomspace(spread, spread / _ANNEALED, stages):
        plan = costs + prices
        plan.sub_(plan.min(1, keepdim=True).values).mul_(-1 / epsilon).exp_()
        scale = torch.ones_like(prices)
        for _ in range(_UPDATES):
            scale = (share / ((plan @ scale).reciprocal_() @ plan)).clamp_(1e-6, 1e6)
        prices = prices - epsilon * scale.log()
    return (prices - prices.min()).float().numpy()


def means(points: np.ndarray, codes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """float32 [K, d]: the mean of every code's points; a code without points keeps its centre."""
    rows = torch.from_numpy(codes)
    counts = torch.bincount(rows, minlength=len(centres))[:, None]
    sums = torch.zeros(centres.shape).index_add_(0, rows, torch.from_numpy(points))
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.from_numpy(centres)).numpy()


def compared(points: torch.Tensor, centres: torch.Tensor, prices: torch.Tensor | None = None) -> torch.Tensor:
    """Squared distances [n, K] plus prices [K], less ‖point‖², which no argmin over the centres needs."""
    offsets = centres.square().sum(1)
    return torch.addmm(offsets if prices is None else offsets + prices, points, centres.T, alpha=-2)


def residual_of(points: torch.Tensor, codebooks: Iterable[torch.Tensor], codes: torch.Tensor) -> torch.Tensor:
    """What the first codes, int64 [n, l], leave of points [n, w]."""
    for codebook, chosen in zip(codebooks, codes.T, strict=False):
        points = points - codebook[chosen]
    return points


def squared_distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Squared distances [n, K]."""
    return compared(points, centres).add_(points.square().sum(1, keepdim=True)).clamp_(min=0)


def nearest(points: np.ndarray, centres: np.ndarray, prices: np.ndarray | None = None) -> np.ndarray:
    """Nearest centre of every point (by squared distance + price), int64 [n], by the arithmetic of `encode`."""
    batches, to = torch.from_numpy(points).split(CHUNK), torch.from_numpy(centres)
    added = None if prices is None else torch.from_numpy(prices)
    return torch.cat([compared(batch, to, added).min(1).indices for batch in batches]).numpy()


def _use_every_code(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Puts centres that no point is nearest to on the points that are furthest from theirs, one after the other.

    An unused centre serves nobody, so moving it makes no distance longer and at least one shorter; the point it is
    moved to keeps it in use. So at most K moves leave every code in use. The rule is ours.
    """
    centres = centres.copy()
    codes = nearest(points, centres)
    distances = np.square(points - centres[codes]).sum(1)
    while True:
        unused = np.flatnonzero(np.bincount(codes, minlength=len(centres)) == 0)
        furthest = int(distances.argmax())
        if len(unused) == 0 or distances[furthest] == 0:
            return centres
        centres[unused[0]] = points[furthest]
        moved = np.square(points - points[furthest]).sum(1)
        closer = moved < distances
        codes[closer], distances[closer] = unused[0], moved[closer]
