"""RQ-VAE: an autoencoder whose latent is quantized level by level (Rajput et al., TIGER, 2023) [known].

‖x − x̂‖² + Σ_l (‖sg(r_l) − e_l‖² + β‖r_l − sg(e_l)‖²) with r₀ = z, r_{l+1} = r_l − e_l; squares are means over
dimensions here [ours]. Known to collapse: few codes of a level get all items. Against it stand a start by K-means,
codes that follow a moving average of their items (EMA, van den Oord et al., 2017), and the revival of codes that no
item chose. Everything can be switched off, to see what it does.
"""

from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import HfGrError
from .kmeans import kmeans, nearest, residual_of, squared_distances
from .neural import NeuralQuantizer, NeuralQuantizerConfig, one_hot, revive


class RQVAEConfig(NeuralQuantizerConfig):
    """Config of [`RQVAE`].

    Args:
        beta: β, weight of the commitment loss.
        start: `"kmeans"`: codebooks start as the centres of residual K-means on the first latents. `"random"`: drawn
            with the latents' deviation, as a plain RQ-VAE has it.
        codebook_update: `"ema"`: codes are the moving averages of the residuals that chose them. `"gradient"`: they
            follow the loss's first part.
        ema_decay: Of the moving averages, a step.
        revive: Whether codes that no item of an epoch chose are put on random residuals; not in the last fifth of the
            epochs, which lets them settle.
        estimator: How the gradient passes the choice of codes. `"straight_through"`: as if ẑ were z. `"rotation"`:
            through the rotation and scaling that takes z to ẑ (Fifty et al., 2024), of the whole latent [ours].
            `"gumbel"`: through a softmax over −distance/temperature with Gumbel noise (Jang et al., 2017); takes
            `codebook_update="gradient"`.
        temperature: Of the Gumbel softmax, in units of the mean distance. The noise drowns the distances from about
            a third on: at 1 hardly anything is learned.
    """

    model_type = "hf_gr_rq_vae"

    beta: float = 0.25
    start: Literal["kmeans", "random"] = "kmeans"
    codebook_update: Literal["ema", "gradient"] = "ema"
    ema_decay: float = 0.99
    revive: bool = True
    estimator: Literal["straight_through", "rotation", "gumbel"] = "straight_through"
    temperature: float = 0.03


class RQVAE(NeuralQuantizer):
    """r₀ = z; s_l = argmin_k ‖r_l − c_{l,k}‖²; r_{l+1} = r_l − c_{l,s_l}; x̂ = Dec(Σ_l c_{l,s_l})."""

    config_class = RQVAEConfig
    config: RQVAEConfig

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__(config)
        if config.estimator == "gumbel" and config.codebook_update == "ema":
            raise HfGrError("estimator 'gumbel' teaches codes by gradients; set codebook_update to 'gradient'.")
        width, learned = config.latent_dim, config.codebook_update == "gradient"
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.empty(size, width), requires_grad=learned) for size in config.codebook_sizes
        )
        for level, size in enumerate(config.codebook_sizes):
            # moving averages, a batch: how many residuals chose a code, and their sum
            self.register_buffer(f"counts_{level}", torch.empty(size))
            if not learned:
                self.register_buffer(f"sums_{level}", torch.empty(size, width))
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # residuals and codes of the last batch, by level
        self._used = [torch.zeros(size) for size in config.codebook_sizes]  # times, since the epoch began
        self.post_init()

    def code_vectors(self, level: int) -> np.ndarray:
        self.check_fitted()
        return self.codebooks[level].detach().cpu().numpy().copy()

    def _counts(self, level: int) -> torch.Tensor:
        return self.get_buffer(f"counts_{level}")

    def _start(self, latents: torch.Tensor, seed: int) -> None:
        residual = latents.cpu().numpy()
        for level, codebook in enumerate(self.codebooks):
            if self.config.start == "kmeans":
                centres = kmeans(residual, len(codebook), 10, seed + level)
                residual = residual - centres[nearest(residual, centres)]
                codebook.copy_(torch.from_numpy(centres))
            else:
                codebook.copy_(torch.randn(codebook.shape) * float(residual.std()))
            self._forget(level, torch.arange(len(codebook), device=codebook.device))
        self._used = [torch.zeros_like(used, device=self.device) for used in self._used]

    def _forget(self, level: int, codes: torch.Tensor) -> None:
        """Starts the moving averages of some codes, int64 [n], as if they had had their even share."""
        counts = self._counts(level)
        counts[codes] = self.config.batch_size / len(counts)
        if self.config.codebook_update == "ema":
            self.get_buffer(f"sums_{level}")[codes] = self.codebooks[level].detach()[codes] * counts[codes, None]

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

    @torch.no_grad()
    def _after_step(self) -> None:
        decay = self.config.ema_decay
        for level, (residual, codes) in enumerate(self._seen):
            counts, codebook = self._counts(level), self.codebooks[level]
            chosen = one_hot(codes, len(codebook), residual)
            times = chosen.sum(0)
            self._used[level] += times
            counts.lerp_(times, 1 - decay)
            if self.config.codebook_update == "ema":
                sums = self.get_buffer(f"sums_{level}").lerp_(chosen.T @ residual, 1 - decay)
                # a code long unused has nothing left to average, and stays where it is
                codebook.copy_(torch.where(counts[:, None] > 1e-6, sums / counts[:, None], codebook))

    @torch.no_grad()
    def _after_epoch(self, progress: float) -> None:
        for level, used in enumerate(self._used):
            if self.config.revive and progress < 0.8:
                self._forget(level, revive(self.codebooks[level], used > 0, self._seen[level][0]))
            used.zero_()

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
