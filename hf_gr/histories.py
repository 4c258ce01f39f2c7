"""Event sequences of users, and cases: held-out events with what was known before them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, eq=False)
class Histories:
    """Event sequences, oldest first, of U users with E events in all, in CSR form.

    Attributes:
        user_ids: Array of U strings.
        ptr: int64 [U + 1]; events of user `u` are `ptr[u]:ptr[u + 1]`.
        items: int64 [E], rows of `items.parquet`.
        timestamps: int64 [E], microseconds since 1970 (UTC) or positions.
        ratings: float32 [E] or `None`.
        behaviors: Array of E strings or `None`.
        reviews: Array of E strings, what users wrote of the items (`None` in it where they wrote nothing), or `None`.
        sessions: Array of E strings, the session of each event (`None` in it where there is none), or `None`.
        columns: Whatever else is known of the events: a table of E rows, or `None`.
    """

    user_ids: np.ndarray
    ptr: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    ratings: np.ndarray | None = None
    behaviors: np.ndarray | None = None
    reviews: np.ndarray | None = None
    sessions: np.ndarray | None = None
    columns: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the item rows of every user in turn."""
        for start, end in zip(self.ptr[:-1], self.ptr[1:], strict=True):
            yield self.items[start:end]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.ptr)

    @property
    def owners(self) -> np.ndarray:
        """User of every event, int64 [E]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def cut(self, users: np.ndarray, ends: np.ndarray, starts: np.ndarray | None = None) -> "Histories":
        """Events `starts[i]` (the first, if left out) to `ends[i]` of user `users[i]`, for every i; a user may appear
        more than once."""
        starts = np.zeros_like(ends) if starts is None else starts
        lengths = ends - starts
        ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.arange(ptr[-1]) - np.repeat(ptr[:-1] - self.ptr[users] - starts, lengths)
        return Histories(
            self.user_ids[users],
            ptr,
            self.items[rows],
            self.timestamps[rows],
            None if self.ratings is None else self.ratings[rows],
            None if self.behaviors is None else self.behaviors[rows],
            None if self.reviews is None else self.reviews[rows],
            None if self.sessions is None else self.sessions[rows],
            None if self.columns is None else self.columns.take(pa.array(rows)),
        )


class Cases:
    """Held-out events, each with what was known before it. A case is a place in its user's events; nothing is copied,
    so that a user of n events costs n and not n²/2.

    Args:
        events: Event sequences of users.
        targets: int64 [cases], what was taken.
        users: int64 [cases], the row of its user in `events`; left out, every user is one case, in order.
        ends: int64 [cases], how many of the user's events are known; left out, all.
    """

    def __init__(
        self, events: Histories, targets: np.ndarray, users: np.ndarray | None = None, ends: np.ndarray | None = None
    ) -> None:
        self.events = events
        self.targets = targets
        self.users = np.arange(len(events)) if users is None else users
        self.ends = events.lengths[self.users] if ends is None else ends

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the item rows that were known before every case, views of its user's."""
        starts = self.events.ptr[self.users]
        for start, end in zip(starts, starts + self.ends, strict=True):
            yield self.events.items[start:end]

    @property
    def user_ids(self) -> np.ndarray:
        return self.events.user_ids[self.users]

    @cached_property
    def histories(self) -> Histories:
        """What was known before each case, copied: where users are long, take a few cases at a time, or the latest."""
        return self.events.cut(self.users, self.ends)

    def latest(self, events: int) -> Histories:
        """The last so many known events of every case."""
        return self.events.cut(self.users, self.ends, np.maximum(self.ends - events, 0))

    def take(self, rows: np.ndarray) -> "Cases":
        """Some of the cases, in the order of `rows`."""
        return Cases(self.events, self.targets[rows], self.users[rows], self.ends[rows])


def in_history(cases: Cases, items: np.ndarray) -> np.ndarray:
    """Whether one item for every case (int64 [cases]) stands in its history, bool [cases]."""
    return np.array([item in history for item, history in zip(items, cases, strict=True)], bool)
