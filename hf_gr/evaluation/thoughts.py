"""Whether thoughts come true: how often they point at what was written then, and at what the user took."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..dataset import Cases
from .judging import user_numbers
from .metrics import bootstrap_interval


if TYPE_CHECKING:
    from ..thoughts import Explanation, Thought, Thoughts

_CASES, _EXAMPLES, _EVENTS = 2000, 6, 10


def judge_thoughts(
    thoughts: "Thoughts", cases: Cases, top_items: np.ndarray, *, batch_size: int = 32, seed: int = 0
) -> dict[str, Any] | None:
    """What the report says of thoughts: their [`agreement`] over at most 2,000 cases, and six users' in full.

    Args:
        thoughts: To be judged.
        cases: Histories and targets in rows of the model's catalog; −1 for a target that it lacks.
        top_items: int64 [cases], the item that the model puts first; −1 for none. Cases without either are left out.
        batch_size: Cases per forward pass.
        seed: Of the sample of cases, of the six users and of the intervals.

    Returns:
        What [`agreement`] returns and `examples`: each with `user`, `history` (the last ten titles), `recommended`
        and `truth` (titles), whether they are the same item (`hit`), and `thoughts`, those behind the recommended one
        as the pipeline has them. `None` where no case is left.
    """
    usable = np.flatnonzero((cases.targets >= 0) & (top_items >= 0))
    if not len(usable):
        return None
    drawn = np.random.default_rng(seed).permutation(usable)[:_CASES]
    chosen = cases.take(drawn)
    found = agreement(thoughts, chosen, top_items[drawn], batch_size=batch_size, seed=seed)
    return found | {"examples": _examples(thoughts, chosen, top_items[drawn])}


def agreement(
    thoughts: "Thoughts", cases: Cases, top_items: np.ndarray, *, batch_size: int = 32, seed: int = 0
) -> dict[str, Any]:
    """How often a thought's first cluster is that of what was written, and that of the truth.

    The truth's share is read along the truth's own path (its earlier codes given), that of the answer along the
    answer's. It stands beside naming the same cluster in every case, the one that most truths are of: chosen with
    the truths known, it is the hardest constant to beat.

    Args:
        thoughts: To be measured.
        cases: Histories and targets, in rows of the model's catalog.
        top_items: int64 [cases], the item that the model puts first.
        batch_size: Cases per forward pass.
        seed: Of the 95 % bootstrap intervals over users.

    Returns:
        `cases`; `levels`, each with `level` (from 1) and, as `{"value", "low", "high"}`, `top_item` and `truth`
        (shares that agree), `most_frequent` (the constant's share) and `difference` (`truth` less `most_frequent`,
        paired); `interest`, the same without `level`, or `None`.
    """
    order = np.argsort(-cases.ends, kind="stable")  # similar lengths share a batch
    pairs: list[list[Explanation]] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        both = np.stack([top_items[chosen], cases.targets[chosen]], axis=1)
        pairs += thoughts.explain(cases.take(chosen).histories, both)
    users = user_numbers(cases)[order]
    by_level = [
        [[one.levels[number] for one in pair] for pair in pairs] for number in range(thoughts.heads.num_levels)
    ]
    interests = [[one.interest for one in pair if one.interest is not None] for pair in pairs]
    return {
        "cases": len(cases),
        "levels": [{"level": number} | _shares(own, users, seed) for number, own in enumerate(by_level, 1)],
        "interest": _shares(interests, users, seed) if thoughts.heads.interest is not None else None,
    }


def _shares(pairs: "list[list[Thought]]", users: np.ndarray, seed: int) -> dict[str, Any]:
    """Of the thoughts [cases, 2] before the answer and before the truth."""
    agrees = np.array([[thought.agrees for thought in pair] for pair in pairs], np.float64)
    truths = np.array([pair[1].own.cluster for pair in pairs])
    constant = (truths == np.bincount(truths).argmax()).astype(np.float64)
    columns = np.column_stack([agrees, constant, agrees[:, 1] - constant])
    low, high = bootstrap_interval(columns, seed, groups=users)
    names = ("top_item", "truth", "most_frequent", "difference")
    return {
        name: {"value": float(value), "low": float(a), "high": float(b)}
        for name, value, a, b in zip(names, columns.mean(axis=0), low, high, strict=True)
    }


def _examples(thoughts: "Thoughts", cases: Cases, top_items: np.ndarray) -> list[dict[str, Any]]:
    rows = np.arange(min(_EXAMPLES, len(cases)))  # the cases stand in random order
    histories = cases.take(rows).histories
    told = thoughts.explain(histories, top_items[rows][:, None])
    titles = thoughts.recommender.catalog.titles
    return [
        {
            "user": str(user),
            "history": [titles[item] for item in history[-_EVENTS:]],
            "recommended": titles[own.item],
            "truth": titles[truth],
            "hit": bool(own.item == truth),
            "thoughts": own.described(),
        }
        for user, history, truth, (own,) in zip(histories.user_ids, histories, cases.targets[rows], told, strict=True)
    ]
