"""The interest-aware reward (DeepInterestGR, METHODS §4)."""

import numpy as np
import scipy.sparse as sp

from ..errors import HfGrError
from .knowledge import ItemKnowledge, Rollouts
from .rules import exact, prefix


def interest(
    rollouts: Rollouts,
    items: ItemKnowledge,
    *,
    valid_weight: float = 0.1,
    prefix_weight: float = 0.5,
    graded_weight: float = 0.2,
    user_weight: float = 0.0,
) -> np.ndarray:
    """r = 1[exact] + λ_v·1[valid] + λ_p·LCP/L + ½·1[exact]·q(target) + λ_g·overlap with the target + λ_u·match with
    the user.

    The first four terms are the authors' [known], their weights and the last two ours. Under the grammar every rollout
    is valid, and q(target) is the same for a whole group, so neither moves a group-centred advantage but by scale: the
    prefix, the overlap and the match tell near misses apart. The target has the overlap of [`overlap`] like any other
    item, so that no near miss is nearer than a hit.

    Args:
        rollouts: P prompts, G answers each.
        items: `quality` is q, `interests` are the mined and accepted ones; until interests are mined, q is 1 and an
            item's categories are its interests.
        valid_weight: λ_v.
        prefix_weight: λ_p.
        graded_weight: λ_g, of [`overlap`].
        user_weight: λ_u, of [`match`]; above 0 it needs the prompts' histories.

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
        + (user_weight * match(rollouts, items) if user_weight else 0.0)
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


def match(rollouts: Rollouts, items: ItemKnowledge) -> np.ndarray:
    """How much of an item's interests, each weighted by its idf, the user shares: those that any item of the prompt's
    history has; blind to the target [ours].

    Returns:
        float64 [P, G], between 0 and 1; 0 for items without interests. With the items of [`overlap`]: after a history
        of one item with hair, an item with serum and hair matches by log 2 / (log 4 + log 2) = 1/3.

    Raises:
        HfGrError: If the rollouts come without histories: the dataset has no column `history`.
    """
    if rollouts.taken is None:
        raise HfGrError("it needs each prompt's history; add a column `history` of catalog rows to the dataset.")
    known = rollouts.taken >= 0
    prompt = np.nonzero(known)[0]
    shape = (len(rollouts.taken), len(items))
    histories = sp.coo_array((np.ones(len(prompt)), (prompt, rollouts.taken[known])), shape=shape).tocsr()
    users = (histories @ items.interests).sign()
    answers = items.interests[rollouts.items.ravel()]
    asked = users[np.repeat(np.arange(shape[0]), rollouts.items.shape[1])]
    shared = answers.multiply(asked).tocsr() @ items.rarity
    own = answers @ items.rarity
    found = np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)
    return found.reshape(rollouts.items.shape) * rollouts.valid
