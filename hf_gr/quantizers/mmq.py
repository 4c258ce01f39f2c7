"""MMQ: experts that several modalities share and experts of one modality, each with a codebook of its own.

An item vector is the concatenation of its parts e = [e_1, …, e_M] (text, behavior, …). N_s shared experts read e, N_m
own experts read e_m; each writes one code, the one of the highest cosine, s = argmax_k cos(z, c_k) [known]. With gates
g_m = softmax(MLP_m(e_m)) over the own experts of a modality,

    z = Σ_s z_s + Σ_m Σ_i g_{m,i} z_{m,i},    z_q the same of the codes,
    L = 12·‖e − dec(z_q)‖² + 10·Σ_m ‖e_m − dec_m(·)‖² + .005·Σ_groups ‖V Vᵀ − I‖² + β·commitment,

the rows of V being the weight matrices of one group's experts, flattened, at length 1: what is kept orthogonal are
parameters, not outputs [known]. What is ours:

- e are the parts as the item vectors hold them, of any width, each divided by its own deviation. Squares are means
  over dimensions, so that 1 is the error of the mean; of the whole, parts weigh as they do in the item vectors.
- dec_m reads Σ_s z_s + Σ_i g_{m,i} z_{m,i}.
- The paper does not say how codebooks learn: `codebook_update` has two ways.
- An item that lacks a modality (that part is zeros) has a learned e_m in its place, which starts at the mean of the
  others. So its shared experts are told, its own experts give it the code of what is unknown, and no decoder is
  asked for what nobody knows.
"""

import itertools
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import HfGrError
from .base import BATCH_SIZE, POSITIVE
from .codebooks import CodebookQuantizer, CodebookQuantizerConfig
from .kmeans import kmeans, means, nearest
from .neural import mlp
from .soft_index import SoftIndexQuantizer, cosines, one_hot_through


class MMQConfig(CodebookQuantizerConfig):
    """Config of [`MMQ`].

    Args:
        codebook_sizes: K of every expert: the shared ones first, then those of each modality, in their order.
        modalities: Names of the parts of a vector, in their order; two or more. The stage sets them.
        widths: Width of each; they sum to `dim`. The stage sets them.
        shared_experts: N_s.
        own_experts: N_m, the same for every modality.
        codebook_update: `"ema"`: decoders read z + sg(z_q − z), as published, and codes are moving averages of what
            chose them. `"gradient"`: decoders read ind·C, with [`~hf_gr.quantizers.SoftIndexQuantizer.soft_codes`]
            from the start, and codes follow the gradient.
        temperature: τ of the soft index.
        reconstruction: Weight of the error of the whole vector.
        modality_reconstruction: Weight of the errors of every modality.
        orthogonality: Weight of [`parameter_overlap`].
        side_dropout: Share of the items of a batch whose gates give way to the batch's mean, as `decode` without side
            has them.
    """

    model_type = "hf_gr_mmq"

    dim: int = 448
    codebook_sizes: list[int] | tuple[int, ...] = (256,) * 6
    modalities: list[str] | tuple[str, ...] = ("text", "behavior")
    widths: list[int] | tuple[int, ...] = (384, 64)
    shared_experts: int = 2
    own_experts: int = 2
    hidden_sizes: list[int] | tuple[int, ...] = (256,)
    learning_rate: float = 3e-3
    beta: float = 0.25
    codebook_update: Literal["ema", "gradient"] = "gradient"
    temperature: float = 0.07
    reconstruction: float = 12.0
    modality_reconstruction: float = 10.0
    orthogonality: float = 0.005
    side_dropout: float = 0.5

    limits: ClassVar = {
        "widths": (1, math.inf),
        "shared_experts": (0, math.inf),
        "own_experts": (1, math.inf),
        "temperature": POSITIVE,
        "reconstruction": (0, math.inf),
        "modality_reconstruction": (0, math.inf),
        "orthogonality": (0, math.inf),
        "side_dropout": (0, 1),
    }

    def __post_init__(self, **kwargs: Any) -> None:
        self.modalities, self.widths = list(self.modalities), list(self.widths)
        super().__post_init__(**kwargs)
        named = ", ".join(self.modalities)
        if len(set(self.modalities)) < 2:
            raise HfGrError(
                f"mmq needs vectors of two or more modalities, but these hold {named or 'none'}; embed with more "
                "sources (text, behavior, image, file), or use another method."
            )
        if len(self.widths) != len(self.modalities) or sum(self.widths) != self.dim:
            raise HfGrError(f"widths {self.widths} of {named} do not sum to dim {self.dim}; give one width each.")
        wanted = self.shared_experts + self.own_experts * len(self.modalities)
        if len(self.codebook_sizes) != wanted:
            raise HfGrError(
                f"mmq writes a code an expert: {self.shared_experts} shared and {self.own_experts} for each of "
                f"{named} are {wanted}, but there are {len(self.codebook_sizes)} levels; set levels to {wanted}, or "
                "change shared_experts and own_experts."
            )


class MMQ(SoftIndexQuantizer, CodebookQuantizer):
    """s_l = argmax_k cos(z_l, c_{l,k}); x̂ = Dec(Σ_l h_l c_{l,s_l}), h_l = 1 for shared experts. [`side`] is g.

    Where g is not known, [`decode`] takes its mean over the fitted vectors.
    """

    config_class = MMQConfig
    config: MMQConfig
    uses_parts = True

    def __init__(self, config: MMQConfig) -> None:
        super().__init__(config)
        width, hidden, own = config.latent_dim, config.hidden_sizes, config.own_experts
        ends = list(itertools.accumulate(config.widths, initial=0))
        self._parts = [slice(*pair) for pair in itertools.pairwise(ends)]
        # of each group of experts, the dimensions that they read: all of them, or those of one modality
        inputs = [slice(0, config.dim)] * config.shared_experts
        inputs += [part for part in self._parts for _ in range(own)]
        self._inputs = inputs
        self.side_width = own * len(self._parts)
        self.encoder = nn.ModuleList(mlp([read.stop - read.start, *hidden, width]) for read in inputs)
        self.gates = nn.ModuleList(mlp([size, width, own]) for size in config.widths)
        self.decoders = nn.ModuleList(mlp([width, *hidden[::-1], size]) for size in config.widths)
        self.absent = nn.Parameter(torch.empty(config.dim))  # in units of the deviation, 0 the mean
        self.register_buffer("scale", torch.empty(config.dim))
        self.register_buffer("usual_gates", torch.empty(self.side_width))
        self.post_init()

    @property
    def groups(self) -> list[str]:
        own = [name for name in self.config.modalities for _ in range(self.config.own_experts)]
        return ["shared"] * self.config.shared_experts + own

    @property
    def codebooks_learn(self) -> bool:
        return self.config.codebook_update == "gradient"

    def _layers(self) -> list[nn.Linear]:
        kinds = (self.encoder, self.gates, self.decoder, self.decoders)
        return [layer for kind in kinds for layer in kind.modules() if isinstance(layer, nn.Linear)]

    def _measure(self, vectors: np.ndarray) -> None:
        self.absent.zero_()
        for name, part in zip(self.config.modalities, self._parts, strict=True):
            mean, variance = _present_moments(vectors, part, name)
            self.mean[part] = torch.from_numpy(mean).to(self.mean)
            self.scale[part] = math.sqrt(variance) or 1.0

    def features(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [n, d] → e, float32 [n, d] with learned values for what is absent, and which parts are not."""
        present = torch.stack([batch[:, part].any(1) for part in self._parts], 1)
        values = (batch - self.mean) / self.scale
        return torch.where(self._spread(present), values, self.absent), present

    def _spread(self, present: torch.Tensor) -> torch.Tensor:
        """[n, M] → [n, d]."""
        return torch.cat([present[:, [m]].expand(-1, width) for m, width in enumerate(self.config.widths)], 1)

    def latents(self, batch: torch.Tensor) -> torch.Tensor:
        """float32 [n, d] → z of every expert, float32 [n, L, w]."""
        return self._experts(self.features(batch)[0])

    def _experts(self, features: torch.Tensor) -> torch.Tensor:
        experts = zip(self.encoder.children(), self._inputs, strict=True)
        return torch.stack([expert(features[:, read]) for expert, read in experts], 1)

    def _gates(self, features: torch.Tensor) -> torch.Tensor:
        """e → g, float32 [n, S]; the own experts of a modality sum to 1."""
        gates = zip(self.gates, self._parts, strict=True)
        return torch.cat([gate(features[:, part]).softmax(1) for gate, part in gates], 1)

    def _mixed(self, points: torch.Tensor, gates: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """[n, l ≤ L, w], [n or 1, S] → Σ over shared experts, and of every modality Σ over its own, each [n, w]."""
        shared, own = self.config.shared_experts, self.config.own_experts
        weighted = points[:, shared:] * gates[:, : max(points.shape[1] - shared, 0), None]
        starts = range(0, self.side_width, own)
        return points[:, :shared].sum(1), [weighted[:, start : start + own].sum(1) for start in starts]

    def _start(self, latents: torch.Tensor, seed: int) -> None:
        for level, points in enumerate(latents.unbind(1)):
            self._start_codebook(level, np.ascontiguousarray(points.cpu().numpy()), seed + level)

    def _start_codebook(self, level: int, points: np.ndarray, seed: int) -> None:
        """K-means of directions; a code is the mean of the points of its cluster."""
        if self.config.start == "random":
            super()._start_codebook(level, points, seed)
            return
        directions = F.normalize(torch.from_numpy(points), dim=1).numpy()
        centres = kmeans(directions, len(self.codebooks[level]), 10, seed)
        codes = means(points, nearest(directions, centres), centres)
        self.codebooks[level].copy_(torch.from_numpy(codes))
        self._forget(level, torch.arange(len(codes), device=self.device))

    def _level_ratings(self, batch: torch.Tensor) -> list[torch.Tensor]:
        return self._ratings(self.latents(batch))

    def _ratings(self, latents: torch.Tensor) -> list[torch.Tensor]:
        return [cosines(points, codes) for points, codes in zip(latents.unbind(1), self.codebooks, strict=True)]

    def _temperature(self) -> float:
        return self.config.temperature

    def _losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        config = self.config
        features, present = self.features(batch)
        latents, gates = self._experts(features), self._gates(features)
        hidden = (torch.rand(len(batch), 1) < config.side_dropout).to(gates.device)
        passed, chosen = self._passed(latents)
        shared, own = self._mixed(passed, torch.where(hidden, gates.mean(0), gates))
        # the values that are known; what is absent is learned and no target
        values = (batch - self.mean) / self.scale
        whole = self._errors(self.decoder(shared + torch.stack(own).sum(0)), values, present)
        each = [decode(shared + of_own) for decode, of_own in zip(self.decoders, own, strict=True)]
        shares = torch.stack([self.scale[part].square().sum() for part in self._parts])
        return {
            "reconstruction": config.reconstruction * (whole * shares / shares.sum()).sum(),
            "modalities": config.modality_reconstruction * self._errors(torch.cat(each, 1), values, present).sum(),
            "orthogonality": config.orthogonality * self.overlap(),
            "commitment": config.beta * (latents - chosen.detach()).square().mean((0, 2)).sum(),
        }

    def _passed(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What decoders read and the codes chosen, both float32 [n, L, w]; equal in value."""
        passed, chosen, self._seen = [], [], []
        averaged = self.config.codebook_update == "ema"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not averaged):
            ratings = self._ratings(latents)
        for level, (points, codebook) in enumerate(zip(latents.unbind(1), self.codebooks, strict=True)):
            codes = ratings[level].argmax(1)
            chosen.append(codebook[codes])
            self._seen.append((points.detach(), codes))
            if averaged:
                passed.append(points + (chosen[-1] - points).detach())
            else:
                passed.append(one_hot_through((ratings[level] / self._temperature()).softmax(1)) @ codebook)
        return torch.stack(passed, 1), torch.stack(chosen, 1)

    def _errors(self, decoded: torch.Tensor, values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """[n, d], [n, d], bool [n, M] → the mean square of each modality over the items that have it, [M]."""
        squares = (decoded - values).square()
        by_item = torch.stack([squares[:, part].mean(1) for part in self._parts], 1)
        return (by_item * present).sum(0) / present.sum(0).clamp(min=1)

    def overlap(self) -> torch.Tensor:
        """Σ over groups of experts of [`parameter_overlap`], float32 []."""
        groups: dict[str, list[nn.Module]] = {}
        for name, expert in zip(self.groups, self.encoder.children(), strict=True):
            groups.setdefault(name, []).append(expert)
        return torch.stack([parameter_overlap(experts) for experts in groups.values()]).sum()

    def _fit(self, vectors: np.ndarray, seed: int, progress: bool, checkpoint: Path | None) -> None:
        super()._fit(vectors, seed, progress, checkpoint)
        self._settle(vectors)

    @torch.no_grad()
    def _settle(self, vectors: np.ndarray) -> None:
        """The mean of g over all vectors, for `decode` without side."""
        total = torch.zeros_like(self.usual_gates, dtype=torch.float64)
        for start in range(0, len(vectors), BATCH_SIZE):
            features = self.features(self._tensor(vectors[start : start + BATCH_SIZE]))[0]
            total += self._gates(features).double().sum(0)
        self.usual_gates.copy_(total / len(vectors))

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.stack([ratings.argmax(1) for ratings in self._level_ratings(batch)], 1)

    def _side(self, batch: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return self._gates(self.features(batch)[0])

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        """1 − cos; no code depends on another."""
        return 1 - self._level_ratings(batch)[level]

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        points = torch.stack([self.codebooks[level][chosen] for level, chosen in enumerate(codes.T)], 1)
        shared, own = self._mixed(points, self.usual_gates[None] if side is None else side)
        return self.reconstructed(shared + torch.stack(own).sum(0))


def parameter_overlap(experts: list[nn.Module]) -> torch.Tensor:
    """‖V Vᵀ − I‖² with a row of V for every expert: all its weight matrices, flattened, at length 1 (MMQ) [known].

    Args:
        experts: m networks of linear layers of the same sizes.

    Returns:
        float32 [], Σ of the squared cosines of the m(m − 1) ordered pairs: 0 where all are at right angles.
    """
    flat = [
        torch.cat([layer.weight.flatten() for layer in expert.modules() if isinstance(layer, nn.Linear)])
        for expert in experts
    ]
    rows = F.normalize(torch.stack(flat), dim=1)
    return (rows @ rows.T - torch.eye(len(rows), device=rows.device)).square().sum()


def _present_moments(vectors: np.ndarray, part: slice, name: str) -> tuple[np.ndarray, float]:
    """As [`~hf_gr.quantizers.neural.moments`], of one part and the items that have it. [`HfGrError`] if none has."""
    total, squares, count = 0.0, 0.0, 0
    for start in range(0, len(vectors), BATCH_SIZE):
        chunk = vectors[start : start + BATCH_SIZE, part].astype(np.float64)
        total, squares = total + chunk.sum(axis=0), squares + np.square(chunk).sum(axis=0)
        count += int(chunk.any(axis=1).sum())
    if count == 0:
        raise HfGrError(f"no item has the modality {name!r} (all zeros); embed without this source.")
    mean = total / count
    return np.asarray(mean, np.float32), float((squares / count - np.square(mean)).clip(min=0).mean())
