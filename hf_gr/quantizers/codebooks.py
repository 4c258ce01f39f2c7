"""Codebooks beside an encoder: how they start, follow what chose them, and get dead codes back into use."""

import math
from typing import ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from ..embedding.propagation import propagate
from .kmeans import kmeans
from .neural import NeuralQuantizer, NeuralQuantizerConfig, one_hot, revive


class CodebookQuantizerConfig(NeuralQuantizerConfig):
    """Config of quantizers with an encoder, a decoder and, for every code of a SID, a codebook float32 [K_l, w].

    Args:
        beta: β, weight of the commitment loss.
        start: `"kmeans"`: codebooks start as centres of K-means on what they are to stand for. `"random"`: drawn with
            its deviation, as the plain methods have it.
        codebook_update: `"ema"`: codes are the moving averages of what chose them. `"gradient"`: they follow the
            codebook's part of the loss.
        ema_decay: Of the moving averages, a step.
        revive: Whether codes that no item of an epoch chose are put on what other codes got, at random; not in the
            last fifth of the epochs, which lets them settle.
    """

    beta: float = 0.25
    start: Literal["kmeans", "random"] = "kmeans"
    codebook_update: Literal["ema", "gradient"] = "ema"
    ema_decay: float = 0.99
    revive: bool = True

    limits: ClassVar = {"beta": (0, math.inf), "ema_decay": (0, 1)}


class CodebookQuantizer(NeuralQuantizer):
    """Keeps the codebooks. A method calls `_start_codebook` once a level, and sets `_seen` in its `_losses`."""

    config_class = CodebookQuantizerConfig
    config: CodebookQuantizerConfig

    def __init__(self, config: CodebookQuantizerConfig) -> None:
        super().__init__(config)
        width, learned = config.latent_dim, config.codebook_update == "gradient"
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.empty(size, width), requires_grad=learned) for size in config.codebook_sizes
        )
        for level, size in enumerate(config.codebook_sizes):
            # moving averages, a batch: how many points chose a code, and their sum
            self.register_buffer(f"counts_{level}", torch.empty(size))
            if not learned:
                self.register_buffer(f"sums_{level}", torch.empty(size, width))
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # points and codes of the last batch, by level
        self._used = [torch.zeros(size) for size in config.codebook_sizes]  # times, since the epoch began

    def code_vectors(self, level: int) -> np.ndarray:
        self.check_fitted()
        return self.codebooks[level].detach().cpu().numpy().copy()

    def _counts(self, level: int) -> torch.Tensor:
        return self.get_buffer(f"counts_{level}")

    def _reset(self, vectors: np.ndarray, seed: int) -> None:
        super()._reset(vectors, seed)
        self._used = [torch.zeros_like(used, device=self.device) for used in self._used]

    def _start_codebook(self, level: int, points: np.ndarray, seed: int) -> None:
        """Gives a codebook its first values from the points float32 [n, w] that it is to stand for."""
        codebook = self.codebooks[level]
        if self.config.start == "kmeans":
            codebook.copy_(torch.from_numpy(kmeans(points, len(codebook), 10, seed)))
        else:
            codebook.copy_(torch.randn(codebook.shape) * float(points.std()))
        self._forget(level, torch.arange(len(codebook), device=codebook.device))

    def _forget(self, level: int, codes: torch.Tensor) -> None:
        """Starts the moving averages of some codes, int64 [n], as if they had had their even share."""
        counts = self._counts(level)
        counts[codes] = self.config.batch_size / len(counts)
        if self.config.codebook_update == "ema":
            self.get_buffer(f"sums_{level}")[codes] = self.codebooks[level].detach()[codes] * counts[codes, None]

    @torch.no_grad()
    def _after_step(self) -> None:
        decay = self.config.ema_decay
        for level, (points, codes) in enumerate(self._seen):
            counts, codebook = self._counts(level), self.codebooks[level]
            chosen = one_hot(codes, len(codebook), points)
            times = chosen.sum(0)
            self._used[level] += times
            counts.lerp_(times, 1 - decay)
            if self.config.codebook_update == "ema":
                sums = self.get_buffer(f"sums_{level}").lerp_(chosen.T @ points, 1 - decay)
                # a code long unused has nothing left to average, and stays where it is
                codebook.copy_(torch.where(counts[:, None] > 1e-6, sums / counts[:, None], codebook))

    @torch.no_grad()
    def _after_epoch(self, progress: float) -> None:
        for level, used in enumerate(self._used):
            if self.config.revive and progress < 0.8:
                self._forget(level, revive(self.codebooks[level], used > 0, self._seen[level][0]))
            used.zero_()


def smoothed(vectors: np.ndarray, graph: sp.csr_array | None, alpha: float, hops: int) -> np.ndarray:
    """Vectors propagated over the co-occurrence graph ([`propagate`]), as they are without graph or hops."""
    if graph is None or hops == 0:
        return vectors
    return propagate(vectors, graph, alpha, hops, keep_lengths=True)
