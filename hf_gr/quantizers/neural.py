"""What quantizers that are trained by gradients share: encoder, decoder, and a fit that streams and resumes.

The loop is plain PyTorch on one device, not a `Trainer`: a codebook is small beside the model it serves, EMA
counts and the revival of dead codes want to see every batch whole, and of several processes only the first one fits.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import initialization

from ..artifacts import replacing
from ..errors import HfGrError
from .base import BATCH_SIZE, POSITIVE, Quantizer, QuantizerConfig
from .vectors import CHUNK, sample_rows, shuffled_batches


class NeuralQuantizerConfig(QuantizerConfig):
    """Config of quantizers with an encoder and a decoder.

    Args:
        hidden_sizes: Widths of the encoder's hidden layers; the decoder has them in reverse.
        latent_dim: w, width of what is quantized.
        epochs: Passes over the vectors.
        batch_size: Vectors per step.
        learning_rate: Peak of AdamW's; warmed up over the first twentieth of the steps, then on a cosine to 0.
        weight_decay: AdamW's, on the weights of encoder and decoder.
        sample_size: Vectors that the start of the codebooks is computed from, at most (but one for each code).
    """

    hidden_sizes: list[int] | tuple[int, ...] = (512, 256)
    latent_dim: int = 64
    epochs: int = 100
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    sample_size: int = 65_536

    limits: ClassVar = {
        "hidden_sizes": (1, math.inf),
        "latent_dim": (1, math.inf),
        "epochs": (0, math.inf),  # 0: codes stay where K-means put them
        "batch_size": (1, math.inf),
        "learning_rate": POSITIVE,
        "weight_decay": (0, math.inf),
        "sample_size": (1, math.inf),
    }

    def __post_init__(self, **kwargs: Any) -> None:
        self.hidden_sizes = list(self.hidden_sizes)
        super().__post_init__(**kwargs)


class NeuralQuantizer(Quantizer):
    """z = Enc((x − μ)/σ) is quantized to ẑ, and x̂ = μ + σ·Dec(ẑ); μ [d] and the one number σ are the data's [ours].

    σ² is the mean of the dimensions' variances, so a constant dimension does no harm; where nothing varies at all
    (one code is enough then), σ is 1.

    A method implements `_start`, `_losses` and, where codebooks change outside the gradient, `_after_step` and
    `_after_epoch`.

    Attributes:
        fit_log: One entry an epoch: the mean of every part of the loss.
    """

    config_class = NeuralQuantizerConfig
    config: NeuralQuantizerConfig

    def __init__(self, config: NeuralQuantizerConfig) -> None:
        super().__init__(config)
        widths = [config.dim, *config.hidden_sizes, config.latent_dim]
        self.encoder: nn.Module = mlp(widths)
        self.decoder = mlp(widths[::-1])
        self.register_buffer("mean", torch.empty(config.dim))
        self.register_buffer("scale", torch.empty(()))
        self.fit_log: list[dict[str, float]] = []

    def _layers(self) -> list[nn.Linear]:
        """The layers whose weights a fit draws anew, and lets decay."""
        modules = [*self.encoder.modules(), *self.decoder.modules()]
        return [module for module in modules if isinstance(module, nn.Linear)]

    def _init_weights(self, module: nn.Module) -> None:
        # NaN marks what neither `fit` nor a checkpoint has set; `check_fitted` looks for it
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():
                initialization.constant_(tensor, float("nan"))

    def _start(self, latents: torch.Tensor, seed: int) -> None:
        """Gives codebooks their first values from a sample of latents, float32 [n, w]."""
        raise NotImplementedError

    def _losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weighted parts of the loss of vectors float32 [n, d]; their sum is minimised."""
        raise NotImplementedError

    def _after_step(self) -> None:
        """What changes after every step without a gradient."""

    def _after_epoch(self, progress: float) -> None:
        """What changes after every epoch; `progress` is the share of the epochs done."""

    def latents(self, batch: torch.Tensor) -> torch.Tensor:
        """float32 [n, d] → z, float32 [n, w]."""
        return self.encoder((batch - self.mean) / self.scale)

    def reconstructed(self, latents: torch.Tensor) -> torch.Tensor:
        """ẑ, float32 [n, w] → x̂, float32 [n, d]."""
        return self.mean + self.scale * self.decoder(latents)

    def reconstruction_loss(self, batch: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """‖x − x̂‖² / (d σ²), mean over the batch: 1 for what always answers μ."""
        return ((batch - self.mean) / self.scale - self.decoder(latents)).square().mean()

    def _fit(self, vectors: np.ndarray, seed: int, progress: bool, checkpoint: Path | None) -> None:
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            self._reset(vectors, seed)
            config = self.config
            steps = config.epochs * sum(math.ceil(length / config.batch_size) for length in _chunks(len(vectors)))
            optimizer = torch.optim.AdamW(self._groups(), lr=config.learning_rate, fused=True)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps))
            state = _FitState(self, optimizer, schedule, {"seed": seed, "rows": len(vectors)})
            first = state.load(checkpoint) if checkpoint is not None and checkpoint.is_file() else 0
            name = config.model_type.removeprefix("hf_gr_")
            with tqdm(total=config.epochs, initial=first, desc=name, unit="epoch", disable=not progress) as bar:
                for epoch in range(first, config.epochs):
                    # all chance depends on seed and epoch alone, so a resumed fit sees what an unkilled one does
                    random = np.random.default_rng([seed, epoch])
                    torch.manual_seed(int(random.integers(2**62)))
                    order = shuffled_batches(len(vectors), config.batch_size, random)
                    self.fit_log.append(self._epoch(vectors, order, optimizer, schedule))
                    self._after_epoch((epoch + 1) / config.epochs)
                    bar.set_postfix({key: f"{value:.4f}" for key, value in self.fit_log[-1].items()})
                    bar.update()
                    if checkpoint is not None:
                        state.save(checkpoint, epoch + 1)

    def _epoch(
        self,
        vectors: np.ndarray,
        order: Any,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> dict[str, float]:
        names: list[str] = []
        total = torch.zeros((), device=self.device)  # read once an epoch: every reading makes an accelerator wait
        for rows in order:
            parts = self._losses(self._tensor(vectors[rows]))
            names, values = list(parts), torch.stack(list(parts.values()))
            optimizer.zero_grad()
            values.sum().backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            self._after_step()
            total = total + values.detach() * len(rows)
        means = dict(zip(names, (total / len(vectors)).tolist(), strict=True))
        if not math.isfinite(sum(means.values())):
            raise HfGrError(
                f"the loss of {self.config.model_type} is no longer finite ({means}); lower learning_rate."
            )
        return means

    @torch.no_grad()
    def _reset(self, vectors: np.ndarray, seed: int) -> None:
        self._measure(vectors)
        self.fit_log = []
        for layer in self._layers():
            layer.reset_parameters()
        sample = self._tensor(sample_rows(vectors, max(self.config.sample_size, *self.config.codebook_sizes), seed))
        self._start(torch.cat([self.latents(part) for part in sample.split(CHUNK)]), seed)

    def _measure(self, vectors: np.ndarray) -> None:
        """Sets μ and σ."""
        mean, variance = moments(vectors)
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.fill_(math.sqrt(variance) or 1.0)

    def _groups(self) -> list[dict[str, Any]]:
        """Weights of encoder and decoder decay; biases and what else is learned do not."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        decayed = {id(layer.weight) for layer in self._layers()}
        return [
            {"params": [p for p in trained if id(p) in decayed], "weight_decay": self.config.weight_decay},
            {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
        ]


class _FitState:
    """What a killed fit needs to go on, in one file that replaces its predecessor atomically."""

    def __init__(
        self, model: NeuralQuantizer, optimizer: torch.optim.Optimizer, schedule: Any, data: dict[str, int]
    ) -> None:
        self._model, self._optimizer, self._schedule = model, optimizer, schedule
        self._fit = {"config": model.config.to_json_string(), **data}

    def save(self, file: Path, epoch: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "fit": self._fit,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": {"last_epoch": self._schedule.last_epoch},
            "log": self._model.fit_log,
            "epoch": epoch,
        }
        with replacing(file) as half:
            torch.save(state, half)

    def load(self, file: Path) -> int:
        """Epochs done. Raises [`HfGrError`] if the file is of a fit with other settings, seed or number of vectors."""
        state = torch.load(file, weights_only=True, map_location=self._model.device)
        if state["fit"] != self._fit:
            raise HfGrError(f"{file} is of another fit (config, seed or vectors differ); remove it to start anew.")
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.last_epoch = state["schedule"]["last_epoch"]
        self._model.fit_log = state["log"]
        return state["epoch"]


def one_hot(codes: torch.Tensor, size: int, like: torch.Tensor) -> torch.Tensor:
    """[n, size] of codes int64 [n]; sums are products with it, as adding at indices has no fixed order on a GPU."""
    return like.new_zeros(len(codes), size).scatter_(1, codes[:, None], 1.0)


def revive(codebook: torch.Tensor, used: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Puts codes that nobody used, `used` bool [K], on residuals [n, w] drawn at random; returns which, int64."""
    places = residual.unique(dim=0)  # two codes on one place would leave one of them dead
    dead = (~used).nonzero()[: len(places), 0]
    codebook[dead] = places[torch.randperm(len(places))[: len(dead)].to(dead.device)]
    return dead


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers from width to width, ReLU between."""
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def moments(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean of every dimension, float32 [d], and the mean over dimensions of their variances; read in chunks."""
    # as differences from the first vector, lest a large mean eat the digits of a small variance
    shift = np.array(vectors[0], dtype=np.float64)
    total, squares = np.zeros_like(shift), np.zeros_like(shift)
    for start in range(0, len(vectors), BATCH_SIZE):
        chunk = vectors[start : start + BATCH_SIZE] - shift
        total += chunk.sum(axis=0)
        squares += np.einsum("nd,nd->d", chunk, chunk)
    mean = total / len(vectors)
    variance = (squares / len(vectors) - np.square(mean)).clip(min=0).mean()
    return (mean + shift).astype(np.float32), float(variance)


def _chunks(num_rows: int) -> list[int]:
    return [min(CHUNK, num_rows - start) for start in range(0, num_rows, CHUNK)]


def _warm_cosine(step: int, steps: int) -> float:
    warm = max(steps // 20, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
