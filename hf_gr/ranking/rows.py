"""Rows of a click model: who was offered which item when, what was known then, and whether it was clicked.

| labels | a row | a click |
|---|---|---|
| `exposures` | an exposure | it says `clicked` |
| `ratings` | an event | its rating is above the bound |
| `drawn` | an event, and items drawn beside it | the event's item |

Items are drawn by drawing events: each of the events of the log (of its training part, for rows of training) that are
no later than the row's own is as likely as any other, and the item of the event is the negative. So an item is drawn
in proportion to the events that it has had by then: negatives are as popular as what is taken, and no item is drawn
before it has first been seen [ours]. Where a log has positions and no clock, "no later" cannot be told between users,
and all those events count. What the user has taken by then is drawn again; draws are with replacement.

The history of a row is what the user took before: of an exposure, events of an earlier time; of an event, those that
stand before it. With `ratings` it holds the events above the bound alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from ..dataset import Histories, InteractionDataset
from ..errors import HfGrError
from ..models.click import PADDING
from ..splits import Split, read_split
from ..tables import numbered, row_of
from .features import Column, Features


Labels = Literal["exposures", "ratings", "drawn"]
PARTS = ("train", "validation", "test")
_ROUNDS = 50  # of drawing again; what is still taken then is left out


@dataclass(frozen=True, eq=False)
class ClickRows(Dataset):
    """n rows; as a dataset, their numbers, of which [`batch`] makes what the model takes.

    Attributes:
        events: What histories are of.
        users: int64 [n], row of the user in `events`; −1 where nothing is known of the user.
        ends: int64 [n], how many of the user's events the history holds.
        items: int64 [n], what is offered.
        labels: float32 [n], 1 for a click.
        times: int64 [n].
        persons: int64 [n], a number for every user, those without events too.
        categories: int64 [n, C].
        numbers: float32 [n, M].
        max_history: Latest events that a batch holds.
    """

    events: Histories
    users: np.ndarray
    ends: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    times: np.ndarray
    persons: np.ndarray
    categories: np.ndarray
    numbers: np.ndarray
    max_history: int

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> int:
        return row

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """What [`~hf_gr.models.click.ClickModel.forward`] takes, of some rows."""
        rows = np.asarray(rows)
        users, ends = self.users[rows], self.ends[rows]
        starts = np.maximum(ends - self.max_history, 0)
        places = starts[:, None] + np.arange((ends - starts).max(initial=0))
        real = places < ends[:, None]
        first = np.where(users < 0, 0, self.events.ptr[users])
        history = np.where(real, self.events.items[np.where(real, first[:, None] + places, 0)], PADDING)
        columns = {"candidates": self.items, "categories": self.categories, "numbers": self.numbers}
        tensors = {name: torch.from_numpy(column[rows]) for name, column in columns.items()}
        return {"history": torch.from_numpy(history), **tensors, "labels": torch.from_numpy(self.labels[rows])}


@dataclass(frozen=True)
class RowSettings:
    """What rows are made of.

    Attributes:
        labels: As the table above says.
        above: A rating above this is a click.
        negatives: Items drawn for each event.
        max_history: Latest events of a history.
        user_columns, event_columns, clock: What is read beside the history (see [`Features`]).
        seed: Of the draws.
    """

    labels: Labels
    above: float = 3.0
    negatives: int = 4
    max_history: int = 50
    user_columns: tuple[str, ...] = ()
    event_columns: tuple[str, ...] = ()
    clock: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Offers:
    """What was offered, before columns are put to it; arrays as in [`ClickRows`], and a table with the columns."""

    user_ids: pa.ChunkedArray
    users: np.ndarray
    ends: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    times: np.ndarray
    table: pa.Table | None


def click_rows(
    dataset: InteractionDataset, split: Split, split_name: str, settings: RowSettings
) -> tuple[dict[str, ClickRows], Features]:
    """The rows of all three parts, and the columns as training knows them.

    Args:
        dataset: Whose items the rows count in.
        split: Of the dataset.
        split_name: Its text; where it names target behaviors, only events of these are rows of training.
        settings: What rows are made of.

    Raises:
        HfGrError: Where the dataset has no exposures, ratings or columns that are asked for, or only positions and a
            clock is.
    """
    if settings.clock and dataset.time == "position":
        raise HfGrError(f"{dataset.path} has only positions, so there is no hour; leave clock out.")
    if settings.labels == "exposures":
        events, offers = dataset.events, _of_exposures(dataset, split)
    else:
        events, offers = _of_events(dataset, split, split_name, settings)
    features = _learned(dataset, offers["train"], settings)
    found = {}
    for name, offer in offers.items():
        persons, _ = numbered(offer.user_ids)
        users = dataset.users if settings.user_columns else None
        columns = features.encoded(users, offer.user_ids, offer.table, offer.times)
        found[name] = ClickRows(
            events, offer.users, offer.ends, offer.items, offer.labels, offer.times, persons, *columns,
            settings.max_history,
        )  # fmt: skip
    return found, features


def first_seen(dataset: InteractionDataset) -> np.ndarray:
    """The earliest moment at which every item stands in events or exposures, int64 [N]; the largest number there is
    where it stands in none."""
    moments = np.full(dataset.num_items, np.iinfo(np.int64).max)
    np.minimum.at(moments, dataset.events.items, dataset.events.timestamps)
    if dataset.exposures is not None:
        items = row_of(dataset.exposures["item_id"], dataset.items["item_id"])
        np.minimum.at(moments, items, dataset.exposures["timestamp"].to_numpy())
    return moments


def _learned(dataset: InteractionDataset, train: _Offers, settings: RowSettings) -> Features:
    user, event = [], []
    if settings.user_columns:
        if dataset.users is None:
            raise HfGrError(
                f"{dataset.path} has no users.parquet, but user_columns names columns of it; leave it out."
            )
        taught = row_of(dataset.users["user_id"], train.user_ids) >= 0
        for name in settings.user_columns:
            _check_column(name, dataset.users, "users.parquet")
            user.append(Column.learned(name, dataset.users[name].filter(pa.array(taught)), "users.parquet"))
    for name in settings.event_columns:
        _check_column(name, train.table, "the events")
        assert train.table is not None
        event.append(Column.learned(name, train.table[name], "the events"))
    return Features(tuple(user), tuple(event), settings.clock)


def _check_column(name: str, table: pa.Table | None, where: str) -> None:
    outcomes = {"user_id", "item_id", "timestamp", "clicked"}
    there = [] if table is None else [column for column in table.column_names if column not in outcomes]
    if name not in there:
        raise HfGrError(f"{where} have no column {name!r} to read; there is: {', '.join(there) or 'none'}.")


def _of_exposures(dataset: InteractionDataset, split: Split) -> dict[str, _Offers]:
    table, events = dataset.exposures, dataset.events
    if table is None:
        raise HfGrError(f"{dataset.path} has no exposures.parquet; set labels: drawn, or ratings.")
    times = table["timestamp"].to_numpy()
    users = row_of(table["user_id"], pa.chunked_array([pa.array(events.user_ids, pa.string())]))
    moments = np.unique(np.concatenate([events.timestamps, times]))  # (user, moment) as one ascending number
    before = events.owners * len(moments) + np.searchsorted(moments, events.timestamps)
    ends = np.searchsorted(before, users * len(moments) + np.searchsorted(moments, times))
    ends = np.where(users < 0, 0, ends - events.ptr[users])
    items = row_of(table["item_id"], dataset.items["item_id"])
    labels, parts = table["clicked"].to_numpy().astype(np.float32), split.parts(table["user_id"], times)
    found = {}
    for part, name in enumerate(PARTS):
        mine = np.flatnonzero(parts == part)
        own = table.take(pa.array(mine))
        found[name] = _Offers(own["user_id"], users[mine], ends[mine], items[mine], labels[mine], times[mine], own)
    return found


def _of_events(
    dataset: InteractionDataset, split: Split, split_name: str, settings: RowSettings
) -> tuple[Histories, dict[str, _Offers]]:
    events, targets = dataset.events, read_split(split_name).targets
    known = np.zeros(len(events), np.int64)
    row = {user: place for place, user in enumerate(events.user_ids)}
    known[[row[user] for user in split.train.user_ids]] = split.train.lengths
    teaches = np.arange(len(events.items)) - events.ptr[events.owners] < known[events.owners]
    rows = {"train": np.flatnonzero(teaches)}
    if targets:
        assert events.behaviors is not None
        rows["train"] = rows["train"][np.isin(events.behaviors[rows["train"]].astype(str), targets)]
    for name, cases in (("validation", split.validation), ("test", split.test)):
        rows[name] = events.ptr[cases.users] + cases.ends
    counts = np.ones(len(events.items), bool)  # of histories
    if settings.labels == "ratings":
        if events.ratings is None:
            raise HfGrError(f"{dataset.path} has no column 'rating'; set labels: drawn.")
        counts = events.ratings > settings.above
    liked = np.concatenate([[0], np.cumsum(counts)])
    pool = events.cut(np.arange(len(events)), events.lengths) if counts.all() else _only(events, counts)
    offers = {}
    for part, (name, mine) in enumerate(rows.items()):
        items, labels = events.items[mine], counts[mine].astype(np.float32)
        if settings.labels == "drawn":
            among = np.flatnonzero(teaches) if name == "train" else np.arange(len(events.items))
            whose, drawn = draw_negatives(
                events, mine, among, settings.negatives, dataset.time == "timestamp", settings.seed + part
            )
            items = np.concatenate([items, drawn])
            labels = np.concatenate([labels, np.zeros(len(drawn), np.float32)])
            mine = np.concatenate([mine, mine[whose]])
        owners = events.owners[mine]
        ends = liked[mine] - liked[events.ptr[owners]]
        table = None if events.columns is None else events.columns.take(pa.array(mine))
        user_ids = pa.chunked_array([pa.array(events.user_ids[owners], pa.string())])
        offers[name] = _Offers(user_ids, owners, ends, items, labels, events.timestamps[mine], table)
    return pool, offers


def _only(events: Histories, kept: np.ndarray) -> Histories:
    """Histories of some of the events; every user stays."""
    ptr = np.concatenate([[0], np.cumsum(kept)])[events.ptr]
    return Histories(events.user_ids, ptr, events.items[kept], events.timestamps[kept])


def draw_negatives(
    events: Histories, rows: np.ndarray, among: np.ndarray, negatives: int, clock: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws items that were not taken, as the head of this module says.

    Args:
        events: All events, E of them.
        rows: int64 [n], the events that negatives are drawn for.
        among: int64 [m], the events whose items may be drawn.
        negatives: Draws for each event.
        clock: Whether times of users can be compared.
        seed: Of the draws.

    Returns:
        For every negative the place in `rows` that it is for, and its item, int64 [at most n · negatives] each: a few
        are missing where a user has taken almost all there is.
    """
    order = among[np.argsort(events.timestamps[among], kind="stable")]
    bounds = np.full(len(rows), len(order))
    if clock:
        bounds = np.searchsorted(events.timestamps[order], events.timestamps[rows], "right")
    num_items = int(events.items.max()) + 1
    pairs, taken_at = np.unique(events.owners * num_items + events.items, return_index=True)
    random = np.random.default_rng(seed)
    whose = np.repeat(np.flatnonzero(bounds > 0), negatives)
    items, wanted = np.zeros(len(whose), np.int64), np.ones(len(whose), bool)
    owners = events.owners[rows]
    for _ in range(_ROUNDS):
        drawing = np.flatnonzero(wanted)
        if not len(drawing):
            break
        mine = whose[drawing]
        items[drawing] = events.items[order[random.integers(bounds[mine])]]
        keys = owners[mine] * num_items + items[drawing]
        found = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
        wanted[drawing] = (pairs[found] == keys) & (taken_at[found] <= rows[mine])
    return whose[~wanted], items[~wanted]
