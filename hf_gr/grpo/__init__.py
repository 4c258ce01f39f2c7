"""GRPO: a model of `hf_gr.sft` learns from recommendation rewards under the grammar."""

from .config import SidGRPOConfig
from .trainer import SidGRPOTrainer, grpo, main


__all__ = ["SidGRPOConfig", "SidGRPOTrainer", "grpo", "main"]
