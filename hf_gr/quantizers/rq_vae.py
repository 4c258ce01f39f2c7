"""RQ-VAE: an autoencoder whose latent is quantized level by level (Rajput et al., TIGER, 2023) [known].

‖x − x̂‖² + Σ_l (‖sg(r_l) − e_l‖² + β‖r_l − sg(e_l)‖²) with r₀ = z, r_{l+1} = r_l − e_l; squares are means over
dimensions here [ours]. Known to collapse: few codes of a level get all items. Against it stand a start by K-means,
codes that follow a moving average of their items (EMA, van den Oord et al., 2017), and the revival of codes that no
item chose. Everything can be switched off, to see what it does.
"""

from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from ..errors import HfGrError
from .base import POSITIVE
from .codebooks import CodebookQuantizer, CodebookQuantizerConfig
from .kmeans import nearest, residual_of, squared_distances


class RQVAEConfig(CodebookQuantizerConfig):
    """Config of [`RQVAE`].

    Args:
        estimator: How the gradient passes the choice of codes. `"straight_through"`: as if ẑ were z. `"rotation"`:
            through the rotation and scaling that takes z to ẑ (Fifty et al., 2024), of the whole latent [ours].
            `"gumbel"`: through a softmax over −distance/temperature with Gumbel noise (Jang et al., 2017); takes
            `codebook_update="gradient"`.
        temperature: Of the Gumbel softmax, in units of the mean distance. The noise drowns the distances from about
            a third on: at 1 hardly anything is learned.
    """

    model_type = "hf_gr_rq_vae"

    estimator: Literal["straight_through", "rotation", "gumbel"] = "straight_through"
    temperature: float = 0.03

    limits: ClassVar = {"temperature": POSITIVE}


class RQVAE(CodebookQuantizer):
    """r₀ = z; s_l = argmin_k ‖r_l − c_{l,k}‖²; r_{l+1} = r_l − c_{l,s_l}; x̂ = Dec(Σ_l c_{l,s_l})."""

    config_class = RQVAEConfig
    config: RQVAEConfig

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__(config)
        if config.estimator == "gumbel" and config.codebook_update == "ema":
            raise HfGrError("estimator 'gumbel' teaches codes by gradients; set codebook_update to 'gradient'.")
        self.post_init()

    def _start(self, latents: torch.Tensor, seed: int) -> None:
        residual = latents.cpu().numpy()
        for level in range(self.num_levels):
            self._start_codebook(level, residual, seed + level)
            if self.config.start == "kmeans":
                centres = self.codebooks[level].detach().cpu().numpy()
                residual = residual - centres[nearest(residual, centres)]

    def _compared(self, residual: torch.Tensor, level: int) -> torch.Tensor:
        """What codes are chosen by: the least of squared distances float32 [n, K_level]."""
        return squared_distances(residual, self.codebooks[level])

    def _losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        latents = self.latents(batch)
        quantized, parts = self._quantized(latents)
        if self.config.estimator == "rotation":
            quantized = _rotated(latents, quantized)
        elif self.config.estimator == "straight_through":
            quantized = latents + (quantized - latents).detach()
        return {"reconstruction": self.reconstruction_loss(batch, quantized)} | parts

    def _quantized(self, latents: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """ẑ [n, w], and what pulls codes and residuals together."""
        config, residual, quantized = self.config, latents, torch.zeros_like(latents)
        commitment = codebook_loss = latents.new_zeros(())
        self._seen = []
        for level, codebook in enumerate(self.codebooks):
            with torch.set_grad_enabled(config.estimator == "gumbel"):
                compared = self._compared(residual, level)
            if config.estimator == "gumbel":
                # distances have no scale of their own: their mean is 1
                weights = F.gumbel_softmax(-compared / (config.temperature * compared.mean().detach()), hard=True)
                codes, passed = weights.argmax(1), weights @ codebook
                chosen = codebook[codes]
            else:
                codes = compared.argmin(1)
                chosen = passed = codebook[codes]
            self._seen.append((residual.detach(), codes))
            commitment = commitment + (residual - chosen.detach()).square().mean()
            if config.codebook_update == "gradient":
                codebook_loss = codebook_loss + (residual.detach() - chosen).square().mean()
            residual, quantized = residual - chosen.detach(), quantized + passed
        parts = {"commitment": config.beta * commitment}
        if config.codebook_update == "gradient":
            parts["codebook"] = codebook_loss
        return quantized, parts

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        residual, codes = self.latents(batch), []
        for level, codebook in enumerate(self.codebooks):
            codes.append(self._compared(residual, level).argmin(1))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes, 1)

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        return self._compared(residual_of(self.latents(batch), self.codebooks, codes[:, :level]), level)

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        chosen = [self.codebooks[level][codes[:, level]] for level in range(codes.shape[1])]
        return self.reconstructed(torch.stack(chosen).sum(0))


def _rotated(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """ẑ in value; in the gradient λ·R·z, R the rotation that takes z/‖z‖ to ẑ/‖ẑ‖, λ = ‖ẑ‖/‖z‖, both held fixed."""
    with torch.no_grad():
        from_, to = F.normalize(latents, dim=1), F.normalize(quantized, dim=1)
        between = F.normalize(from_ + to, dim=1)
        scale = quantized.norm(dim=1, keepdim=True) / latents.norm(dim=1, keepdim=True).clamp(min=1e-12)
    along = (latents * between).sum(1, keepdim=True)
    turned = (latents * from_).sum(1, keepdim=True)
    return scale * (latents - 2 * along * between + 2 * turned * to)
