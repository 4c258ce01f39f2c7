"""Ranking metrics over full catalogs, as plain NumPy functions.

Every case has one target, so with `rank` counted from 0

    HR@k   = [rank < k]
    NDCG@k = [rank < k] / log2(rank + 2)        (the ideal DCG of one target is 1)
    MRR@k  = [rank < k] / (rank + 1)

They are returned per case; the caller averages. Lists are int64 [cases, K], best first: an item is its row in the
catalog, `MISSING` (-1) stands where a list has ended, and any other number outside the catalog is an invalid
answer that keeps its rank.

A rank is always a place in a list that could be shown. Where a list is made of scores, equal ones stand in an order
that knows nothing of the target (drawn at random, or by popularity), never in favour of it, and scores that are not
finite make no list ([`check_finite`]): so a model whose scores are all equal has HR@k of about k / items.
"""

import numpy as np

from ..errors import HfGrError


KS = (1, 3, 5, 10, 20, 50)
MISSING = -1
INVALID = -2
MISS = 2**62  # rank of a target that is not in its list: beyond every k, whatever the lists' width


def check_finite(scores: np.ndarray) -> None:
    """Raises [`HfGrError`] where a score is NaN or infinite: no order of items follows from it."""
    if not np.isfinite(scores).all():
        raise HfGrError(
            "the model's scores are not finite, so they rank nothing; its training has diverged: train it again with "
            "a lower learning_rate."
        )


def target_ranks(recommended: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of each target in its list.

    Args:
        recommended: int64 [cases, K], K ≥ 1.
        targets: int64 [cases]; a negative target is never found.

    Returns:
        int64 [cases], counted from 0; `MISS` where the target is not in the list.
    """
    found = (recommended == targets[:, None]) & (targets >= 0)[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1), MISS)


def sid_ranks(recommended: np.ndarray, targets: np.ndarray, sids: np.ndarray) -> np.ndarray:
    """Rank of each target's semantic ID among the distinct semantic IDs of its list, in order of appearance.

    Args:
        recommended: int64 [cases, K].
        targets: int64 [cases].
        sids: int64 [items], equal for items that share a semantic ID, -1 for items without one.

    Returns:
        int64 [cases], `MISS` where the semantic ID is not in the list. An invalid answer keeps its rank.
    """
    valid = _valid(recommended, len(sids))
    listed = np.where(valid, sids[np.where(valid, recommended, 0)], INVALID)
    listed[listed < 0] = INVALID  # an item without a semantic ID takes a rank, too
    listed[recommended == MISSING] = MISSING
    first = target_ranks(listed, sids[targets])
    before = np.cumsum((listed != MISSING) & ~_repeated(listed), axis=1) - 1
    rows = np.flatnonzero(first != MISS)
    ranks = np.full(len(targets), MISS)
    ranks[rows] = before[rows, first[rows]]
    return ranks


def hit_rate(ranks: np.ndarray, k: int) -> np.ndarray:
    """HR@k per case (equal to recall: there is one target), float64 [cases]."""
    return (ranks < k).astype(np.float64)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k per case, float64 [cases]."""
    return (ranks < k) / np.log2(ranks + 2.0)


def mrr(ranks: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank at k per case, float64 [cases]."""
    return (ranks < k) / (ranks + 1.0)


def exposures(recommended: np.ndarray, num_items: int) -> np.ndarray:
    """How often each item is recommended, int64 [items]; invalid and missing entries are left out."""
    return np.bincount(recommended[_valid(recommended, num_items)], minlength=num_items)


def catalog_coverage(recommended: np.ndarray, num_items: int) -> float:
    """Share of the catalog that is in at least one list."""
    return float((exposures(recommended, num_items) > 0).mean())


def gini(recommended: np.ndarray, num_items: int) -> float:
    """Gini coefficient of the items' exposures: 0 when all are shown equally often, near 1 when one takes all.

    Items that are never shown count, with exposure 0. Without any valid entry it is 0.
    """
    counts = np.sort(exposures(recommended, num_items)).astype(np.float64)
    if not counts.sum():
        return 0.0
    order = np.arange(1, num_items + 1)
    return float(2 * (order @ counts) / (num_items * counts.sum()) - (num_items + 1) / num_items)


def invalid_rate(recommended: np.ndarray, num_items: int) -> float:
    """Share of the emitted entries (all but `MISSING`) that are no item of the catalog."""
    emitted = recommended != MISSING
    return float((emitted & ~_valid(recommended, num_items)).sum() / max(emitted.sum(), 1))


def duplicate_rate(recommended: np.ndarray) -> float:
    """Share of the emitted entries that repeat an item standing earlier in the same list."""
    return float(((recommended >= 0) & _repeated(recommended)).sum() / max((recommended != MISSING).sum(), 1))


def bootstrap_interval(
    values: np.ndarray, seed: int, samples: int = 1000, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap interval of the mean, resampling users.

    Args:
        values: float [cases] or [cases, metrics]; the metrics of one case are drawn together.
        seed: Seed of the resampling. Equal seeds and equally many users give the same resamples.
        samples: Number of resamples.
        groups: [cases], the user of every case, whose cases are drawn together; `None`: every case is its own user.

    Returns:
        Low and high ends, each shaped as the mean over cases.
    """
    means = _resampled_means(values.reshape(len(values), -1), seed, samples, groups)
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, seed: int, samples: int = 1000, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of `a - b` for two systems on the same cases, with its 95 % interval (see [`bootstrap_interval`])."""
    difference = np.asarray(a) - np.asarray(b)
    return difference.mean(axis=0), *bootstrap_interval(difference, seed, samples, groups)


def sid_numbers(codes: np.ndarray) -> np.ndarray:
    """Numbers the semantic IDs: codes int [items, levels] → int64 [items]; -1 for items whose codes are negative."""
    numbers = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return np.where((codes < 0).any(axis=1), -1, numbers)


def _valid(recommended: np.ndarray, num_items: int) -> np.ndarray:
    return (recommended >= 0) & (recommended < num_items)


def _repeated(values: np.ndarray) -> np.ndarray:
    """Marks the entries that equal an earlier non-negative one of their row, bool [rows, K]."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    same = np.zeros(values.shape, bool)
    same[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    repeated = np.empty_like(same)
    np.put_along_axis(repeated, order, same, axis=1)
    return repeated


def _resampled_means(values: np.ndarray, seed: int, samples: int, groups: np.ndarray | None) -> np.ndarray:
    """Means of `samples` resamples, float64 [samples, metrics]."""
    columns = np.column_stack([values, np.ones(len(values))])
    if groups is not None:
        users = np.unique(groups, return_inverse=True)[1]
        summed = np.zeros((users.max() + 1, columns.shape[1]))
        np.add.at(summed, users, columns)
        columns = summed
    n, rng = len(columns), np.random.default_rng(seed)
    means = np.empty((samples, values.shape[1]))
    step = max(1, 2**22 // n)  # resamples at a time, so that memory stays bounded for millions of users
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        totals = times @ columns
        means[start : start + rows] = totals[:, :-1] / totals[:, -1:]
    return means
