"""Baselines that stand beside every model: item-item neighbors, chosen on the validation part, and popularity.

Both rank by counts, of which many are equal. Items of equal popularity stand in an order drawn once: that of the
catalog may tell when an item came, and so what is taken next.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..dataset import Cases, Histories, popularity
from ..neighbors import largest_in_rows
from .metrics import MISSING, ndcg, target_ranks


WINDOWS = (None, 1, 2, 5, 10)  # what [`tuned_knn`] tries, first these with 100 neighbors …
NEIGHBORS = (100, 20, 50, 200)  # … then these with the best window
_TRIED_CASES = 10_000  # validation cases that choose
_BLOCK = 512  # items whose co-occurrences, and users whose scores, are held at a time, so that memory stays bounded


def popularity_order(train: Histories, num_items: int) -> np.ndarray:
    """All items, those with the most training events first, equal ones in an order drawn once; int64 [items]."""
    drawn = np.random.default_rng(0).permutation(num_items)
    return np.lexsort((drawn, -popularity(train, num_items)))


class Popularity:
    """The items with the most training events, the same for everyone.

    Args:
        train: Training histories.
        num_items: Size of the catalog.
        exclude_seen: Leave out what is in the user's history.
    """

    def __init__(self, train: Histories, num_items: int, *, exclude_seen: bool = False) -> None:
        self.exclude_seen = exclude_seen
        self.order = popularity_order(train, num_items)
        self._place = np.argsort(self.order)

    def recommend(self, histories: Histories, top_k: int) -> np.ndarray:
        """Lists int64 [users, top_k], best first; -1 where the catalog is exhausted."""
        lists = np.full((len(histories), top_k), MISSING, np.int64)
        for start in range(0, len(histories), _BLOCK):
            batch = histories.cut(*_block(histories, start))
            banned = self._place[batch.items] if self.exclude_seen else None
            places = _filled(lists[start : start + _BLOCK], batch, banned, len(self.order))
            lists[start : start + _BLOCK] = _items(places, self.order)
        return lists


class ItemKNN:
    """Item-item nearest neighbors by the cosine of co-occurrence in training histories (Sarwar et al., WWW 2001).

    Two items are as similar as `users of both / sqrt(users of one * users of the other)`; every item keeps its
    `neighbors` most similar others, itself not among them. A history's score for an item is the sum over its events
    of that similarity times `1 / (1 + age)`, where the latest event has age 0, the one before it age 1, and so on:
    this weight is our choice, as next-item prediction lives on the latest events. Ties go to the more popular item.
    Items without a positive score follow in order of popularity, so an empty history gets the popularity list.

    Args:
        train: Training histories.
        num_items: Size of the catalog.
        neighbors: Neighbors kept per item.
        window: Two items co-occur for a user if they stand at most so many events apart; `None`: however far.
        exclude_seen: Leave out what is in the user's history.
    """

    def __init__(
        self,
        train: Histories,
        num_items: int,
        *,
        neighbors: int = 100,
        window: int | None = None,
        exclude_seen: bool = False,
    ) -> None:
        self.neighbors, self.window, self.exclude_seen = neighbors, window, exclude_seen
        self.order = popularity_order(train, num_items)
        self._place = np.argsort(self.order)  # inside, an item is its place in the order of popularity
        users = np.repeat(np.arange(len(train)), train.lengths)
        self._nearest = _similar(users, self._place[train.items], num_items, neighbors, window)
        self._similarity = self._nearest

    def keep(self, neighbors: int) -> None:
        """Goes on with the first of the neighbors that were found, at most all of them."""
        self.neighbors = neighbors
        lengths = np.diff(self._nearest.indptr)
        first = np.arange(self._nearest.nnz) - np.repeat(self._nearest.indptr[:-1], lengths) < neighbors
        ptr = np.concatenate([[0], np.cumsum(np.minimum(lengths, neighbors))])
        parts = (self._nearest.data[first], self._nearest.indices[first], ptr)
        self._similarity = sparse.csr_array(parts, shape=self._nearest.shape)

    def recommend(self, histories: Histories, top_k: int) -> np.ndarray:
        """Lists int64 [users, top_k], best first; -1 where the catalog is exhausted."""
        lists = np.empty((len(histories), top_k), np.int64)
        for start in range(0, len(histories), _BLOCK):
            batch = histories.cut(*_block(histories, start))
            seen, users = self._place[batch.items], np.repeat(np.arange(len(batch)), batch.lengths)
            age = np.repeat(batch.ptr[1:], batch.lengths) - 1 - np.arange(len(seen))
            shape = (len(batch), len(self.order))
            weights = sparse.csr_array((1.0 / (1.0 + age), (users, seen)), shape=shape)
            scores = weights @ self._similarity
            if self.exclude_seen:
                scores = scores - scores.multiply(sparse.csr_array((np.ones(len(seen), bool), (users, seen)), shape))
            best = largest_in_rows(sparse.csr_array(scores), top_k)[0]
            places = _filled(best, batch, seen if self.exclude_seen else None, len(self.order))
            lists[start : start + _BLOCK] = _items(places, self.order)
        return lists


@dataclass(frozen=True)
class Trial:
    """A setting of [`ItemKNN`] and its NDCG@10 on the validation part."""

    window: int | None
    neighbors: int
    validation: float


def tuned_knn(
    train: Histories, validation: Cases, num_items: int, *, exclude_seen: bool = False
) -> tuple[ItemKNN, list[Trial]]:
    """The [`ItemKNN`] of the highest NDCG@10 on validation cases, at most 10,000 drawn at random.

    Windows of None, 1, 2, 5 and 10 are tried with 100 neighbors, then 20, 50 and 200 neighbors with the best window;
    of equals the first is taken.

    Args:
        train: Training histories.
        validation: What chooses among the settings.
        num_items: Size of the catalog.
        exclude_seen: Leave out what is in the user's history, here and in what is returned.

    Returns:
        The baseline, and all trials in the order in which they were made.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(validation))[:_TRIED_CASES])
    histories, targets = validation.take(rows).histories, validation.targets[rows]

    def tried(model: ItemKNN, neighbors: int) -> Trial:
        model.keep(neighbors)
        ranks = target_ranks(model.recommend(histories, 10), targets)
        return Trial(model.window, neighbors, float(ndcg(ranks, 10).sum() / max(len(ranks), 1)))

    trials: list[Trial] = []
    for window in WINDOWS:
        model = ItemKNN(train, num_items, neighbors=max(NEIGHBORS), window=window, exclude_seen=exclude_seen)
        trials.append(tried(model, NEIGHBORS[0]))
        if trials[-1].validation > max((trial.validation for trial in trials[:-1]), default=-1.0):
            best = model
    trials += [tried(best, neighbors) for neighbors in NEIGHBORS[1:]]
    best.keep(max(trials, key=lambda trial: trial.validation).neighbors)
    return best, trials


def _block(histories: Histories, start: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(start, min(start + _BLOCK, len(histories)))
    return rows, histories.lengths[rows]


def _similar(
    users: np.ndarray, items: np.ndarray, num_items: int, neighbors: int, window: int | None
) -> sparse.csr_array:
    """Cosines of the nearest others of every item, float32 [items, items]; in each row the nearest stand first."""
    taken = sparse.csr_array((np.ones(len(users)), (users, items)), shape=(int(users.max(initial=-1)) + 1, num_items))
    taken.sum_duplicates()
    taken.data[:] = 1.0
    by_item, takers = taken.T.tocsr(), taken.sum(axis=0)
    near = None if window is None else _within(users, items, num_items, window)
    nearest, cosines, counts = [], [], []
    for start in range(0, num_items, _BLOCK):
        block = slice(start, start + _BLOCK)
        together = sparse.csr_array(by_item[block] @ taken if near is None else near[block])
        one = np.repeat(np.arange(start, start + together.shape[0]), np.diff(together.indptr))
        together.data /= np.sqrt(takers[one] * takers[together.indices])
        together.data[one == together.indices] = 0.0  # an item is not its own neighbor
        columns, values = largest_in_rows(together, neighbors)
        there = columns >= 0
        nearest.append(columns[there])
        cosines.append(values[there])
        counts.append(there.sum(axis=1))
    ptr = np.cumsum(np.concatenate([[0], *counts]))
    return sparse.csr_array((np.concatenate(cosines), np.concatenate(nearest), ptr), shape=(num_items, num_items))


def _filled(places: np.ndarray, histories: Histories, banned: np.ndarray | None, num_items: int) -> np.ndarray:
    """Lists [users, k] of places filled up behind their ends with the first places that are neither in them nor
    banned (places of the events of the histories); -1 where there is none left."""
    counts = (places >= 0).sum(axis=1)
    if (counts == places.shape[1]).all():
        return places
    longest = 0 if banned is None else int(histories.lengths.max(initial=0))
    width = min(2 * places.shape[1] + longest, num_items)  # enough even if all of a list and its history stand there
    free = np.ones((len(places), width), bool)
    row, column = np.nonzero((places >= 0) & (places < width))
    free[row, places[row, column]] = False
    if banned is not None:
        users = np.repeat(np.arange(len(histories)), histories.lengths)
        free[users[banned < width], banned[banned < width]] = False
    column = np.cumsum(free, axis=1) - 1 + counts[:, None]
    row, place = np.nonzero(free & (column < places.shape[1]))
    filled = places.copy()
    filled[row, column[row, place]] = place
    return filled


def _items(places: np.ndarray, order: np.ndarray) -> np.ndarray:
    return np.where(places >= 0, order[places], MISSING)


def _within(users: np.ndarray, items: np.ndarray, num_items: int, window: int) -> sparse.csr_array:
    """Users for whom two items stand at most `window` events apart, [items, items], symmetric."""
    pairs = []
    for gap in range(1, min(window, int(np.bincount(users).max(initial=0))) + 1):
        same = users[:-gap] == users[gap:]
        pairs.append(np.stack([users[:-gap][same], items[:-gap][same], items[gap:][same]]))
    user, a, b = np.concatenate(pairs, axis=1) if pairs else np.empty((3, 0), np.int64)
    keys = np.unique((user * num_items + np.minimum(a, b)) * num_items + np.maximum(a, b))
    low, high = keys // num_items % num_items, keys % num_items
    half = sparse.csr_array((np.ones(len(keys)), (low, high)), shape=(num_items, num_items))
    return half + half.T
