"""The dataset folder: reading, checking, writing and splitting it.

A folder holds `interactions.parquet`, `items.parquet`, optional `users.parquet` (what is known of users) and
`exposures.parquet` (what they were shown), and a dataset card that declares all as configs, so that
`datasets.load_dataset(folder)` reads it too. Ids are strings end to end; inside the library an item is its row in
`items.parquet`. Splits are derived, never stored.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from .artifacts import write_manifest, writing
from .errors import HfGrError, first_line
from .histories import Cases as Cases
from .histories import Histories
from .histories import in_history as in_history
from .splits import Split, SplitKind, read_split, split_events
from .tables import (
    INTERACTION_COLUMNS,
    TimeKind,
    as_table,
    check_exposures,
    check_interactions,
    check_items,
    check_users,
    id_texts,
    numbered,
    row_of,
    texts,
    wide,
)


# Keys of the schema's metadata in interactions.parquet: how the folder is written, and what `timestamp` holds.
_FORMAT, _TIME = b"hf_gr.format", b"hf_gr.time"
FORMAT = 2  # folders without a number are of the first format; to be raised where this release would misread a folder
_KINDS: dict[bytes, TimeKind] = {b"microseconds": "timestamp", b"position": "position"}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, eq=False)
class InteractionDataset:
    """A dataset folder in memory.

    Attributes:
        path: The folder.
        items: Table with `item_id`, `title` and optional `brand`, `categories`, `description`, `image`.
        events: Every user's events in stable time order.
        time: Whether `events.timestamps` are microseconds since 1970 in UTC (`"timestamp"`) or only an order
            (`"position"`).
    """

    path: Path
    items: pa.Table
    events: Histories
    time: TimeKind

    @classmethod
    def load(cls, path: str | Path) -> "InteractionDataset":
        """Reads and checks a folder. Raises [`HfGrError`] that names the file, the value and the remedy."""
        path = Path(path)
        file = path / "interactions.parquet"
        interactions, time = _with_time(_read_parquet(file), file)
        items = check_items(_read_parquet(path / "items.parquet"), path / "items.parquet")
        interactions = check_interactions(interactions, items, file, time)
        return cls(path, items, _histories(interactions, items), time)

    @cached_property
    def users(self) -> pa.Table | None:
        """What is known of users: `user_id` and any columns, in the order of `users.parquet`; `None` without the file.

        Read and checked when first asked for. Users of the events may be missing, and others may stand in it. Raises
        as [`load`][InteractionDataset.load].
        """
        file = self.path / "users.parquet"
        return check_users(_read_parquet(file), file) if file.is_file() else None

    @cached_property
    def exposures(self) -> pa.Table | None:
        """Who was shown what: `user_id`, `item_id`, `timestamp` int64 (as that of the events), `clicked` bool, and any
        columns, in the order of `exposures.parquet`; `None` without the file.

        Read and checked when first asked for. Raises as [`load`][InteractionDataset.load].
        """
        file = self.path / "exposures.parquet"
        if not file.is_file():
            return None
        exposures = _read_parquet(file)
        if time_of(exposures.schema, file) != self.time:
            raise HfGrError(f"{file} does not say that its times are as those of the interactions; write it again.")
        return check_exposures(exposures, self.items, file, self.time)

    @cached_property
    def item_ids(self) -> list[str]:
        return self.items["item_id"].to_pylist()

    @cached_property
    def titles(self) -> list[str]:
        return self.items["title"].to_pylist()

    @property
    def num_items(self) -> int:
        return self.items.num_rows

    @cached_property
    def categories(self) -> list[list[str]]:
        """Categories of every item, an empty list where there are none."""
        if "categories" not in self.items.column_names:
            return [[] for _ in range(self.num_items)]
        return [value or [] for value in self.items["categories"].to_pylist()]

    def aligned(self, item_ids: list[str]) -> "InteractionDataset":
        """The dataset with its events counted in rows of `item_ids` (a catalog's), which must hold every one taken.

        Raises [`HfGrError`] naming the first item that is missing.
        """
        if item_ids == self.item_ids:
            return self
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        rows = np.array([row_of.get(item_id, -1) for item_id in self.item_ids], np.int64)[self.events.items]
        if (rows < 0).any():
            missing = self.item_ids[self.events.items[int((rows < 0).argmax())]]
            raise HfGrError(
                f"{self.path}: item {missing!r} is not in the catalog of {len(item_ids)} items that the model "
                "knows; make a new catalog with `hf-gr quantize`, or drop that item's events."
            )
        return replace(self, events=replace(self.events, items=rows))

    def split(self, kind: SplitKind = "leave_one_out") -> Split:
        """Derives the training part, validation and test.

        Args:
            kind: What `hf_gr.splits` describes: `"leave_one_out"`, `"temporal"`, `"temporal:0.7,0.15"`,
                `"temporal:2014-01-01,2014-06-01"`, `"session"` or `"column:NAME"`, each with `"@buy"` behind it where
                only events of that behavior are predicted.

        Raises:
            HfGrError: If there is no such split, the events do not allow it, or a part of it is empty.
        """
        return split_events(self.events, read_split(kind), self.time, self.path)

    def training_exposures(self, split: Split) -> pa.Table | None:
        """The exposures that belong to the training part of a split of this dataset, as [`Split.teaches`] says; `None`
        without the file. Whatever learns from exposures takes these: later ones show what is held out."""
        if self.exposures is None:
            return None
        known = split.teaches(self.exposures["user_id"], self.exposures["timestamp"].to_numpy())
        return self.exposures.filter(pa.array(known))


def events_of(table: pa.Table, item_ids: list[str], where: Path, time: TimeKind) -> tuple[Histories, int]:
    """Events of known items, beside a dataset: those that a log has since.

    Args:
        table: Columns `user_id`, `item_id`, `timestamp`, as `hf-gr prepare` writes them or with times of a date type.
        item_ids: Of the catalog in whose rows they are counted.
        where: File, for messages.
        time: What the times of the events before are.

    Returns:
        The events, and how many were left out because their item is unknown. Raises [`HfGrError`] on columns that are
        missing or of another kind, and where nothing is left.
    """
    table, kind = _with_time(table, where)
    if kind != time:
        raise HfGrError(f"{where} holds {kind}s, but the events before {time}s; prepare both from the same columns.")
    catalog = pa.table({"item_id": pa.array(item_ids, pa.string())})
    known = np.ones(table.num_rows, bool)
    if "item_id" in table.column_names:
        known = row_of(id_texts(table["item_id"], "item_id", where), catalog["item_id"]) >= 0
    if not known.any():
        raise HfGrError(f"{where} holds no event of an item of the catalog; add the items first: hf-gr add-items.")
    table = check_interactions(table.filter(pa.array(known)), catalog, where, time)
    return _histories(table, catalog), int((~known).sum())


def popularity(train: Histories, num_items: int) -> np.ndarray:
    """Training events per item, int64 [num_items]."""
    return np.bincount(train.items, minlength=num_items)


def write_dataset(
    path: str | Path,
    interactions: Any,
    items: Any,
    users: Any = None,
    exposures: Any = None,
    *,
    source: str,
    license: str = "unknown",
    time: TimeKind = "timestamp",
    settings: dict | None = None,
) -> dict[str, int]:
    """Checks both tables and writes the folder with its card, atomically.

    Args:
        path: Folder to write.
        interactions: `pyarrow.Table` or DataFrame with `user_id`, `item_id`, `timestamp`, optional `session_id`,
            `rating`, `behavior`, `review`, and others, which are kept as they are; rows of one user and one time keep
            their order. Ids are strings or whole numbers; `timestamp` holds dates and times of any unit, or
            microseconds since 1970 (UTC).
        items: `pyarrow.Table` or DataFrame with `item_id`, `title`, optional `brand`, `categories` (a list of strings
            each), `description`, `image`, and whatever else is known of the items.
        users: `pyarrow.Table` or DataFrame with `user_id` and whatever is known of users, a row each; users without an
            event are counted.
        exposures: `pyarrow.Table` or DataFrame of what users were shown: `user_id`, `item_id`, `timestamp` (as that of
            the interactions), `clicked` (bool, or 1 and 0), and others, which are kept; users without an event are
            counted.
        source: Where the data comes from, in a sentence; stands on the card.
        license: License identifier or `"unknown"`.
        time: What whole numbers in `timestamp`s are: microseconds, or (`"position"`) only an order.
        settings: How the data was prepared; goes into the manifest.

    Returns:
        What was counted, as on the card and in the manifest: `users`, `items`, `interactions`; `same_time_events`,
        those at the time of the same user's previous one; `same_time_users`, whose last two events are simultaneous;
        `short_users`, who have fewer than three events; with `users`, `described_users` (rows) and `undescribed_users`
        (with events and no row); with `exposures`, these and `clicks`; with either, `users_without_events`. Raises
        [`HfGrError`] on tables that are not as said.
    """
    if time not in _KINDS.values():
        raise HfGrError(f"time is {time!r}; use 'timestamp' or 'position'.")
    items = check_items(as_table(items, "items"), "items").replace_schema_metadata()
    interactions = check_interactions(as_table(interactions, "interactions"), items, "interactions", time)
    said = {_FORMAT: str(FORMAT), _TIME: _NAMES[time]}
    tables = {"interactions": interactions.replace_schema_metadata(said), "items": items}
    if users is not None:
        tables["users"] = check_users(as_table(users, "users"), "users").replace_schema_metadata()
    if exposures is not None:
        checked = check_exposures(as_table(exposures, "exposures"), items, "exposures", time)
        tables["exposures"] = checked.replace_schema_metadata(said)
    events = _histories(interactions, items)
    counts = {"users": len(events), "items": items.num_rows, "interactions": interactions.num_rows} | _ties(events)
    counts |= _strangers(tables)
    with writing(path, "prepare") as folder:
        for name, table in tables.items():
            pq.write_table(table, folder / f"{name}.parquet")
        _card(Path(path).name, source, license, time, events, counts, tables).save(folder / "README.md")
        write_manifest(folder, "prepare", settings or {}, {}, counts=counts)
    return counts


def _ties(events: Histories) -> dict[str, int]:
    inside = np.ones(len(events.timestamps), bool)
    inside[events.ptr[:-1]] = False  # a user's first event has none before it
    same = np.zeros(len(events.timestamps), bool)
    same[1:] = events.timestamps[1:] == events.timestamps[:-1]
    same &= inside
    return {
        "same_time_events": int(same.sum()),
        "same_time_users": int(same[events.ptr[1:] - 1].sum()),
        "short_users": int((events.lengths < 3).sum()),
    }


def _strangers(tables: dict[str, pa.Table]) -> dict[str, int]:
    """Counts of users and exposures, where there are such tables, and of users in them who have no event."""
    ids = {name: set(pc.unique(table["user_id"]).to_pylist()) for name, table in tables.items() if name != "items"}
    counts: dict[str, int] = {}
    known = ids.pop("interactions")
    if "users" in ids:
        counts |= {"described_users": len(ids["users"]), "undescribed_users": len(known - ids["users"])}
    if "exposures" in ids:
        clicked = tables["exposures"]["clicked"]
        counts |= {"exposures": len(clicked), "clicks": pc.sum(clicked).as_py() or 0}
    if ids:
        counts["users_without_events"] = len(set().union(*ids.values()) - known)
    return counts


def _card(
    name: str,
    source: str,
    license: str,
    time: TimeKind,
    events: Histories,
    counts: dict[str, int],
    tables: Iterable[str],
) -> DatasetCard:
    data = DatasetCardData(
        license=license,
        tags=["recommendation", "hf_gr"],
        configs=[
            {"config_name": name, "data_files": f"{name}.parquet"}
            | ({"default": True} if name == "interactions" else {})
            for name in tables
        ],
        time=time,
    )
    names = {
        "same_time_events": "events at the time of the user's previous one",
        "same_time_users": "users whose last two events are at one time",
        "short_users": "users with fewer than 3 events (leave-one-out does not judge them)",
        "described_users": "rows of users.parquet",
        "undescribed_users": "users with events and no row there",
        "clicks": "exposures that were clicked",
        "users_without_events": "users of users.parquet and exposures.parquet without an event",
    }
    rows = "\n".join(f"| {names.get(key, key)} | {value:,} |" for key, value in counts.items())
    holds = "the position of an event in its user history"
    if time == "timestamp":
        first, last = events.timestamps.min(), events.timestamps.max()
        holds = f"microseconds since 1970 in UTC, from {day(first)} to {day(last)}"
    body = (
        f"# {name}\n\n{source}\n\n| what | count |\n|---|---|\n{rows}\n\n"
        f"`timestamp` holds {holds}. Events at one time stand in the order of the source. Prepared with hf_gr.\n"
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n{body}")


def day(microseconds: int) -> str:
    """The date of a time stamp, such as `"1997-09-20"`."""
    return str(np.datetime64(int(microseconds), "us").astype("datetime64[D]"))


def time_of(schema: pa.Schema, where: str | Path) -> TimeKind | None:
    """What `timestamp` holds by the schema of an `interactions.parquet`, microseconds or positions; `None` where it
    does not say. Raises [`HfGrError`] if it says something unknown, or is of a format that is."""
    metadata = schema.metadata or {}
    version = metadata.get(_FORMAT, b"1").decode()
    if not version.isdecimal() or int(version) > FORMAT:
        raise HfGrError(
            f"{where} is of dataset format {version}, but this release of hf_gr reads formats up to {FORMAT}; update "
            "hf_gr, or prepare the data again with this release."
        )
    said = metadata.get(_TIME)
    if said is not None and said not in _KINDS:
        raise HfGrError(f"{where} says that its times are {said.decode()!r}, which is unknown here; prepare it again.")
    return None if said is None else _KINDS[said]


def _with_time(interactions: pa.Table, file: Path) -> tuple[pa.Table, TimeKind]:
    """Interactions in microseconds or positions, and which of the two their file says.

    Folders of before say it on the card alone, and count seconds.
    """
    said = time_of(interactions.schema, file)
    if said is not None:
        return interactions, said
    if "timestamp" not in interactions.column_names or pa.types.is_temporal(interactions["timestamp"].type):
        return interactions, "timestamp"
    card = file.with_name("README.md")
    kind = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("time") if card.is_file() else None
    if kind == "position":
        return interactions, "position"
    if kind != "timestamp":
        raise HfGrError(
            f"{file} does not say whether `timestamp` holds times or positions, nor does its README.md; write it "
            "again with `hf-gr prepare` or hf_gr.write_dataset."
        )
    try:
        seconds = interactions["timestamp"].cast(pa.int64())
        column = pc.multiply_checked(seconds, 10**6)
    except pa.ArrowInvalid as error:
        raise HfGrError(f"{file}: column 'timestamp' cannot be read as seconds ({error}); prepare it again.") from None
    return interactions.set_column(interactions.column_names.index("timestamp"), "timestamp", column), "timestamp"


def _read_parquet(file: Path) -> pa.Table:
    if not file.is_file():
        raise HfGrError(f"{file} is missing; write the dataset folder with `hf-gr prepare`.")
    try:
        return pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise HfGrError(f"{file} is not a Parquet file ({first_line(error)}); prepare the data again.") from None


def _histories(interactions: pa.Table, items: pa.Table) -> Histories:
    users, names = numbered(interactions["user_id"])
    times = interactions["timestamp"].to_numpy()
    order = np.lexsort((times, users))  # stable: ties keep the file's order
    columns = interactions.column_names
    more = [name for name in columns if name not in INTERACTION_COLUMNS]
    return Histories(
        np.array(names.to_pylist(), dtype=object),
        np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64),
        row_of(interactions["item_id"], items["item_id"])[order],
        times[order],
        interactions["rating"].to_numpy()[order] if "rating" in columns else None,
        texts(interactions["behavior"])[order] if "behavior" in columns else None,
        np.array(interactions["review"].to_pylist(), dtype=object)[order] if "review" in columns else None,
        texts(interactions["session_id"])[order] if "session_id" in columns else None,
        wide(interactions.select(more)).take(pa.array(order)) if more else None,
    )
