"""Search in an index under filters: wider until enough items are left, at last through every item."""

from collections.abc import Sequence

import numpy as np

from .index import VectorIndex


MISSING = -1  # in lists, behind the last answer

_WIDER, _ROUNDS = 8, 2  # how much wider a search becomes, and how often, before it is exhaustive
_FEW = 20_000  # items that are looked through at once, as no index is faster
_CELLS = 2**24  # scores at a time


def search(
    index: VectorIndex,
    vectors: np.ndarray,
    users: np.ndarray,
    top_k: int,
    banned: np.ndarray,
    exclude: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The best items of every user, int64 [B, K], best first, and their scores, float32; −1 and −inf behind the last
    where filters leave fewer than K.

    Args:
        index: Of the vectors.
        vectors: float32 [N, d].
        users: float32 [B, d].
        top_k: K.
        banned: bool [N], items that are no answer.
        exclude: For every user rows of items that are no answer either, int64.
    """
    items = np.full((len(users), top_k), MISSING, np.int64)
    scores = np.full((len(users), top_k), -np.inf, np.float32)
    without = [np.empty(0, np.int64)] * len(users) if exclude is None else [np.unique(rows) for rows in exclude]
    waiting, allowed = np.arange(len(users)), np.flatnonzero(~banned)
    width, effort = min(len(vectors), top_k + max(map(len, without), default=0)), index.effort
    rounds = 0 if len(allowed) <= _FEW else _ROUNDS + 1
    for _ in range(rounds):
        found_scores, found = index.search(users[waiting], width, effort)
        good = (found >= 0) & ~banned[found]
        good &= ~np.array([np.isin(row, without[user]) for row, user in zip(found, waiting, strict=True)])
        enough = good.sum(axis=1) >= top_k
        for place in np.flatnonzero(enough):
            best, user = np.flatnonzero(good[place])[:top_k], waiting[place]
            items[user], scores[user] = found[place, best], found_scores[place, best]
        waiting = waiting[~enough]
        if not len(waiting) or width * _WIDER > len(vectors):
            break
        width, effort = width * _WIDER, effort * _WIDER
    step = max(1, _CELLS // max(len(allowed), 1))
    for start in range(0, len(waiting), step):
        some = waiting[start : start + step]
        items[some], scores[some] = _exhaustive(vectors, users[some], top_k, allowed, [without[user] for user in some])
    return items, scores


def _exhaustive(
    vectors: np.ndarray, users: np.ndarray, top_k: int, allowed: np.ndarray, without: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """As [`search`], by every product with the allowed items, int64 [n], ascending."""
    products = users @ vectors[allowed].T
    for row, gone in zip(products, without, strict=True):
        row[np.flatnonzero(np.isin(allowed, gone))] = -np.inf
    k = min(top_k, len(allowed))
    best = np.argpartition(-products, k - 1, axis=1)[:, :k] if k else np.empty((len(users), 0), np.int64)
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(products, best, 1), axis=1, kind="stable"), 1)
    scores = np.full((len(users), top_k), -np.inf, np.float32)
    scores[:, :k] = np.take_along_axis(products, best, 1)
    items = np.full((len(users), top_k), MISSING, np.int64)
    items[:, :k] = np.where(np.isneginf(scores[:, :k]), MISSING, allowed[best])
    return items, scores
