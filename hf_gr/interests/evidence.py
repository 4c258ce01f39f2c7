"""The labelled set: whether an interest told what a user of the training part took next."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..dataset import Histories


_CHUNK = 4096  # events looked at at a time


@dataclass(frozen=True, eq=False)
class Evidence:
    """One example per user, event and interest of the event's item (or of the user).

    Attributes:
        rows: int64 [n], rows of the interests.
        users: int64 [n], rows of the training histories.
        events: int64 [n], places in the training histories after which the user took what decided.
        labels: bool [n].
    """

    rows: np.ndarray
    users: np.ndarray
    events: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, users: np.ndarray) -> "Evidence":
        """The examples of some users, bool [users]."""
        kept = users[self.users]
        return Evidence(self.rows[kept], self.users[kept], self.events[kept], self.labels[kept])

    def counts(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Positive examples and all examples of every row, float64 [num_rows] each; their ratio is a row's label
        averaged over the users."""
        positive = np.bincount(self.rows, self.labels, num_rows)
        return positive, np.bincount(self.rows, minlength=num_rows).astype(np.float64)


def gather_evidence(
    interests: np.ndarray,
    owners: np.ndarray,
    of_user: np.ndarray,
    items: np.ndarray,
    train: Histories,
    *,
    horizon: int,
    negatives: int,
    seed: int,
) -> Evidence:
    """Labels interests by what users took next, inside the training part alone.

    An interest i of an item that a user took is positive when it is closer to what the user took next than to what
    others take: mean cos(i, next items) > mean cos(i, negatives). That it is measured against the next items of the
    training part and sampled negatives is the authors' [known]; the rest is ours: the next items are the `horizon`
    events after the item (the item itself left out where it is taken again), the negatives are drawn in proportion to
    the popularity among training events, with what the user takes anywhere in the training part left out, and means
    are compared. An interest of a user is compared with the user's last training event, which it was not mined from.
    Events that nothing follows are no example.

    Args:
        interests: float32 [R, d], a vector of length 1 per interest.
        owners: int64 [R], row of the item or of the training history that each belongs to; -1 where a user is not in
            the training part.
        of_user: bool [R], whether it belongs to a user.
        items: float32 [N, d], a vector of length 1 per item.
        train: The training part.
        horizon: Events ahead.
        negatives: Negatives drawn for every event.
        seed: Of the draw.
    """
    following, follows = next_items(train, horizon)
    foreign, counts = sampled_negatives(train, len(items), negatives, seed)
    usable = np.flatnonzero(follows.any(axis=1) & counts.any(axis=1))
    difference = _averaging(following, follows, len(items)) - _averaging(foreign, counts, len(items))
    user_of = np.repeat(np.arange(len(train)), train.lengths)
    by_item, by_user = _grouped(owners, ~of_user, len(items)), _grouped(owners, of_user, len(train))
    none = np.zeros(0, np.int64)
    found = [Evidence(none, none, none, none.astype(bool))]
    for start in range(0, len(usable), _CHUNK):
        events = usable[start : start + _CHUNK]
        directions = difference[events] @ items
        last = np.flatnonzero(events == train.ptr[user_of[events] + 1] - 2)  # the last event but one
        examples = [(by_item, np.arange(len(events)), train.items[events]), (by_user, last, user_of[events[last]])]
        for (order, ptr), places, groups in examples:
            rows, place = _members(order, ptr, groups)
            place = places[place]
            closer = np.einsum("nd,nd->n", interests[rows], directions[place])
            found.append(Evidence(rows, user_of[events[place]], events[place], closer > 0))
    return Evidence(*(np.concatenate([vars(part)[name] for part in found]) for name in vars(found[0])))


def next_items(train: Histories, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The items of the `horizon` events after each, int64 [E, horizon], and which of them count, bool: those of the
    same user that are another item."""
    places = np.arange(len(train.items))[:, None] + np.arange(1, horizon + 1)
    inside = places < np.repeat(train.ptr[1:], train.lengths)[:, None]
    following = train.items[np.where(inside, places, 0)]
    return following, inside & (following != train.items[:, None])


def sampled_negatives(train: Histories, num_items: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Items drawn for each event in proportion to their training events, int64 [E, count], and which of them count,
    bool: those that its user never takes in the training part."""
    drawn = train.items[np.random.default_rng(seed).integers(len(train.items), size=(len(train.items), count))]
    user_of = np.repeat(np.arange(len(train)), train.lengths)
    taken = np.unique(user_of * num_items + train.items)
    return drawn, ~np.isin(user_of[:, None] * num_items + drawn, taken)


def _averaging(items: np.ndarray, counts: np.ndarray, num_items: int) -> sp.csr_array:
    """What, times the items' vectors, is the mean vector of the items that count in each row."""
    rows, _ = np.nonzero(counts)
    weights = 1 / counts.sum(axis=1)[rows]
    shape = (len(items), num_items)
    return sp.coo_array((weights.astype(np.float32), (rows, items[counts])), shape=shape).tocsr()


def _grouped(owners: np.ndarray, kept: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their owners, and where each owner's begin, int64 [groups + 1]."""
    rows = np.flatnonzero(kept & (owners >= 0))
    rows = rows[np.argsort(owners[rows], kind="stable")]
    return rows, np.concatenate([[0], np.cumsum(np.bincount(owners[rows], minlength=groups))])


def _members(order: np.ndarray, ptr: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All rows of the given groups, and the place of the group that each is of."""
    lengths = ptr[groups + 1] - ptr[groups]
    place = np.repeat(np.arange(len(groups)), lengths)
    within = np.arange(len(place)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return order[ptr[groups][place] + within], place
