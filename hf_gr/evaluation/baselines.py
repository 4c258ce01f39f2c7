"""Baselines that stand beside every model: popularity and item-item nearest neighbours. Nothing here is tuned."""

import numpy as np
from scipy import sparse

from ..dataset import Histories, popularity
from .metrics import MISSING


_BLOCK = 512  # items whose co-occurrences are held at a time, so that memory stays bounded


class Popularity:
    """The items with the most training events, the same for everyone; ties in the catalogue's order.

    Args:
        train: Training histories.
        num_items: Size of the catalogue.
        exclude_seen: Leave out what is in the user's history.
    """

    def __init__(self, train: Histories, num_items: int, *, exclude_seen: bool = False) -> None:
        self.exclude_seen = exclude_seen
        self.order = np.argsort(-popularity(train, num_items), kind="stable")

    def recommend(self, histories: Histories, top_k: int) -> np.ndarray:
        """Lists int64 [users, top_k], best first; -1 where the catalogue is exhausted."""
        nothing = np.empty(0, np.int64)
        rows = [fill_up(nothing, self.order, h if self.exclude_seen else nothing, top_k) for h in histories]
        return np.array(rows, np.int64).reshape(len(histories), top_k)


class ItemKNN:
    """Item-item nearest neighbours by the cosine of co-occurrence in training histories (Sarwar et al., WWW 2001).

    Two items are as similar as `users of both / sqrt(users of one * users of the other)`; every item keeps its
    `neighbours` most similar others. A history's score for an item is the sum over its events of that similarity times
    `1 / (1 + age)`, where the latest event has age 0, the one before it age 1, and so on: this weight is our choice,
    as next-item prediction lives on the latest events. Ties go to the more popular item. Items without a positive
    score follow in order of popularity, so an empty history gets the popularity list.

    Args:
        train: Training histories.
        num_items: Size of the catalogue.
        neighbours: Neighbours kept per item.
        window: Two items co-occur for a user if they stand at most so many events apart; `None`: however far.
        exclude_seen: Leave out what is in the user's history.
    """

    def __init__(
        self,
        train: Histories,
        num_items: int,
        *,
        neighbours: int = 100,
        window: int | None = None,
        exclude_seen: bool = False,
    ) -> None:
        self.exclude_seen = exclude_seen
        self.order = np.argsort(-popularity(train, num_items), kind="stable")
        self.place = np.argsort(self.order)  # place of every item in the order of popularity
        self.similarity = _similarity(train, num_items, neighbours, window, self.place)

    def recommend(self, histories: Histories, top_k: int) -> np.ndarray:
        """Lists int64 [users, top_k], best first; -1 where the catalogue is exhausted."""
        scores = _recency_weights(histories, len(self.order)) @ self.similarity
        lists = np.empty((len(histories), top_k), np.int64)
        for row, history in enumerate(histories):
            span = slice(scores.indptr[row], scores.indptr[row + 1])
            items, values = scores.indices[span], scores.data[span]
            seen = history if self.exclude_seen else history[:0]
            if self.exclude_seen:
                keep = ~np.isin(items, seen)
                items, values = items[keep], values[keep]
            best = _largest(values, top_k, self.place[items])
            lists[row] = fill_up(items[best], self.order, seen, top_k)
        return lists


def fill_up(best: np.ndarray, order: np.ndarray, banned: np.ndarray, top_k: int) -> np.ndarray:
    """`best`, then the items of `order` that are in neither `best` nor `banned`; int64 [top_k], padded with -1."""
    front = order[: top_k + len(best) + len(banned)]  # long enough even if all of best and banned stand in it
    rest = front[~np.isin(front, np.concatenate([best, banned]))]
    lists = np.concatenate([best, rest])[:top_k]
    return np.pad(lists, (0, top_k - len(lists)), constant_values=MISSING)


def _similarity(
    train: Histories, num_items: int, neighbours: int, window: int | None, place: np.ndarray
) -> sparse.csr_array:
    """Cosine similarity of every item to its nearest others, [items, items]."""
    users = np.repeat(np.arange(len(train)), train.lengths)
    taken = sparse.csr_array((np.ones(len(users)), (users, train.items)), shape=(len(train), num_items))
    taken.sum_duplicates()
    taken.data[:] = 1.0
    by_item, takers = taken.T.tocsr(), taken.sum(axis=0)
    near = None if window is None else _within(train, users, num_items, window)
    items, values, counts = [], [], []
    for start in range(0, num_items, _BLOCK):
        block = slice(start, start + _BLOCK)
        together = by_item[block] @ taken if near is None else near[block]
        for row, (low, high) in enumerate(zip(together.indptr[:-1], together.indptr[1:], strict=True), start):
            others, users_of_both = together.indices[low:high], together.data[low:high]
            cosine = users_of_both / np.sqrt(takers[row] * takers[others])
            best = _largest(np.where(others == row, 0.0, cosine), neighbours, place[others])
            items.append(others[best])
            values.append(cosine[best])
            counts.append(len(best))
    ptr = np.concatenate([[0], np.cumsum(counts)])
    return sparse.csr_array((np.concatenate(values), np.concatenate(items), ptr), shape=(num_items, num_items))


def _largest(values: np.ndarray, k: int, place: np.ndarray) -> np.ndarray:
    """Where the k largest positive values are, largest first, ties by `place`."""
    least = np.partition(values, -k)[-k] if len(values) > k else 0.0
    candidates = np.flatnonzero((values >= least) & (values > 0))
    return candidates[np.lexsort((place[candidates], -values[candidates]))[:k]]


def _within(train: Histories, users: np.ndarray, num_items: int, window: int) -> sparse.csr_array:
    """Users for whom two items stand at most `window` events apart, [items, items], symmetric."""
    pairs = []
    for gap in range(1, min(window, int(train.lengths.max(initial=0))) + 1):
        same = users[:-gap] == users[gap:]
        pairs.append(np.stack([users[:-gap][same], train.items[:-gap][same], train.items[gap:][same]]))
    user, a, b = np.concatenate(pairs, axis=1) if pairs else np.empty((3, 0), np.int64)
    keys = np.unique((user * num_items + np.minimum(a, b)) * num_items + np.maximum(a, b))
    low, high = keys // num_items % num_items, keys % num_items
    half = sparse.csr_array((np.ones(len(keys)), (low, high)), shape=(num_items, num_items))
    return half + half.T


def _recency_weights(histories: Histories, num_items: int) -> sparse.csr_array:
    """Weight of every item in every history, [users, items]; an item that occurs twice has the sum of both weights."""
    users = np.repeat(np.arange(len(histories)), histories.lengths)
    age = np.repeat(histories.ptr[1:], histories.lengths) - 1 - np.arange(len(histories.items))
    return sparse.csr_array((1.0 / (1.0 + age), (users, histories.items)), shape=(len(histories), num_items))
