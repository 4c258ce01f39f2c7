"""K-means by faiss, with every code put to use. Codebooks are learned by it or start from it."""

import faiss
import numpy as np
import torch

from .vectors import CHUNK


def kmeans(points: np.ndarray, size: int, n_iter: int, seed: int) -> np.ndarray:
    """Centres float32 [size, d] of points float32 [n, d]; every centre is the nearest of at least one point.

    Unless fewer than `size` points differ: then every point lies on its centre, and the others have nothing to do.
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
    learned.train(points)
    return _use_every_code(points, np.asarray(learned.centroids))


def compared(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Squared distances [n, K] less ‖point‖², which no argmin over the centres needs."""
    return torch.addmm(centres.square().sum(1), points, centres.T, alpha=-2)


def squared_distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Squared distances [n, K]."""
    return (compared(points, centres) + points.square().sum(1, keepdim=True)).clamp(min=0)


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Nearest centre of every point, int64 [n], by the arithmetic of `encode`."""
    batches = torch.from_numpy(points).split(CHUNK)
    return torch.cat([compared(batch, torch.from_numpy(centres)).argmin(1) for batch in batches]).numpy()


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
