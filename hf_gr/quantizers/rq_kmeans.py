"""RQ-KMeans: K-means on the vectors, then on what is left of them, level by level [known, METHODS of many systems].

The first code says roughly what an item is, every further one refines it. Every code is put to use, see
[`~hf_gr.quantizers.kmeans.kmeans`]; in balanced levels every code gets about as many items as any other, see
[`~hf_gr.quantizers.kmeans.balanced_kmeans`].
"""

import math
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import initialization

from .base import Quantizer, QuantizerConfig
from .kmeans import balanced_kmeans, compared, kmeans, nearest, residual_of, squared_distances
from .vectors import sample_rows


class RQKMeansConfig(QuantizerConfig):
    """Config of [`RQKMeans`].

    Args:
        n_iter: Iterations of K-means per level.
        max_points_per_code: K-means learns from at most this many vectors per code, drawn by the seed when there are
            more; faiss's default.
        balance: Levels whose codes all get about N/K items: `"none"`, the `"last"` one, or `"all"`. The error grows
            where items are unevenly spread: crowded places get more codes, empty ones fewer.
        balance_rounds: How often centres and prices of a balanced level take turns.
    """

    model_type = "hf_gr_rq_kmeans"

    n_iter: int = 25
    max_points_per_code: int = 256
    balance: Literal["none", "last", "all"] = "none"
    balance_rounds: int = 5

    limits: ClassVar = {
        "n_iter": (1, math.inf),
        "max_points_per_code": (1, math.inf),
        "balance_rounds": (1, math.inf),
    }


class RQKMeans(Quantizer):
    """r₀ = x; s_l = argmin_k ‖r_l − c_{l,k}‖² + p_{l,k}; r_{l+1} = r_l − c_{l,s_l}; x̂ = Σ_l c_{l,s_l}.

    The prices p_l (buffers `prices_0`, …) are 0 on a level that is not balanced.
    """

    config_class = RQKMeansConfig
    config: RQKMeansConfig

    def __init__(self, config: RQKMeansConfig) -> None:
        super().__init__(config)
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.empty(size, config.dim), requires_grad=False) for size in config.codebook_sizes
        )
        for level, size in enumerate(config.codebook_sizes):
            self.register_buffer(f"prices_{level}", torch.empty(size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # NaN marks what neither `fit` nor a checkpoint has set; `check_fitted` looks for it
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            initialization.constant_(tensor, float("nan"))

    def _fit(self, vectors: np.ndarray, seed: int, progress: bool, checkpoint: Path | None) -> None:
        config, last = self.config, self.num_levels - 1
        residual = sample_rows(vectors, config.max_points_per_code * max(config.codebook_sizes), seed)
        for level in tqdm(range(self.num_levels), desc="rq_kmeans", unit="level", disable=not progress):
            size = config.codebook_sizes[level]
            centres, prices = kmeans(residual, size, config.n_iter, seed + level), np.zeros(size, np.float32)
            if config.balance == "all" or (config.balance == "last" and level == last):
                centres, prices = balanced_kmeans(residual, centres, config.balance_rounds)
            self.codebooks[level].data.copy_(torch.from_numpy(centres))
            self._prices(level).copy_(torch.from_numpy(prices))
            if level < last:
                residual -= centres[nearest(residual, centres, prices)]

    def _prices(self, level: int) -> torch.Tensor:
        return self.get_buffer(f"prices_{level}")

    def code_vectors(self, level: int) -> np.ndarray:
        self.check_fitted()
        return self.codebooks[level].detach().cpu().numpy().copy()

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        residual = residual_of(batch, self.codebooks, codes[:, :level])
        return squared_distances(residual, self.codebooks[level]).add_(self._prices(level))

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        residual = batch
        codes: list[torch.Tensor] = []
        for level, codebook in enumerate(self.codebooks):
            if level:
                residual = residual - self.codebooks[level - 1][codes[-1]]
            codes.append(compared(residual, codebook, self._prices(level)).min(1).indices)  # quicker than argmin
        return torch.stack(codes, 1)

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        return torch.stack([self.codebooks[level][codes[:, level]] for level in range(codes.shape[1])]).sum(0)
