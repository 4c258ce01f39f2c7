"""CoBa: S²GR's collaborative and balanced codebook, an RQ-VAE whose items know their neighbours and whose codes share
the load (roles known, forms ours where marked).

- *Collaborative*: item vectors are propagated over the co-occurrence graph before they are quantized
  ([`~hf_gr.embedding.propagation.propagate`]), so that items used together come close.
- *Uniform*: codes of one level closer than δ repel, mean_{i≠j} max(0, δ − ‖e_i − e_j‖)² [role known, form ours].
- *Balanced*: a distance is scaled by the use of its code, d′ = d·clip(1 + γ(n_j/n̄ − 1), 1 − ρ, 1 + ρ), n_j a moving
  average of the items that choose code j [bounded adjustment known, form ours]. The averages are part of the model, so
  an item alone gets the code that it gets among others.
"""

import math
from typing import ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch

from ..errors import HfGrError
from .codebooks import smoothed
from .rq_vae import RQVAE, RQVAEConfig


class CoBaConfig(RQVAEConfig):
    """Config of [`CoBa`]; γ, ρ, α and the hops as in METHODS, all [ours].

    Args:
        alpha: α of the propagation, what an item keeps of itself at every hop.
        hops: Hops of the propagation; 0 leaves the vectors as they are.
        uniformity: Weight of the repulsion; 0 switches it off.
        delta: δ in units of the level's root mean squared residual, so that one value serves every level.
        gamma: γ, how much use scales a distance; 0 switches it off.
        rho: ρ, the most by which a distance is scaled.
    """

    model_type = "hf_gr_coba"

    codebook_update: Literal["ema", "gradient"] = "gradient"
    alpha: float = 0.2
    hops: int = 3
    uniformity: float = 0.1
    delta: float = 0.5
    gamma: float = 0.3
    rho: float = 0.2

    limits: ClassVar = {
        "alpha": (0, 1),
        "hops": (0, math.inf),
        "uniformity": (0, math.inf),
        "delta": (0, math.inf),
        "gamma": (0, math.inf),
        "rho": (0, math.inf),
    }


class CoBa(RQVAE):
    """As [`RQVAE`], on propagated vectors, with repelling codes and distances scaled by use."""

    config_class = CoBaConfig
    config: CoBaConfig
    uses_graph = True

    def __init__(self, config: CoBaConfig) -> None:
        if config.uniformity and config.codebook_update == "ema":
            raise HfGrError("uniformity teaches codes by gradients; set codebook_update to 'gradient'.")
        super().__init__(config)

    def align(self, vectors: np.ndarray, graph: sp.csr_array | None) -> np.ndarray:
        return smoothed(vectors, graph, self.config.alpha, self.config.hops)

    def _compared(self, residual: torch.Tensor, level: int) -> torch.Tensor:
        return super()._compared(residual, level) * self._load(self._counts(level))

    def _load(self, counts: torch.Tensor) -> torch.Tensor:
        """What the distances to every code are multiplied by, float32 [K]; 1 at even use."""
        gamma, rho = self.config.gamma, self.config.rho
        return (1 + gamma * (counts / counts.mean() - 1)).clamp(1 - rho, 1 + rho)

    def _losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = super()._losses(batch)
        if self.config.uniformity:
            repulsions = torch.stack([self._repulsion(level) for level in range(self.num_levels)])
            parts["uniformity"] = self.config.uniformity * repulsions.sum()
        return parts

    def _repulsion(self, level: int) -> torch.Tensor:
        residual, _ = self._seen[level]
        delta = self.config.delta * residual.square().sum(1).mean().sqrt()
        return repulsion(self.codebooks[level], delta)


def repulsion(codes: torch.Tensor, delta: torch.Tensor | float) -> torch.Tensor:
    """mean_{i≠j} max(0, δ − ‖e_i − e_j‖)² of codes float32 [K, w]; 0 for a code alone."""
    short = torch.relu(delta - torch.nn.functional.pdist(codes))
    return short.square().sum() / max(len(short), 1)
