"""RQ-KMeans: K-means on the vectors, then on what is left of them, level by level [known, METHODS of many systems].

The first code says roughly what an item is, every further one refines it. K-means is faiss's; every code is put to
use, see [`_use_every_code`].
"""

from typing import Self

import faiss
import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import initialization

from ..errors import HfGrError
from .base import BATCH_SIZE, Quantizer, QuantizerConfig


class RQKMeansConfig(QuantizerConfig):
    """Config of [`RQKMeans`].

    Args:
        n_iter: Iterations of K-means per level.
        max_points_per_code: K-means learns from at most this many vectors per code, drawn by the seed when there are
            more; faiss's default.
    """

    model_type = "hf_gr_rq_kmeans"

    n_iter: int = 25
    max_points_per_code: int = 256


class RQKMeans(Quantizer):
    """Residual K-means: r₀ = x; s_l = argmin_k ‖r_l − c_{l,k}‖²; r_{l+1} = r_l − c_{l,s_l}; x̂ = Σ_l c_{l,s_l}."""

    config_class = RQKMeansConfig
    config: RQKMeansConfig

    def __init__(self, config: RQKMeansConfig) -> None:
        super().__init__(config)
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.empty(size, config.dim), requires_grad=False) for size in config.codebook_sizes
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # NaN marks what neither `fit` nor a checkpoint has set; `check_fitted` looks for it
        if module is self.codebooks:
            for codebook in self.codebooks:
                initialization.constant_(codebook, float("nan"))

    def fit(self, vectors: np.ndarray, *, seed: int = 0, progress: bool = True) -> Self:
        """Learns the codebooks.

        Args:
            vectors: float32 [N, d], in memory or memory-mapped; a sample of `max_points_per_code · K` is read.
            seed: Seed of the sample and of K-means.
            progress: Whether to show a progress bar over the levels.

        Raises:
            HfGrError: On NaN or infinite values, another width, or fewer vectors than a codebook has codes.
        """
        self.check_vectors(vectors)
        largest = max(self.config.codebook_sizes)
        if len(vectors) < largest:
            raise HfGrError(
                f"{len(vectors)} item vectors are fewer than the {largest} codes of level "
                f"{list(self.config.codebook_sizes).index(largest)}; set codebook_size to {len(vectors)} or less."
            )
        residual = _sample(vectors, self.config.max_points_per_code * largest, seed)
        for level, codebook in enumerate(tqdm(self.codebooks, desc="rq_kmeans", unit="level", disable=not progress)):
            size = self.config.codebook_sizes[level]
            centres = _use_every_code(residual, _kmeans(residual, size, self.config.n_iter, seed + level))
            codebook.data.copy_(torch.from_numpy(centres))
            residual -= centres[_nearest_rows(residual, centres)]
        return self

    def code_vectors(self, level: int) -> np.ndarray:
        self.check_fitted()
        return self.codebooks[level].detach().cpu().numpy().copy()

    @torch.inference_mode()
    def distances(self, vectors: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        self.check_vectors(vectors)
        self.check_fitted()
        before = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        residual = self._tensor(vectors)
        for earlier in range(level):
            residual -= self.codebooks[earlier][before[:, earlier]]
        squares = residual.square().sum(1, keepdim=True)
        return (_compared(residual, self.codebooks[level]) + squares).clamp(min=0).cpu().numpy()

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        residual, codes = batch, []
        for codebook in self.codebooks:
            code = _compared(residual, codebook).argmin(1)
            residual = residual - codebook[code]
            codes.append(code)
        return torch.stack(codes, 1)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.stack([codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks)]).sum(0)


def _compared(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Squared distances [n, K] less ‖point‖², which no argmin over the centres needs."""
    return torch.addmm(centres.square().sum(1), points, centres.T, alpha=-2)


def _nearest_rows(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Nearest centre of every point, int64 [n], by the arithmetic of `encode`."""
    batches = torch.from_numpy(points).split(BATCH_SIZE)
    return torch.cat([_compared(batch, torch.from_numpy(centres)).argmin(1) for batch in batches]).numpy()


def _sample(vectors: np.ndarray, at_most: int, seed: int) -> np.ndarray:
    """A float32 copy of the vectors, or of `at_most` rows of them in their order."""
    if len(vectors) <= at_most:
        return np.array(vectors, dtype=np.float32)
    rows = np.random.default_rng(seed).choice(len(vectors), at_most, replace=False)
    return np.array(vectors[np.sort(rows)], dtype=np.float32)


def _kmeans(points: np.ndarray, size: int, n_iter: int, seed: int) -> np.ndarray:
    """Centres float32 [size, d] by faiss."""
    kmeans = faiss.Kmeans(
        points.shape[1],
        size,
        niter=n_iter,
        seed=seed,
        spherical=False,
        min_points_per_centroid=1,  # no warning about few points
        max_points_per_centroid=len(points),  # the sample is drawn already, once for all levels
    )
    kmeans.train(points)
    return np.asarray(kmeans.centroids)


def _use_every_code(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Puts centres that no point is nearest to on the points that are furthest from theirs, one after the other.

    An unused centre serves nobody, so moving it makes no distance longer and at least one shorter; the point it is
    moved to keeps it in use. So at most K moves leave every code in use, unless fewer than K points differ (then
    every point lies on its centre, and codes that remain unused would have nothing to tell apart). The rule is ours.
    """
    centres = centres.copy()
    codes = _nearest_rows(points, centres)
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
