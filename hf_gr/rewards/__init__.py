"""Rewards: what a recommended item is worth."""

from .interest import interest
from .knowledge import ItemKnowledge, Reward, Rollouts
from .mix import REWARDS, Weighted, parse_mix
from .reasoning import category_hit, global_path, over_horizon, step_consistency, step_hit
from .rules import collaborative, exact, ndcg, novelty, prefix, ranking, repeat, semantic
from .trl import RolloutReader, answered_items, trl_reward, trl_rewards


__all__ = [
    "REWARDS",
    "ItemKnowledge",
    "Reward",
    "RolloutReader",
    "Rollouts",
    "Weighted",
    "answered_items",
    "category_hit",
    "collaborative",
    "exact",
    "global_path",
    "interest",
    "ndcg",
    "novelty",
    "over_horizon",
    "parse_mix",
    "prefix",
    "ranking",
    "repeat",
    "semantic",
    "step_consistency",
    "step_hit",
    "trl_reward",
    "trl_rewards",
]
