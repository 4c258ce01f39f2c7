"""Supervised fine-tuning: from histories to a model that writes the next item's SID."""

from .config import SidSFTConfig
from .run import main, sft
from .tasks import TASKS
from .trainer import SidSFTTrainer


__all__ = ["TASKS", "SidSFTConfig", "SidSFTTrainer", "main", "sft"]
