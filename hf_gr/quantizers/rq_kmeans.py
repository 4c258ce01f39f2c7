"""RQ-KMeans: K-means on the vectors, then on what is left of them, level by level [known, METHODS of many systems].

The first code says roughly what an item is, every further one refines it. Every code is put to use, see
[`~hf_gr.quantizers.kmeans.kmeans`].
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import initialization

from .base import Quantizer, QuantizerConfig
from .kmeans import compared, kmeans, nearest, squared_distances
from .vectors import sample_rows


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

    def _fit(self, vectors: np.ndarray, seed: int, progress: bool, checkpoint: Path | None) -> None:
        residual = sample_rows(vectors, self.config.max_points_per_code * max(self.config.codebook_sizes), seed)
        for level, codebook in enumerate(tqdm(self.codebooks, desc="rq_kmeans", unit="level", disable=not progress)):
            size = self.config.codebook_sizes[level]
            centres = kmeans(residual, size, self.config.n_iter, seed + level)
            codebook.data.copy_(torch.from_numpy(centres))
            residual -= centres[nearest(residual, centres)]

    def code_vectors(self, level: int) -> np.ndarray:
        self.check_fitted()
        return self.codebooks[level].detach().cpu().numpy().copy()

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        residual = batch
        for earlier in range(level):
            residual = residual - self.codebooks[earlier][codes[:, earlier]]
        return squared_distances(residual, self.codebooks[level])

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        residual, codes = batch, []
        for codebook in self.codebooks:
            code = compared(residual, codebook).argmin(1)
            residual = residual - codebook[code]
            codes.append(code)
        return torch.stack(codes, 1)

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        return torch.stack([self.codebooks[level][codes[:, level]] for level in range(codes.shape[1])]).sum(0)
