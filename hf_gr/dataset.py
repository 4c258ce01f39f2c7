"""The dataset folder: reading, checking, writing and splitting it.

A folder holds `interactions.parquet`, `items.parquet` and a dataset card that declares both as configs, so that
`datasets.load_dataset(folder)` reads it too. Ids are strings end to end; inside the library an item is its row in
`items.parquet`. Splits are derived, never stored.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from .artifacts import write_manifest, writing
from .errors import HfGrError


TimeKind = Literal["timestamp", "position"]
SplitKind = Literal["leave_one_out", "temporal"]

_INTERACTION_TYPES = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()}
_OPTIONAL_INTERACTION_TYPES = {"rating": pa.float32(), "behavior": pa.string(), "review": pa.string()}
_ITEM_TYPES = {"item_id": pa.string(), "title": pa.string()}


@dataclass(frozen=True)
class Histories:
    """Event sequences, oldest first, of U users with E events in all, in CSR form.

    Attributes:
        user_ids: Array of U strings.
        ptr: int64 [U + 1]; events of user `u` are `ptr[u]:ptr[u + 1]`.
        items: int64 [E], rows of `items.parquet`.
        timestamps: int64 [E], seconds or positions.
        ratings: float32 [E] or `None`.
        behaviors: Array of E strings or `None`.
        reviews: Array of E strings, what users wrote of the items (`None` in it where they wrote nothing), or `None`.
    """

    user_ids: np.ndarray
    ptr: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    ratings: np.ndarray | None = None
    behaviors: np.ndarray | None = None
    reviews: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the item rows of every user in turn."""
        for start, end in zip(self.ptr[:-1], self.ptr[1:], strict=True):
            yield self.items[start:end]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.ptr)

    def cut(self, users: np.ndarray, ends: np.ndarray) -> "Histories":
        """The first `ends[i]` events of user `users[i]`, for every i; a user may appear more than once."""
        starts = self.ptr[users]
        ptr = np.concatenate([[0], np.cumsum(ends)]).astype(np.int64)
        rows = np.arange(ptr[-1]) - np.repeat(ptr[:-1], ends) + np.repeat(starts, ends)
        return Histories(
            self.user_ids[users],
            ptr,
            self.items[rows],
            self.timestamps[rows],
            None if self.ratings is None else self.ratings[rows],
            None if self.behaviors is None else self.behaviors[rows],
            None if self.reviews is None else self.reviews[rows],
        )


@dataclass(frozen=True)
class Cases:
    """Held-out events: what was known before each (`histories`), and what was taken (`targets`, int64 [cases])."""

    histories: Histories
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Split:
    """`train` is all that may teach; `validation` and `test` are only ever predicted."""

    train: Histories
    validation: Cases
    test: Cases


@dataclass(frozen=True)
class InteractionDataset:
    """A dataset folder in memory.

    Attributes:
        path: The folder.
        items: Table with `item_id`, `title` and optional `brand`, `categories`, `description`, `image`.
        events: Every user's events in stable time order.
        time: Whether `events.timestamps` are seconds (`"timestamp"`) or only an order (`"position"`).
    """

    path: Path
    items: pa.Table
    events: Histories
    time: TimeKind

    @classmethod
    def load(cls, path: str | Path) -> "InteractionDataset":
        """Reads and checks a folder. Raises [`HfGrError`] that names the file, the value and the remedy."""
        path = Path(path)
        items = check_items(_read_parquet(path / "items.parquet"), path / "items.parquet")
        file = path / "interactions.parquet"
        interactions = check_interactions(_read_parquet(file), items, file)
        return cls(path, items, _histories(interactions, items), _time_kind(path / "README.md"))

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
        """The dataset with its events counted in rows of `item_ids` (a catalogue's), which must hold every one taken.

        Raises [`HfGrError`] naming the first item that is missing.
        """
        if item_ids == self.item_ids:
            return self
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        rows = np.array([row_of.get(item_id, -1) for item_id in self.item_ids], np.int64)[self.events.items]
        if (rows < 0).any():
            missing = self.item_ids[self.events.items[int((rows < 0).argmax())]]
            raise HfGrError(
                f"{self.path}: item {missing!r} is not in the catalogue of {len(item_ids)} items that the model "
                "knows; make a new catalogue with `hf-gr quantize`, or drop that item's events."
            )
        return replace(self, events=replace(self.events, items=rows))

    def split(self, kind: SplitKind = "leave_one_out", ratios: tuple[float, float] = (0.8, 0.1)) -> Split:
        """Derives the training part, validation and test.

        Args:
            kind: `"leave_one_out"`: of every user the last event is test, the one before validation. `"temporal"`: the
                first `ratios[0]` of all events by time teach, the next `ratios[1]` validate, the rest test; every
                held-out event of a user with an earlier one is a case.
            ratios: Shares of training and validation events (`"temporal"` only).
        """
        if kind == "leave_one_out":
            return self._leave_one_out()
        if kind == "temporal":
            return self._temporal(*ratios)
        raise HfGrError(f"unknown split {kind!r}; use 'leave_one_out' or 'temporal'.")

    def _leave_one_out(self) -> Split:
        events, lengths = self.events, self.events.lengths
        short = np.flatnonzero(lengths < 3)
        if len(short):
            raise HfGrError(
                f"{self.path}: {len(short)} user(s) have fewer than 3 events (first: {events.user_ids[short[0]]!r} "
                f"with {lengths[short[0]]}), but leave-one-out needs one each for training, validation and test; "
                "prepare the data with --min-user-events 3 (or --k-core 5)."
            )
        users = np.arange(len(events))
        return Split(
            events.cut(users, lengths - 2),
            Cases(events.cut(users, lengths - 2), events.items[events.ptr[1:] - 2]),
            Cases(events.cut(users, lengths - 1), events.items[events.ptr[1:] - 1]),
        )

    def _temporal(self, train: float, validation: float) -> Split:
        if self.time == "position":
            raise HfGrError(
                f"{self.path} has only positions, no clock (see its README.md): a temporal split would mix users' "
                "times; use the leave_one_out split, or prepare the data with time stamps."
            )
        if not (0 < train < 1 and 0 < validation < 1 - train):
            raise HfGrError(f"split ratios {train}, {validation} must be positive and leave a share for the test.")
        events = self.events
        ordered = np.sort(events.timestamps)
        first = ordered[int(train * len(ordered))]
        second = ordered[int((train + validation) * len(ordered))]
        owner = np.repeat(np.arange(len(events)), events.lengths)
        known = np.bincount(owner[events.timestamps < first], minlength=len(events))
        taught = np.flatnonzero(known)

        def cases(start: int, end: int | None) -> Cases:
            inside = (
                events.timestamps >= start if end is None else (events.timestamps >= start) & (events.timestamps < end)
            )
            rows = np.flatnonzero(inside)
            before = rows - events.ptr[owner[rows]]
            rows, before = rows[before > 0], before[before > 0]
            if not len(rows):
                raise HfGrError(f"{self.path}: the temporal split leaves a part without cases; change the ratios.")
            return Cases(events.cut(owner[rows], before), events.items[rows])

        return Split(events.cut(taught, known[taught]), cases(first, second), cases(second, None))


def popularity(train: Histories, num_items: int) -> np.ndarray:
    """Training events per item, int64 [num_items]."""
    return np.bincount(train.items, minlength=num_items)


def check_items(items: pa.Table, where: str | Path) -> pa.Table:
    """Items with checked columns and string ids; raises [`HfGrError`] on missing columns, nulls or repeated ids."""
    items = _typed(items, _ITEM_TYPES, {}, where)
    if items.num_rows == 0:
        raise HfGrError(f"{where} holds no items; check the source that it was prepared from.")
    counts = pc.value_counts(items["item_id"])
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise HfGrError(
            f"{where}: item_id {repeated[0]['values'].as_py()!r} occurs {repeated[0]['counts'].as_py()} times "
            f"({len(repeated)} ids are repeated); keep one row per item."
        )
    return items


def check_interactions(interactions: pa.Table, items: pa.Table, where: str | Path) -> pa.Table:
    """Interactions with checked columns, of known items only; raises [`HfGrError`] otherwise."""
    interactions = _typed(interactions, _INTERACTION_TYPES, _OPTIONAL_INTERACTION_TYPES, where)
    if interactions.num_rows == 0:
        raise HfGrError(f"{where} holds no interactions; check the source, or loosen --k-core and --min-rating.")
    unknown = interactions.filter(pc.invert(pc.is_in(interactions["item_id"], items["item_id"].combine_chunks())))
    if unknown.num_rows:
        raise HfGrError(
            f"{where}: {unknown.num_rows} interaction(s) name an item that is not among the items (first: item "
            f"{unknown['item_id'][0].as_py()!r} of user {unknown['user_id'][0].as_py()!r}); add it to the items or "
            "drop those rows."
        )
    return interactions


def write_dataset(
    path: str | Path,
    interactions: pa.Table,
    items: pa.Table,
    *,
    source: str,
    license: str = "unknown",
    time: TimeKind = "timestamp",
    settings: dict | None = None,
) -> None:
    """Checks both tables and writes the folder with its card, atomically.

    Args:
        path: Folder to write.
        interactions: Columns `user_id`, `item_id`, `timestamp`, optional `rating`, `behavior`, `review`; rows of
            one user and one time keep their order.
        items: Columns `item_id`, `title` and whatever else is known of the items.
        source: Where the data comes from, in a sentence; stands on the card.
        license: Licence identifier or `"unknown"`.
        time: What `timestamp` holds: seconds, or only an order.
        settings: How the data was prepared; goes into the manifest.
    """
    items = check_items(items, "items")
    interactions = check_interactions(interactions, items, "interactions")
    counts = {
        "users": pc.count_distinct(interactions["user_id"]).as_py(),
        "items": items.num_rows,
        "interactions": interactions.num_rows,
    }
    with writing(path) as folder:
        pq.write_table(interactions, folder / "interactions.parquet")
        pq.write_table(items, folder / "items.parquet")
        _card(Path(path).name, source, license, time, counts).save(folder / "README.md")
        write_manifest(folder, "prepare", settings or {}, {}, counts=counts)


def _card(name: str, source: str, license: str, time: TimeKind, counts: dict[str, int]) -> DatasetCard:
    data = DatasetCardData(
        license=license,
        tags=["recommendation", "hf_gr"],
        configs=[
            {"config_name": "interactions", "data_files": "interactions.parquet", "default": True},
            {"config_name": "items", "data_files": "items.parquet"},
        ],
        time=time,
    )
    rows = "\n".join(f"| {key} | {value:,} |" for key, value in counts.items())
    body = (
        f"# {name}\n\n{source}\n\n| what | count |\n|---|---|\n{rows}\n\n"
        f"`timestamp` holds {'seconds' if time == 'timestamp' else 'the position of an event in its user history'}. "
        "Prepared with hf_gr.\n"
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n{body}")


def _time_kind(card: Path) -> TimeKind:
    if not card.is_file():
        return "timestamp"
    kind = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("time", "timestamp")
    if kind not in ("timestamp", "position"):
        raise HfGrError(f"{card}: time is {kind!r}; write 'timestamp' or 'position'.")
    return kind


def _read_parquet(file: Path) -> pa.Table:
    if not file.is_file():
        raise HfGrError(f"{file} is missing; write the dataset folder with `hf-gr prepare`.")
    try:
        return pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise HfGrError(f"{file} is not a Parquet file ({error}); prepare the data again.") from None


def _typed(table: pa.Table, required: dict, optional: dict, where: str | Path) -> pa.Table:
    for name, kind in (required | optional).items():
        if name not in table.column_names:
            if name in optional:
                continue
            found = ", ".join(table.column_names)
            raise HfGrError(f"{where} has no column {name!r} (it has: {found}); name it in the column map.")
        if name in required and table[name].null_count:
            row = pc.index(pc.is_null(table[name]), True).as_py()
            raise HfGrError(f"{where}: {name!r} is empty in row {row}; fill it or drop the row.")
        try:
            column = table[name].cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise HfGrError(f"{where}: column {name!r} cannot be read as {kind} ({error}).") from None
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _histories(interactions: pa.Table, items: pa.Table) -> Histories:
    users = interactions["user_id"].combine_chunks().dictionary_encode()
    codes = users.indices.to_numpy()
    times = interactions["timestamp"].to_numpy()
    order = np.lexsort((times, codes))  # stable: ties keep the file's order
    rows = pc.index_in(interactions["item_id"], items["item_id"].combine_chunks()).to_numpy().astype(np.int64)
    columns = interactions.column_names
    return Histories(
        np.array(users.dictionary.to_pylist(), dtype=object),
        np.concatenate([[0], np.cumsum(np.bincount(codes))]).astype(np.int64),
        rows[order],
        times[order],
        interactions["rating"].to_numpy()[order] if "rating" in columns else None,
        np.array(interactions["behavior"].to_pylist(), dtype=object)[order] if "behavior" in columns else None,
        np.array(interactions["review"].to_pylist(), dtype=object)[order] if "review" in columns else None,
    )
