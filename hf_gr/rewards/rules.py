"""Rewards for one answer: whether it is the target, how near it is, how well it is known.

Every reward is a plain function of a batch of [`Rollouts`], of what is known of the items, and of parameters of its
own. Rewards are item-level: on a shared SID only the item that the bucket order returns first is the answer. The
examples below are one prompt's group.
"""

import numpy as np

from ..errors import HfGrError
from .knowledge import ItemKnowledge, Rollouts


def exact(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """1 on the target, else 0 (MiniOneRec, METHODS §0) [known].

    Returns:
        float64 [P, G]. Answers (4, 7, no item) for target 7 give (0, 1, 0).
    """
    return rollouts.hits.astype(np.float64)


def ranking(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Penalty on wrong items, the larger the higher they were ranked, in groups that hold the target.

    A wrong item at rank i (from 0, by score, highest first) gets −w_i with
    w_i = (1/log₂(i+2)) / Σ_j 1/log₂(j+2), j over the group. The target gets 0, and so does every item of a group that
    does not hold the target (MiniOneRec, METHODS §0) [known]. A rollout that is no item is wrong like any other
    [ours].

    Returns:
        float64 [P, G]. Answers (4, 7, 9) of falling score for target 7: the weights 1, .631, .5 add up to 2.131, so
        the rewards are (−.469, 0, −.235).
    """
    rank = np.argsort(np.argsort(-rollouts.scores, axis=1, kind="stable"), axis=1)
    discount = 1 / np.log2(rank + 2)
    weight = discount / discount.sum(axis=1, keepdims=True)
    return np.where(rollouts.hits | ~rollouts.hits.any(axis=1, keepdims=True), 0.0, -weight)


def prefix(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Share of the SID, from its start, that item and target have in common: LCP / L (DeepInterestGR, METHODS §4).

    Another item on the target's SID gets 1 as well. [known]

    Returns:
        float64 [P, G], between 0 and 1. Answers of SIDs (2, 5, 1), (2, 4, 3), (0, 5, 3), no item for a target of SID
        (2, 5, 3) give (2/3, 1/3, 0, 0).
    """
    equal = equal_codes(rollouts, items)
    return np.cumprod(equal, axis=2).sum(axis=2) / equal.shape[2]


def equal_codes(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """On which levels item and target have the same code, bool [P, G, L]; on none where there is no item."""
    return (items.codes[rollouts.items] == items.codes[rollouts.target]) & rollouts.valid[:, :, None]


def ndcg(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """NDCG of the group as a list of answers, given to the rollouts that are the target; 0 to the others [ours].

    1/log₂(r+2), r the target's rank from 0 among the distinct items of the group, each with its best score. So a hit
    is worth more where the policy is surer of it than of other items. Rollouts that are no item take no rank.

    Returns:
        float64 [P, G]. Answers (4, 7, 4, 7) of falling score for target 7: among the distinct items 4, 7 it has rank
        1, so the rewards are (0, .631, 0, .631).
    """
    order = np.argsort(-rollouts.scores, axis=1, kind="stable")
    ranked, hits = np.take_along_axis(rollouts.items, order, axis=1), np.take_along_axis(rollouts.hits, order, axis=1)
    seen = np.tril(ranked[:, :, None] == ranked[:, None, :], -1).any(axis=2)
    first = ~seen & (ranked >= 0)
    place = np.maximum(np.cumsum(first, axis=1), 1)  # rank + 1 of an item; what comes before the first one is none
    worth = (first & hits) / np.log2(place + 1)
    return worth.sum(axis=1, keepdims=True) * rollouts.hits


def semantic(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Cosine of the item's and the target's vector [ours].

    Returns:
        float64 [P, G], between −1 and 1; −1 where there is no item. Answers with vectors (0, 1), (1, 0), (−.6, −.8)
        and no item for a target with vector (.6, .8) give (.8, .6, −1, −1).
    """
    ours, theirs = items.vectors[rollouts.items], items.vectors[rollouts.target]
    return np.where(rollouts.valid, (ours.astype(np.float64) * theirs).sum(axis=2), -1.0)


def collaborative(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """How often item and target stand near each other in training histories, 1 on the target itself [ours].

    c_ij / √(c_i·c_j) of [`ItemKnowledge.together`].

    Returns:
        float64 [P, G], between 0 and 1; 0 where there is no item. If the training histories are (0, 1), (0, 1) and
        (0, 2), c₀₁ = 2, c₀₂ = 1, so c₀ = 3, c₁ = 2, c₂ = 1: for target 0 answers (1, 2, 0, 3, no item) give
        2/√6 = .816, 1/√3 = .577, 1, 0, 0.
    """
    near = items.together[rollouts.items, np.broadcast_to(rollouts.target, rollouts.items.shape)].toarray()
    return np.where(rollouts.hits, 1.0, near) * rollouts.valid


def repeat(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Penalty on what the user has taken already, as the prompt's history tells; blind to the target.

    For catalogs in which nothing is taken twice: models put much of their weight on the very items of the history
    (a quarter of first places on Amazon data), since those are like what comes next [ours].

    Returns:
        float64 [P, G], −1 or 0. Answers (4, 7, 9, no item) after a history of (9, 4) give (−1, 0, −1, 0).

    Raises:
        HfGrError: If the rollouts come without histories: the dataset has no column `history`.
    """
    if rollouts.taken is None:
        raise HfGrError("it needs each prompt's history; add a column `history` of catalog rows to the dataset.")
    taken = (rollouts.items[:, :, None] == rollouts.taken[:, None, :]).any(axis=2)
    return -(taken & rollouts.valid).astype(np.float64)


def novelty(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Penalty on popular items, −log(1 + n_i) / log(1 + max_j n_j) with n the training events; blind to the target.

    Alone it teaches to recommend what nobody takes: it belongs into a mix, with a small weight [ours].

    Returns:
        float64 [P, G], from −1 (the most popular item, or no item) to 0 (an item that nobody took). Training events
        (7, 1, 0) give the items −log 8/log 8 = −1, −log 2/log 8 = −1/3, 0.
    """
    known = np.log1p(items.popularity)
    most = known.max()
    penalty = known / most if most > 0 else known
    return np.where(rollouts.valid, 0.0 - penalty[rollouts.items], -1.0)
