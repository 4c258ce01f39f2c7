"""Supervised fine-tuning: from histories to a model that writes the next item's SID."""

from .config import SFT_CONFIGS, SidDataConfig, SidModelConfig, SidSFTConfig
from .run import main, sft, starting_model
from .tasks import TASKS
from .trainer import SidSFTTrainer


__all__ = [
    "SFT_CONFIGS",
    "TASKS",
    "SidDataConfig",
    "SidModelConfig",
    "SidSFTConfig",
    "SidSFTTrainer",
    "main",
    "sft",
    "starting_model",
]
