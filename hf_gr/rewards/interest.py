"""The interest-aware reward (DeepInterestGR, METHODS §4)."""

import numpy as np

from .knowledge import ItemKnowledge, Rollouts
from .rules import exact, prefix


def interest(
    rollouts: Rollouts,
    items: ItemKnowledge,
    *,
    valid_weight: float = 0.1,
    prefix_weight: float = 0.5,
    graded_weight: float = 0.2,
) -> np.ndarray:
    """r = 1[exact] + λ_v·1[valid] + λ_p·LCP/L + ½·1[exact]·q(target) + λ_g·overlap of the interests.

    The first four terms are the authors' [known], their weights and the last one ours. Under the grammar every rollout
    is valid, and q(target) is the same for a whole group, so neither moves a group-centred advantage but by scale: the
    prefix and the overlap tell near misses apart. The target has the overlap of [`overlap`] like any other item, so
    that no near miss is nearer than a hit.

    Args:
        rollouts: P prompts, G answers each.
        items: `quality` is q; until interests are mined, q is 1 and an item's categories are its interests.
        valid_weight: λ_v.
        prefix_weight: λ_p.
        graded_weight: λ_g.

    Returns:
        float64 [P, G]; 0 where there is no item. With λ = (.1, .5, .2), q = .8, two levels: the target, if it has
        interests, gets 1 + .1 + .5 + .4 + .2 = 2.2; an item that shares its first code and has an overlap of .25 gets
        .1 + .25 + .05 = .4; an item that has nothing in common with it, .1.
    """
    hit = exact(rollouts, items)
    return (
        hit
        + valid_weight * rollouts.valid
        + prefix_weight * prefix(rollouts, items)
        + 0.5 * hit * items.quality[rollouts.target]
        + graded_weight * overlap(rollouts, items)
    )


def overlap(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """Jaccard overlap of the item's and the target's interests, each interest weighted by its idf [ours].

    Σ idf of the interests that both have / Σ idf of those that either has, idf = log(N / items with the interest).

    Returns:
        float64 [P, G], between 0 and 1; 0 where nothing is shared, or only what all items have. Among 8 items, where
        "serum" is on 2 (idf log 4), "hair" on 4 (log 2) and "beauty" on all (0), an item with serum and beauty and a
        target with serum, hair and beauty overlap by log 4 / (log 4 + log 2) = 2/3.
    """
    answers = items.interests[rollouts.items.ravel()]
    targets = items.interests[np.broadcast_to(rollouts.target, rollouts.items.shape).ravel()]
    shared = answers.multiply(targets).tocsr() @ items.rarity
    either = (answers + targets) @ items.rarity - shared
    found = np.divide(shared, either, out=np.zeros_like(shared), where=shared > 0)
    return found.reshape(rollouts.items.shape) * rollouts.valid
