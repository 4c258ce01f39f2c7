"""MPQ: parallel codes from a mixture of experts (REG4Rec) [known; the form of the orthogonality is ours].

M experts e_r = E_r(x) see the whole item, each with a codebook of its own; c_r is the code nearest to e_r, and a
router h = softmax(W x) says how much each counts: x̂ = Dec(Σ_r h_r z_{r,c_r}). No code refines another, so an item is a
set of M codes that may be written in any order. The loss is ‖x − x̂‖² + β Σ_r ‖e_r − sg(z_r)‖² + λ_o·dependence.
"""

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from .base import BATCH_SIZE
from .codebooks import CodebookQuantizer, CodebookQuantizerConfig, smoothed
from .kmeans import squared_distances
from .neural import mlp


class MPQConfig(CodebookQuantizerConfig):
    """Config of [`MPQ`].

    Args:
        codebook_sizes: K_r of each of the M experts.
        beta: As in the base, with a lower default.
        learning_rate: As in the base, with a higher default.
        orthogonality: λ_o, weight of [`dependence`] between the outputs of experts. Large ones (0.1) make more of the
            sets distinct, but codes mean less: their items are less alike, and a recommender finds fewer (HR@50).
        alpha, hops: Of the propagation over the co-occurrence graph that vectors go through first, as in
            [`~hf_gr.quantizers.CoBa`]; 0 hops leave them as they are [ours].
        side_dropout: Share of the items of a batch whose router weights give way to the batch's mean, as `decode`
            without side has them. Without this weights say what the codes ought to say [ours].
    """

    model_type = "hf_gr_mpq"

    codebook_sizes: list[int] | tuple[int, ...] = (256, 256, 256, 256)
    beta: float = 0.1
    learning_rate: float = 3e-3
    orthogonality: float = 0.003
    side_dropout: float = 0.5
    alpha: float = 0.2
    hops: int = 3

    limits: ClassVar = {"orthogonality": (0, math.inf), "side_dropout": (0, 1), "alpha": (0, 1), "hops": (0, math.inf)}


class MPQ(CodebookQuantizer):
    """c_r = argmin_k ‖e_r − z_{r,k}‖²; x̂ = Dec(Σ_r h_r z_{r,c_r}). [`side`] is h, [N, M].

    Experts share the hidden layers of the encoder and differ in the last one, which is one matrix for all of them, so
    that sixteen cost little more than two [ours]. Where h is not known, [`decode`] takes its mean over the fitted
    vectors.
    """

    config_class = MPQConfig
    config: MPQConfig
    uses_graph = True

    def __init__(self, config: MPQConfig) -> None:
        super().__init__(config)
        self.side_width = self.num_levels
        self.encoder = mlp([config.dim, *config.hidden_sizes, self.num_levels * config.latent_dim])
        self.router = nn.Linear(config.dim, self.num_levels)
        self.register_buffer("usual_weights", torch.empty(self.num_levels))  # mean h of the fitted vectors
        self.post_init()

    def align(self, vectors: np.ndarray, graph: sp.csr_array | None) -> np.ndarray:
        return smoothed(vectors, graph, self.config.alpha, self.config.hops)

    def experts(self, batch: torch.Tensor) -> torch.Tensor:
        """float32 [n, d] → e, float32 [n, M, w]."""
        return self.latents(batch).unflatten(1, (self.num_levels, -1))

    def weights(self, batch: torch.Tensor) -> torch.Tensor:
        """float32 [n, d] → h, float32 [n, M]."""
        return self.router((batch - self.mean) / self.scale).softmax(1)

    def _start(self, latents: torch.Tensor, seed: int) -> None:
        nn.init.zeros_(self.router.weight)  # all experts count alike at first
        nn.init.zeros_(self.router.bias)
        for level, points in enumerate(latents.unflatten(1, (self.num_levels, -1)).unbind(1)):
            self._start_codebook(level, np.ascontiguousarray(points.cpu().numpy()), seed + level)

    def _losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs, weights = self.experts(batch), self.weights(batch)
        hidden = (torch.rand(len(batch), 1) < self.config.side_dropout).to(weights.device)
        weights = torch.where(hidden, weights.mean(0), weights)
        codes = self._nearest(outputs.detach())
        quantized = self._chosen(codes)
        self._seen = list(zip(outputs.detach().unbind(1), codes.unbind(1), strict=True))
        passed = outputs + (quantized - outputs).detach()
        parts = {
            "reconstruction": self.reconstruction_loss(batch, (weights[..., None] * passed).sum(1)),
            "commitment": self.config.beta * (outputs - quantized.detach()).square().mean((0, 2)).sum(),
            "orthogonality": self.config.orthogonality * dependence(outputs),
        }
        if self.config.codebook_update == "gradient":
            parts["codebook"] = (outputs.detach() - quantized).square().mean((0, 2)).sum()
        return parts

    def _chosen(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [n, l] → z, float32 [n, l, w]."""
        return torch.stack([self.codebooks[level][code] for level, code in enumerate(codes.T)], 1)

    def _nearest(self, outputs: torch.Tensor) -> torch.Tensor:
        """[n, M, w] → int64 [n, M]."""
        each = zip(outputs.unbind(1), self.codebooks, strict=True)
        return torch.stack([squared_distances(output, codebook.detach()).argmin(1) for output, codebook in each], 1)

    def _fit(self, vectors: np.ndarray, seed: int, progress: bool, checkpoint: Path | None) -> None:
        super()._fit(vectors, seed, progress, checkpoint)
        self._settle(vectors)

    @torch.no_grad()
    def _settle(self, vectors: np.ndarray) -> None:
        """The mean of h over all vectors, for `decode` without side."""
        total = torch.zeros_like(self.usual_weights, dtype=torch.float64)
        for start in range(0, len(vectors), BATCH_SIZE):
            total += self.weights(self._tensor(vectors[start : start + BATCH_SIZE])).double().sum(0)
        self.usual_weights.copy_(total / len(vectors))

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        return self._nearest(self.experts(batch))

    def _side(self, batch: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return self.weights(batch)

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        return squared_distances(self.experts(batch)[:, level], self.codebooks[level])

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        weights = (self.usual_weights[None] if side is None else side)[:, : codes.shape[1]]
        return self.reconstructed((weights[..., None] * self._chosen(codes)).sum(1))


def dependence(outputs: torch.Tensor) -> torch.Tensor:
    """How far two experts say the same up to rotation and scale: the mean over pairs of ‖C_rs‖² / (‖C_rr‖·‖C_ss‖).

    C_rs [w, w] is the covariance of the outputs of experts r and s over a batch, norms are Frobenius': linear CKA
    (Kornblith et al., 2019) [known; that it is REG4Rec's orthogonality is ours]. It is 0 when the outputs are
    uncorrelated and 1 when one is a rotation of the other. That is what matters: two outputs that are at right
    angles for every item may well be one output and its rotation, and have one partition of the items for both. The
    directions in which an expert's items differ most, which its codes follow, weigh most; a mean squared correlation
    of all dimensions costs more of the reconstruction and lowers the mutual information of codes less.

    Args:
        outputs: float32 [n, M, w].

    Returns:
        float32 [], between 0 and 1; 0 for a single expert.
    """
    experts = outputs.shape[1]
    if experts == 1:
        return outputs.new_zeros(())
    flat = (outputs - outputs.mean(0)).flatten(1)
    squares = (flat.T @ flat).square().unflatten(1, (experts, -1)).unflatten(0, (experts, -1)).sum((1, 3))
    norms = squares.diagonal().clamp(min=1e-12).sqrt()
    return ((squares / (norms[:, None] * norms)).sum() - experts) / (experts * (experts - 1))
