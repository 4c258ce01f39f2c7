"""Rule rewards of MiniOneRec (METHODS §0), item-level.

Each function takes the items that a batch of rollouts recommends, in groups of one prompt's rollouts, and returns one
reward a rollout. On a shared SID only the item that the bucket order returns first is the answer.
"""

import numpy as np


def exact(items: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """1 on the target, else 0 [known].

    Args:
        items: int64 [groups, G], catalogue rows.
        targets: int64 [groups].
        scores: float [groups, G], log-probability of each rollout when it was drawn (not used).

    Returns:
        float [groups, G]. Items (4, 7) for target 7 give (0, 1).
    """
    return (items == targets[:, None]).astype(np.float64)


def ranking(items: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Penalty on wrong items, the larger the higher they were ranked, in groups that hold the target [known].

    A wrong item at rank i (from 0, by `scores`, highest first) gets −w_i with
    w_i = (1/log₂(i+2)) / Σ_j 1/log₂(j+2), j over the group. The target gets 0, and so does every item of a group that
    does not hold the target.

    Args and returns: as [`exact`]. Items (4, 7, 9) of falling score for target 7: the weights 1, .631, .5 add up to
    2.131, so the rewards are (−.469, 0, −.235).
    """
    rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    discount = 1 / np.log2(rank + 2)
    weight = discount / discount.sum(axis=1, keepdims=True)
    hit = items == targets[:, None]
    return np.where(hit | ~hit.any(axis=1, keepdims=True), 0.0, -weight)


REWARDS = {"exact": exact, "ranking": ranking}
