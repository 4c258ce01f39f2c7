"""GRPO: a model of `hf_gr.sft` learns from recommendation rewards under the grammar."""

from .config import GRPO_CONFIGS, GRPODataConfig, PolicyConfig, SidGRPOConfig
from .policy import policy_log_probs
from .prompts import training_prompts
from .run import grpo, main
from .trainer import SidGRPOTrainer, constrained_rollouts


__all__ = [
    "GRPO_CONFIGS",
    "GRPODataConfig",
    "PolicyConfig",
    "SidGRPOConfig",
    "SidGRPOTrainer",
    "constrained_rollouts",
    "grpo",
    "main",
    "policy_log_probs",
    "training_prompts",
]
