"""Supervised fine-tuning: from histories to a model that writes the next item's SID."""

from .config import SidSFTConfig
from .trainer import SidSFTTrainer, main, sft


__all__ = ["SidSFTConfig", "SidSFTTrainer", "main", "sft"]
