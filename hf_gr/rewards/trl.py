"""Rewards as TRL calls them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..errors import HfGrError
from ..grammar import SidGrammar
from .rules import REWARDS


TrlReward = Callable[..., list[float]]


def answered_items(completion_ids: list[list[int]], grammar: SidGrammar) -> np.ndarray:
    """The item each completion recommends, int64 [rows]; −1 where it is not a live item's SID.

    Reads ids through the grammar, never text: SID tokens are special, so decoded completions are empty.
    """
    length = grammar.answer_length
    padded = [[*ids[:length], *[-1] * (length - len(ids))] for ids in completion_ids]  # −1 is no token
    tokens = torch.tensor(padded, dtype=torch.int64, device=grammar.device)
    items = grammar.items(grammar.walk(tokens), limit=1)
    return items[:, 0].cpu().numpy() if items.shape[1] else np.full(len(items), -1)


def trl_reward(name: str, grammar: SidGrammar, num_generations: int) -> TrlReward:
    """A reward by name in TRL's signature.

    The function reads `completion_ids`, the dataset column `target` (catalogue row) and `rollout_score`, which the
    rollouts hand over; rows come in groups of `num_generations`.
    """
    if name not in REWARDS:
        raise HfGrError(f"no reward is called {name!r}; there are: {', '.join(REWARDS)}.")
    function = REWARDS[name]

    def reward(
        completion_ids: list[list[int]], target: list[int], rollout_score: list[float], **_: Any
    ) -> list[float]:
        items = answered_items(completion_ids, grammar).reshape(-1, num_generations)
        targets = np.array(target).reshape(-1, num_generations)[:, 0]
        scores = np.array(rollout_score).reshape(-1, num_generations)
        return function(items, targets, scores).ravel().tolist()

    reward.__name__ = name
    return reward
