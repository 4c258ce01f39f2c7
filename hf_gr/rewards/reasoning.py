"""Rewards of REG4Rec (METHODS §5): PARS, which look at an answer's codes step by step, and MSRA, which look ahead.

A token's category is the majority category of the items that carry it ([`ItemKnowledge.token_category`]). Steps are
counted in the order of the codebooks, since a reward is told the item, not the order in which its codes were written.
The examples have three levels.
"""

from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np

from ..errors import HfGrError
from .knowledge import ItemKnowledge, Reward, Rollouts
from .rules import equal_codes


def step_hit(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Share of an item's codes that are the target's, codebook by codebook [known].

    Returns:
        float64 [P, G], between 0 and 1. SIDs (2, 5, 1), (0, 5, 3), no item for a target of SID (2, 5, 3) give
        (2/3, 2/3, 0); [`prefix`] gives (2/3, 0, 0).
    """
    return equal_codes(rollouts, items).mean(axis=2)


def global_path(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """1 where all codes are the target's, else 0 [known]. Unlike [`exact`], 1 on every item of the target's SID.

    Returns:
        float64 [P, G]. SIDs (2, 5, 3), (2, 5, 1), no item for a target of SID (2, 5, 3) give (1, 0, 0).
    """
    return equal_codes(rollouts, items).prod(axis=2, dtype=np.float64)


def category_hit(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Share of an item's codes whose category is the target's [known; the item's one category: ours].

    Returns:
        float64 [P, G], between 0 and 1; 0 where the target has no category. Codes of the categories
        (serum, hair, serum), (none, serum, hair), no item for a target of category serum give (2/3, 1/3, 0).
    """
    wanted = items.category[rollouts.target][:, :, None]
    return ((_categories(rollouts, items) == wanted) & (wanted >= 0)).mean(axis=2)


def step_consistency(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Share of adjacent codes that agree in category; blind to the target [known]. Codes without a category do not.

    Returns:
        float64 [P, G], between 0 and 1; 0 for SIDs of one code. Codes of the categories (serum, serum, hair),
        (hair, hair, hair), (none, none, hair), no item give (1/2, 1, 0, 0).
    """
    found = _categories(rollouts, items)
    agree = (found[:, :, 1:] == found[:, :, :-1]) & (found[:, :, 1:] >= 0)
    return agree.sum(axis=2) / max(agree.shape[2], 1)


def _categories(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Category of every code of the answers, int64 [P, G, L]; −1 where there is none."""
    codes = items.codes[rollouts.items]
    found = np.stack([of[codes[:, :, level]] for level, of in enumerate(items.token_category)], axis=2)
    return np.where(rollouts.valid[:, :, None], found, -1)


def over_horizon(reward: Reward, decay: float) -> Reward:
    """`reward` against the next n items instead of the next one (MSRA) [known].

    Σ_{j<n} decay^j · reward(against target j) / Σ decay^j, over the targets that exist (the division: ours, so that
    users with fewer events left count alike). With one target it is the reward itself.

    Example: decay .5 and rewards (1, 0, 1) against three targets give (1 + .25) / (1 + .5 + .25) = .714; if the user
    has no third one, 1 / 1.5 = .667.

    Args:
        reward: Any reward.
        decay: γ, between 0 (the first target alone) and 1 (all alike).

    Raises:
        HfGrError: If `decay` is not between 0 and 1.
    """
    if not 0 <= decay <= 1:
        raise HfGrError(f"decay is {decay}; give a number between 0 (the next item alone) and 1 (all items alike).")

    @wraps(reward)
    def horizon(rollouts: Rollouts, items: ItemKnowledge, **parameters: Any) -> np.ndarray:
        total, weights = np.zeros(rollouts.items.shape), np.zeros((len(rollouts.items), 1))
        for place in range(rollouts.targets.shape[1]):
            targets = rollouts.targets[:, place : place + 1]
            weight = decay**place * (targets >= 0)
            # where there is none, any target serves: its weight is 0
            against = replace(rollouts, targets=np.where(targets >= 0, targets, rollouts.target))
            total += weight * reward(against, items, **parameters)
            weights += weight
        return total / weights

    return horizon
