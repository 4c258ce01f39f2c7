"""What keeps a training from ending in a worthless model: losses, gradients and weights that are not finite, and
checkpoints that are not whole."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from transformers import ProgressCallback, Trainer

from .errors import HfGrError


SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


class FiniteTrainer(Trainer):
    """A trainer that stops at the first loss or gradient that is not finite, before the optimizer steps.

    Stands first among the bases. What it reads waits for the device once a micro-batch, as transformers' filter of
    such losses does, which has to be off.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; the progress bar is closed before an error is told."""
        try:
            return super().train(*args, **kwargs)
        except BaseException:
            progress = self.pop_callback(ProgressCallback)
            for bar in () if progress is None else (progress.prediction_bar, progress.training_bar):
                if bar is not None:
                    bar.close()
            raise

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._check("loss", loss, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        # the scaler of fp16 leaves such steps out by itself; on sharded weights the next loss tells
        if norm is not None and self.accelerator.scaler is None and self.accelerator.distributed_type not in SHARDED:
            self._check("gradient's norm", norm, self.state.global_step + 1)
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)
        if "eval_loss" in logs:
            self._check("validation loss", logs["eval_loss"], self.state.global_step)

    def _check(self, what: str, value: torch.Tensor | float, step: int) -> None:
        if not math.isfinite(float(value)):
            raise HfGrError(
                f"the {what} of step {step} is {float(value)}, so training has diverged and no "
                f"model is written; lower learning_rate ({self.args.learning_rate:g})."
            )


def check_finite(model: torch.nn.Module) -> None:
    """Raises [`HfGrError`] that names the first weight of a trained model which holds NaN or infinity."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise HfGrError(
                f"training has diverged: {name} holds NaN or infinity, and no model is written; lower learning_rate."
            )


def is_whole(checkpoint: Path) -> bool:
    """Whether a trainer's checkpoint can be read: its state parses, and none of its files was cut short."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for file in checkpoint.glob("*.safetensors"):
            with safe_open(file, framework="pt"):  # which compares the header with the file's length
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all(zipfile.is_zipfile(file) for kind in ("*.pt", "*.pth") for file in checkpoint.glob(kind))
