"""GRPO: a model of `hf_gr.sft` learns from recommendation rewards under the grammar."""

from .config import SidGRPOConfig
from .policy import policy_log_probs
from .run import grpo, main, training_prompts
from .trainer import SidGRPOTrainer, constrained_rollouts


__all__ = [
    "SidGRPOConfig",
    "SidGRPOTrainer",
    "constrained_rollouts",
    "grpo",
    "main",
    "policy_log_probs",
    "training_prompts",
]
