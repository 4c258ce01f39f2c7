"""OPQ: a rotation, then K-means in every sub-space (Ge et al., Optimized Product Quantization, CVPR 2013) [known].

The codes of an item are of one rank, none refines another: each says where the item is in its own part of the space.
"""

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import initialization

from .base import Quantizer, QuantizerConfig
from .kmeans import kmeans, means, nearest, squared_distances
from .vectors import sample_rows


class OPQConfig(QuantizerConfig):
    """Config of [`OPQ`].

    Args:
        rounds: How often codebooks and rotation take turns; 0 leaves the rotation at its start.
        n_iter: Iterations of K-means per sub-space, after the rotation is learned.
        max_points_per_code: Everything is learned from at most this many vectors per code, drawn by the seed when
            there are more.
    """

    model_type = "hf_gr_opq"

    rounds: int = 20
    n_iter: int = 25
    max_points_per_code: int = 256

    limits: ClassVar = {"rounds": (0, math.inf), "n_iter": (1, math.inf), "max_points_per_code": (1, math.inf)}


class OPQ(Quantizer):
    """y = R(x − μ), in L parts of w = ⌈d/L⌉; s_l = argmin_k ‖y_l − c_{l,k}‖²; x̂ = μ + Rᵀ(c_{0,s_0}, …).

    R [L·w, d] has orthonormal columns: it rotates x padded with zeros to a multiple of L. Codebooks [K_l, w] and R
    take turns at lowering ‖y − ŷ‖² as in the paper's Algorithm 1: codes and their means with R fixed, R by Procrustes
    with the codes fixed. R starts as the paper's parametric solution (section 3.2). Not by faiss's class, which takes
    codebooks of one size, and no seed.
    """

    config_class = OPQConfig
    config: OPQConfig

    def __init__(self, config: OPQConfig) -> None:
        super().__init__(config)
        levels, self._width = len(config.codebook_sizes), -(-config.dim // len(config.codebook_sizes))
        self.mean = nn.Parameter(torch.empty(config.dim), requires_grad=False)
        self.rotation = nn.Parameter(torch.empty(levels * self._width, config.dim), requires_grad=False)
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.empty(size, self._width), requires_grad=False) for size in config.codebook_sizes
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # NaN marks what neither `fit` nor a checkpoint has set; `check_fitted` looks for it
        for parameter in module.parameters(recurse=False):
            initialization.constant_(parameter, float("nan"))

    def _fit(self, vectors: np.ndarray, seed: int, progress: bool, checkpoint: Path | None) -> None:
        config, sizes = self.config, self.config.codebook_sizes
        sample = sample_rows(vectors, config.max_points_per_code * max(sizes), seed)
        mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        sample -= mean
        rotation = _parametric_rotation(sample, len(sizes), self._width)
        parts = self._turned(sample, rotation)
        codebooks = [
            kmeans(part, size, 5, seed + level) for level, (part, size) in enumerate(zip(parts, sizes, strict=True))
        ]
        for _ in tqdm(range(config.rounds), desc="opq", unit="round", disable=not progress):
            codes = [nearest(part, codebook) for part, codebook in zip(parts, codebooks, strict=True)]
            codebooks = [means(*of_level) for of_level in zip(parts, codes, codebooks, strict=True)]
            rebuilt = np.hstack([codebook[code] for codebook, code in zip(codebooks, codes, strict=True)])
            left, _, right = np.linalg.svd((rebuilt.T @ sample).astype(np.float64), full_matrices=False)
            rotation = (left @ right).astype(np.float32)
            parts = self._turned(sample, rotation)
        self.mean.data.copy_(torch.from_numpy(mean))
        self.rotation.data.copy_(torch.from_numpy(rotation))
        for level, (part, codebook) in enumerate(zip(parts, codebooks, strict=True)):
            centres = kmeans(part, sizes[level], config.n_iter, seed + level, start=codebook)
            self.codebooks[level].data.copy_(torch.from_numpy(centres))

    def _turned(self, centred: np.ndarray, rotation: np.ndarray) -> list[np.ndarray]:
        """float32 [n, w] of every sub-space."""
        return [
            centred @ np.ascontiguousarray(rotation[start : start + self._width].T)
            for start in range(0, len(rotation), self._width)
        ]

    def _rows(self, level: int) -> torch.Tensor:
        """The rotation's rows of one sub-space, float32 [w, d]."""
        return self.rotation[level * self._width : (level + 1) * self._width]

    def code_vectors(self, level: int) -> np.ndarray:
        """float32 [K_level, d]: what each code adds to the mean, in the space of the vectors."""
        self.check_fitted()
        return (self.codebooks[level] @ self._rows(level)).detach().cpu().numpy()

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        return squared_distances((batch - self.mean) @ self._rows(level).T, self.codebooks[level])

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        found = [self._distances(batch, batch, level).min(1).indices for level in range(self.num_levels)]
        return torch.stack(found, 1)

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        rebuilt = torch.cat([self.codebooks[level][codes[:, level]] for level in range(codes.shape[1])], 1)
        return self.mean + rebuilt @ self.rotation[: rebuilt.shape[1]]


def _parametric_rotation(centred: np.ndarray, parts: int, width: int) -> np.ndarray:
    """float32 [parts·width, d]: principal axes, dealt out so that the parts' products of variances are alike."""
    variances, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    # relative to the least, so that every further axis makes a product larger
    logs = np.log(np.maximum(variances, max(variances.max(), 1e-30) * 1e-9))
    logs -= logs.min()
    rotation = np.zeros((parts, width, centred.shape[1]), np.float32)
    products, taken = np.zeros(parts), np.zeros(parts, int)
    for axis in np.argsort(-variances, kind="stable"):
        part = int(np.where(taken < width, products, np.inf).argmin())
        rotation[part, taken[part]] = axes[:, axis]
        products[part] += logs[axis]
        taken[part] += 1
    return rotation.reshape(parts * width, -1)
