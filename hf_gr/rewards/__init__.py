"""Rewards: what a recommended item is worth."""

from .rules import REWARDS, exact, ranking
from .trl import answered_items, trl_reward


__all__ = ["REWARDS", "answered_items", "exact", "ranking", "trl_reward"]
