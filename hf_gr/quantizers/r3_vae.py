"""R3-VAE: what a learned reference vector leaves of a latent, quantized by ratings instead of distances [known].

z = Enc(x), α = z·r/‖r‖², e⁰ = z − αr. On level l every code is rated by its cosine with the residual,
w = softmax(cos(e, c_k)/τ), s_l = argmax w, e ← e − ê with ê from the ratings; x̂ = Dec(αr + Σ_l ê). The loss is the
reconstruction with two regularisers, Semantic Cohesion (SC) and Preference Discrimination (PD).

What is ours:

- The published ê is the mixture Σ_k w_k c_k. It says more than the code does: trained with it, a decoder that is
  given the codes alone errs more than three times as much as in training (Amazon Beauty). Here ê is c_{s_l}, and
  the mixture is its gradient (`estimator="straight_through"`), so that training sees what the codes say.
- `decode` adds, for a code, the mean ê of the fitted items that have it: c_k itself with the default, and the best
  constant where ê depends on more than the code. α comes by `side`, else it is its mean.
- A first part of the epochs trains the autoencoder alone, and the codebooks start from its latents. Started from an
  untrained encoder, codes and latents fall together on one point.
"""

import math
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .base import BATCH_SIZE, POSITIVE
from .kmeans import kmeans, nearest
from .neural import NeuralQuantizerConfig, one_hot, revive
from .soft_index import SoftIndexQuantizer, cosines


class R3VAEConfig(NeuralQuantizerConfig):
    """Config of [`R3VAE`].

    Args:
        rating: How a residual e is answered. `"softmax"`: with the codes weighed by softmax(cos(e, c_k)/τ).
            `"top1"`: with cos(e, c)·c of the best-rated code, the gradient passing through both; c keeps its length,
            since residuals shrink from level to level [ours: published is c/‖c‖].
        temperature: τ of the softmax; at 1, 256 ratings would be all but equal.
        estimator: For the softmax rating. `"straight_through"`: the best code in value, the mixture in gradient.
            `"soft"`: the mixture in both, as published.
        sc_weight: Weight of [`semantic_cohesion`] of the residuals that share a code in a batch, raised on each level.
        pd_weight: Weight of [`preference_discrimination`] of a level's codes, lowered on each level. Both are small:
            on half of Amazon Beauty (ten seeds, short fits) even these gave 10.4 % collisions where 0 gave 9.1 %.
        side_dropout: Share of the items of a batch whose α gives way to the batch's mean, as `decode` without side has
            it. Without this the encoder hides in α what the codes ought to say [ours].
        learning_rate: As in the base, with a higher default.
        warm_up: Share of the epochs that train encoder and decoder alone, before the codebooks start; at least one
            epoch.
        start: `"kmeans"`: codes start as the mean residuals of K-means clusters of directions. `"random"`: drawn with
            the residuals' deviation.
        revive: Whether codes that no item of an epoch chose are put on random residuals; not in the last fifth of the
            epochs, which lets them settle.
    """

    model_type = "hf_gr_r3_vae"

    rating: Literal["softmax", "top1"] = "softmax"
    temperature: float = 0.07
    estimator: Literal["straight_through", "soft"] = "straight_through"
    sc_weight: float = 0.003
    pd_weight: float = 0.03
    side_dropout: float = 0.5
    learning_rate: float = 3e-3
    warm_up: float = 0.1
    start: Literal["kmeans", "random"] = "kmeans"
    revive: bool = True

    limits: ClassVar = {
        "temperature": POSITIVE,
        "sc_weight": (0, math.inf),
        "pd_weight": (0, math.inf),
        "side_dropout": (0, 1),
        "warm_up": (0, 1),
    }


class R3VAE(SoftIndexQuantizer):
    """s_l = argmax_k cos(e_l, c_{l,k}); e_{l+1} = e_l − ê_l; x̂ = Dec(αr + Σ_l ê_l). [`side`] is α, [N, 1]."""

    config_class = R3VAEConfig
    config: R3VAEConfig
    side_width = 1

    def __init__(self, config: R3VAEConfig) -> None:
        super().__init__(config)
        width = config.latent_dim
        self.reference = nn.Parameter(torch.empty(width))
        self.codebooks = nn.ParameterList(nn.Parameter(torch.empty(size, width)) for size in config.codebook_sizes)
        self.register_buffer("mean_side", torch.empty(1))
        for level, size in enumerate(config.codebook_sizes):
            self.register_buffer(f"answers_{level}", torch.empty(size, width))  # mean ê of a code's items
        self._seed = 0
        self._kept = -(-config.sample_size // config.batch_size)  # batches that the codebooks start from, at most
        self._latents: list[torch.Tensor] = []  # of this epoch, while the encoder warms up
        self._residuals: list[torch.Tensor] = []  # of the last batch, by level
        self._used: list[torch.Tensor] = []  # since the epoch began, by level, bool [K_l]; empty outside of a fit
        self.post_init()

    def code_vectors(self, level: int) -> np.ndarray:
        self.check_fitted()
        return self.get_buffer(f"answers_{level}").cpu().numpy().copy()

    def _start(self, latents: torch.Tensor, seed: int) -> None:
        # NaN says "still warming up", also to a resumed fit; the latents of an untrained encoder start nothing
        for weight in [self.reference, *self.codebooks]:
            weight.fill_(float("nan"))
        self._seed, self._latents = seed, []
        sizes = self.config.codebook_sizes
        self._used = [torch.zeros(size, dtype=torch.bool, device=self.device) for size in sizes]

    def _warming(self) -> bool:
        return bool(self.reference.isnan().any())

    def _start_codebooks(self, latents: torch.Tensor) -> None:
        self.reference.copy_(latents.mean(0))
        residual = self._split(latents)[1]
        for level, codebook in enumerate(self.codebooks):
            drawn = torch.randn(codebook.shape).to(residual) * residual.std()
            if self.config.start == "kmeans":
                directions = F.normalize(residual, dim=1).cpu().numpy()
                clusters = nearest(directions, kmeans(directions, len(codebook), 10, self._seed + level))
                drawn = _means(residual, torch.from_numpy(clusters).to(self.device), drawn)
            codebook.copy_(drawn)
            residual = residual - self._answer(residual, level)[1]

    def _split(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z [n, w] → α [n, 1], e⁰ [n, w]."""
        along = (latents @ self.reference / self.reference.square().sum())[:, None]
        return along, latents - along * self.reference

    def _ratings(self, residual: torch.Tensor, level: int) -> torch.Tensor:
        return cosines(residual, self.codebooks[level])

    def _level_ratings(self, batch: torch.Tensor) -> list[torch.Tensor]:
        residual, found = self._split(self.latents(batch))[1], []
        for level in range(self.num_levels):
            found.append(self._ratings(residual, level))
            residual = residual - self._answer(residual, level)[1]
        return found

    def _temperature(self) -> float:
        return self.config.temperature

    def _answer(
        self, residual: torch.Tensor, level: int, codes: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [n], the best-rated unless given, and ê [n, w]."""
        codebook, ratings = self.codebooks[level], self._ratings(residual, level)
        codes = ratings.argmax(1) if codes is None else codes
        chosen = codebook[codes]
        if self.config.rating == "top1":
            return codes, ratings.gather(1, codes[:, None]) * chosen
        weights = (ratings / self.config.temperature).softmax(1)
        if self.config.estimator == "soft":
            return codes, weights @ codebook
        mixed = weights @ codebook.detach()
        return codes, chosen + mixed - mixed.detach()

    def _losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        latents = self.latents(batch)
        if self._warming():
            self._latents = [*self._latents, latents.detach()][-self._kept :]
            return {"reconstruction": self.reconstruction_loss(batch, latents)}
        side, residual = self._split(latents)
        hidden = (torch.rand(len(side), 1) < self.config.side_dropout).to(side.device)
        quantized = torch.where(hidden, side.mean(), side) * self.reference
        cohesion = discrimination = latents.new_zeros(())
        self._residuals = []
        for level, codebook in enumerate(self.codebooks):
            codes, answer = self._answer(residual, level)
            self._residuals.append(residual.detach())
            if self._used:
                self._used[level].index_fill_(0, codes, True)
            cohesion = cohesion + semantic_cohesion(residual, codes, len(codebook))
            discrimination = discrimination + preference_discrimination(codebook)
            residual, quantized = residual - answer, quantized + answer
        return {
            "reconstruction": self.reconstruction_loss(batch, quantized),
            "cohesion": -self.config.sc_weight * cohesion,
            "discrimination": self.config.pd_weight * discrimination,
        }

    @torch.no_grad()
    def _after_epoch(self, progress: float) -> None:
        if self._warming():
            if progress >= self.config.warm_up:
                self._start_codebooks(torch.cat(self._latents))
            self._latents = []
            return
        for used, residual, codebook in zip(self._used, self._residuals, self.codebooks, strict=True):
            if self.config.revive and progress < 0.8:
                revive(codebook, used, residual)
            used.zero_()

    def _fit(self, vectors: np.ndarray, seed: int, progress: bool, checkpoint: Path | None) -> None:
        super()._fit(vectors, seed, progress, checkpoint)
        self._settle(vectors)

    @torch.no_grad()
    def _settle(self, vectors: np.ndarray) -> None:
        """Means over all vectors of what `decode` needs: α, and every code's ê."""
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        counts = [torch.zeros(len(codebook), dtype=torch.float64, device=self.device) for codebook in self.codebooks]
        sums = [torch.zeros_like(codebook, dtype=torch.float64) for codebook in self.codebooks]
        for start in range(0, len(vectors), BATCH_SIZE):
            side, residual = self._split(self.latents(self._tensor(vectors[start : start + BATCH_SIZE])))
            total += side.double().sum(0)
            for level, codebook in enumerate(self.codebooks):
                codes, answer = self._answer(residual, level)
                groups = one_hot(codes, len(codebook), total)
                counts[level] += groups.sum(0)
                sums[level] += groups.T @ answer.double()
                residual = residual - answer
        self.mean_side.copy_(total / len(vectors))
        for level, codebook in enumerate(self.codebooks):
            mean = sums[level] / counts[level].clamp(min=1)[:, None]
            self.get_buffer(f"answers_{level}").copy_(torch.where(counts[level][:, None] > 0, mean, codebook))

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        residual, found = self._split(self.latents(batch))[1], []
        for level in range(self.num_levels):
            codes, answer = self._answer(residual, level)
            residual = residual - answer
            found.append(codes)
        return torch.stack(found, 1)

    def _side(self, batch: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return self._split(self.latents(batch))[0]

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        """1 − cos. A mixture does not depend on the code given, so there the levels before do not move it."""
        residual = self._split(self.latents(batch))[1]
        for earlier in range(level):
            residual = residual - self._answer(residual, earlier, codes[:, earlier])[1]
        return 1 - self._ratings(residual, level)

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        along = self.mean_side[None] if side is None else side
        answers = [self.get_buffer(f"answers_{level}")[codes[:, level]] for level in range(codes.shape[1])]
        return self.reconstructed(along * self.reference + torch.stack(answers).sum(0))


def semantic_cohesion(vectors: torch.Tensor, codes: torch.Tensor, size: int) -> torch.Tensor:
    """Mean cosine of the pairs of vectors float32 [n, w] that share a code, int64 [n] below `size`; 0 without pairs.

    Linear in n: over a group of unit vectors, the cosines of all ordered pairs sum to ‖Σu‖² − Σ‖u‖².
    """
    units, groups = F.normalize(vectors, dim=1), one_hot(codes, size, vectors)
    counts = groups.sum(0)
    pairs = (counts * (counts - 1)).sum()
    return ((groups.T @ units).square().sum() - units.square().sum()) / pairs.clamp(min=1)


def preference_discrimination(codebook: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the pairs of codes, float32 [K, w] with K ≥ 2; −1/(K − 1) at the least."""
    everyone = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)
    return semantic_cohesion(codebook, everyone, 1)


def _means(points: torch.Tensor, clusters: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Mean point [K, w] of every cluster; the row of `otherwise` for a cluster without points."""
    counts, sums = clusters.new_zeros(len(otherwise)), torch.zeros_like(otherwise)
    for some, at in zip(points.split(BATCH_SIZE), clusters.split(BATCH_SIZE), strict=True):
        groups = one_hot(at, len(otherwise), points)
        counts, sums = counts + groups.sum(0), sums + groups.T @ some
    return torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], otherwise)
