"""Tables of items and interactions as they must be: which columns, of which types, and what of another type means."""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import HfGrError


TimeKind = Literal["timestamp", "position"]

_TEXTS = ("title", "brand", "description", "image")
_OPTIONAL_INTERACTION_TYPES = {"rating": pa.float32(), "behavior": pa.string(), "review": pa.string()}
INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "session_id", *_OPTIONAL_INTERACTION_TYPES)
EXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}  # from here on whole numbers fall together
_SLICE = 2**16  # rows cast at a time: a chunk of strings holds 2 GiB of text at most


def as_table(data: Any, what: str) -> pa.Table:
    """An Arrow table: as it is, or from a DataFrame (pandas, polars), whose index is left out.

    Raises [`HfGrError`] for anything else, and on columns of one name.
    """
    if not isinstance(data, pa.Table):
        try:
            data = pa.table(data)
        except (TypeError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise HfGrError(f"{what} are no table ({reason}); give a pyarrow.Table or a DataFrame.") from None
    twin = next((name for name in data.column_names if data.column_names.count(name) > 1), None)
    if twin is not None:
        raise HfGrError(f"{what} have {data.column_names.count(twin)} columns {twin!r}; keep one.")
    return data.select([name for name in data.column_names if not re.fullmatch(r"__index_level_\d+__", name)])


def check_items(items: pa.Table, where: str | Path) -> pa.Table:
    """Items with checked columns, ids and texts as strings, `categories` as lists of strings.

    Raises [`HfGrError`] on missing columns, nulls, repeated ids, and ids or categories of another kind.
    """
    _require(items, ("item_id", "title"), where)
    items = _with(items, "item_id", id_texts(items["item_id"], "item_id", where))
    for name in _TEXTS:
        if name in items.column_names:
            items = _with(items, name, _cast(items[name], pa.string(), name, where))
    if "categories" in items.column_names:
        items = _with(items, "categories", _lists(items, where))
    if items.num_rows == 0:
        raise HfGrError(f"{where} holds no items; check the source that it was prepared from.")
    _refuse_repeated(items, "item_id", "an item", where)
    return items


def check_users(users: pa.Table, where: str | Path) -> pa.Table:
    """What is known of users: `user_id` as string, no id twice, other columns as they are.

    Raises [`HfGrError`] on a missing column, and on ids that are null, repeated or of another kind.
    """
    _require(users, ("user_id",), where)
    users = _with(users, "user_id", id_texts(users["user_id"], "user_id", where))
    _refuse_repeated(users, "user_id", "a user", where)
    return users


def check_exposures(exposures: pa.Table, items: pa.Table, where: str | Path, time: TimeKind) -> pa.Table:
    """Who was shown which known item, and whether the item was clicked.

    Args:
        exposures: Columns `user_id`, `item_id`, `timestamp`, `clicked` (yes or no, or 1 and 0), and others, which stay
            as they are.
        items: From [`check_items`].
        where: File, for messages.
        time: What `timestamp` holds, as in [`check_interactions`].

    Returns:
        The table: ids string, `timestamp` int64, `clicked` bool. Raises [`HfGrError`] as [`check_interactions`].
    """
    _require(exposures, ("user_id", "item_id", "timestamp", "clicked"), where)
    for name in ("user_id", "item_id"):
        exposures = _with(exposures, name, id_texts(exposures[name], name, where))
    exposures = _with(exposures, "timestamp", _times(exposures["timestamp"], time, where))
    exposures = _with(exposures, "clicked", _flags(exposures["clicked"], "clicked", where))
    _refuse_unknown(exposures, items, "exposure(s)", where)
    return exposures


def check_interactions(interactions: pa.Table, items: pa.Table, where: str | Path, time: TimeKind) -> pa.Table:
    """Interactions of known items with checked columns.

    Args:
        interactions: Columns `user_id`, `item_id`, `timestamp`, optional `session_id`, `rating`, `behavior`,
            `review`, and others, which stay as they are.
        items: From [`check_items`].
        where: File, for messages.
        time: What whole numbers in `timestamp` are: microseconds since 1970 in UTC, or positions. Dates and times of
            any unit become microseconds (UTC where they name no zone), finer ones are cut.

    Returns:
        The table: ids string (`session_id` null where there is no session), `timestamp` int64, `rating` float32,
        `behavior` and `review` string. Raises [`HfGrError`] on missing columns, nulls, items that are unknown, and
        values of another kind.
    """
    _require(interactions, ("user_id", "item_id", "timestamp"), where)
    for name in ("user_id", "item_id"):
        interactions = _with(interactions, name, id_texts(interactions[name], name, where))
    if "session_id" in interactions.column_names:
        interactions = _with(interactions, "session_id", _optional_ids(interactions["session_id"], where))
    interactions = _with(interactions, "timestamp", _times(interactions["timestamp"], time, where))
    for name, kind in _OPTIONAL_INTERACTION_TYPES.items():
        if name in interactions.column_names:
            interactions = _with(interactions, name, _cast(interactions[name], kind, name, where))
    if interactions.num_rows == 0:
        raise HfGrError(f"{where} holds no interactions; check the source, or loosen --k-core and --min-rating.")
    _refuse_unknown(interactions, items, "interaction(s)", where)
    return interactions


def _refuse_repeated(table: pa.Table, name: str, one: str, where: str | Path) -> None:
    counts = pc.value_counts(table[name])
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        rows = np.flatnonzero(pc.equal(table[name], repeated[0]).to_numpy())
        more = f"; {len(repeated) - 1:,} more id(s) are repeated" if len(repeated) > 1 else ""
        raise HfGrError(
            f"{where}: {name} {repeated[0].as_py()!r} stands in rows {rows[0]} and {rows[1]} (the first row is 0"
            f"{more}); keep one row for {one}."
        )


def _refuse_unknown(table: pa.Table, items: pa.Table, rows_are: str, where: str | Path) -> None:
    rows = row_of(table["item_id"], items["item_id"])
    if (rows < 0).any():
        first = int((rows < 0).argmax())
        raise HfGrError(
            f"{where}: {(rows < 0).sum()} {rows_are} name an item that is not among the items (first: item "
            f"{table['item_id'][first].as_py()!r} of user {table['user_id'][first].as_py()!r}); add it to the items "
            "or drop those rows."
        )


def _flags(column: pa.ChunkedArray, name: str, where: str | Path) -> pa.ChunkedArray:
    """Yes and no as bool: of booleans, and of numbers that are 1 and 0."""
    if pa.types.is_boolean(column.type):
        return column
    values = pc.unique(column)
    numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if not numeric or not set(values.to_pylist()) <= {0, 1}:
        first = next(value for value in values.to_pylist() if not numeric or value not in (0, 1))
        raise HfGrError(f"{where}: column {name!r} holds {first!r}; give true or false, or 1 or 0.")
    return column.cast(pa.bool_())


def id_texts(column: pa.ChunkedArray, name: str, where: str | Path) -> pa.ChunkedArray:
    """Ids as text: strings as they are, whole numbers without a point (12.0, as pandas writes it, is the id 12)."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind in EXACT:
        values = np.concatenate([np.empty(0), *(chunk.cast(kind).to_numpy() for chunk in column.chunks)])
        bad = ~(np.abs(values) < EXACT[kind]) | (values != np.floor(values))  # NaN is bad too
        if bad.any():
            row = int(bad.argmax())
            raise HfGrError(
                f"{where}: {name!r} is {values[row]} in row {row}, a {kind} that is no whole number or too large to "
                "tell ids apart; give ids as strings or integers."
            )
        return pa.chunked_array([pa.array(values.astype(np.int64))]).cast(pa.string())
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
    whole = pa.types.is_decimal(kind) and kind.scale == 0
    if not whole and not any(is_one(kind) for is_one in texts):
        raise HfGrError(f"{where}: column {name!r} holds {kind}, but ids are strings or whole numbers; convert it.")
    return _cast(column, pa.string(), name, where)


def _optional_ids(column: pa.ChunkedArray, where: str | Path) -> pa.ChunkedArray:
    """[`id_texts`] of a column `session_id`, null where it is."""
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column), pa.string())])
    there = column.is_valid().to_numpy()
    return id_texts(column.drop_null(), "session_id", where).take(pa.array(np.cumsum(there) - 1, mask=~there))


def wide(table: pa.Table) -> pa.Table:
    """A table whose texts may be taken in any order: more than 2 GiB of them fit into one array."""
    large = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    return table.cast(pa.schema([field.with_type(large.get(field.type, field.type)) for field in table.schema]))


def texts(column: pa.ChunkedArray) -> np.ndarray:
    """A column of strings as an array of Python's, `None` for null; equal ones are one object."""
    numbers, values = numbered(column)
    return np.array([*values.to_pylist(), None], dtype=object)[numbers]


def numbered(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """The values of a column of strings in the order in which they first occur (large_string), and the number of every
    row's among them, int64 [rows] (-1 for null). The column may hold more than 2 GiB of text."""
    encoded = column.cast(pa.large_string()).dictionary_encode().unify_dictionaries()
    if not encoded.num_chunks:
        return np.empty(0, np.int64), pa.array([], pa.large_string())
    numbers = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.chunks]).astype(np.int64)
    return numbers, encoded.chunk(0).dictionary


def row_of(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Where every id stands in `among`, int64 [ids]; -1 where it does not."""
    numbers, values = numbered(ids)
    found = pc.index_in(values, among.cast(pa.large_string()).combine_chunks())
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)[numbers]


def _require(table: pa.Table, names: tuple[str, ...], where: str | Path) -> None:
    for name in names:
        if name not in table.column_names:
            found = ", ".join(table.column_names)
            raise HfGrError(f"{where} has no column {name!r} (it has: {found}); name it in the column map.")
        if table[name].null_count:
            row = pc.index(pc.is_null(table[name]), True).as_py()
            raise HfGrError(f"{where}: {name!r} is empty in row {row}; fill it or drop the row.")


def _with(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _cast(column: pa.ChunkedArray, kind: pa.DataType, name: str, where: str | Path) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    try:
        slices = [chunk.slice(start, _SLICE) for chunk in column.chunks for start in range(0, len(chunk), _SLICE)]
        return pa.chunked_array([part.cast(kind) for part in slices], kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise HfGrError(f"{where}: column {name!r} cannot be read as {kind} ({error}).") from None


def _lists(items: pa.Table, where: str | Path) -> pa.ChunkedArray:
    """Categories as lists of strings; no list (null) is an empty one."""
    column, kind = items["categories"], pa.list_(pa.string())
    if not (pa.types.is_null(column.type) or pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        there = column.drop_null()
        value = there[0].as_py() if len(there) else None
        raise HfGrError(
            f"{where}: column 'categories' holds {column.type} (first: {value!r}); give every item a list of strings, "
            f"such as {str(value).split('|')!r}."
        )
    column = _cast(column, kind, "categories", where)
    for chunk, start in zip(column.chunks, np.cumsum([0, *map(len, column.chunks)]), strict=False):
        if chunk.flatten().null_count:
            row = next(row for row, value in enumerate(chunk.to_pylist()) if value and None in value)
            item_id = items["item_id"][int(start) + row].as_py()
            raise HfGrError(f"{where}: a category of item {item_id!r} is empty (null); drop it from the list.")
    return column


def _times(column: pa.ChunkedArray, time: TimeKind, where: str | Path) -> pa.ChunkedArray:
    kind = column.type
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return _cast(column, pa.int64(), "timestamp", where)
    if time == "position":
        raise HfGrError(f"{where}: column 'timestamp' holds {kind}, not positions; leave out time='position'.")
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        nanoseconds = column.cast(pa.int64()).to_numpy()
        return pa.chunked_array([pa.array(nanoseconds // 1000)])
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    try:
        return column.cast(pa.timestamp("us", zone)).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise HfGrError(f"{where}: column 'timestamp' does not fit into microseconds ({error}).") from None


def matched(items: pa.Table, schema: pa.Schema) -> pa.Table:
    """Items with the columns of a schema: those that they lack are null, others are left out.

    Raises [`HfGrError`] on a column of another type.
    """
    columns = [
        _as_type(items[ours.name], ours) if ours.name in items.column_names else pa.nulls(len(items), ours.type)
        for ours in schema
    ]
    return pa.table(columns, schema=schema)


def with_rows(table: pa.Table, rows: np.ndarray, items: pa.Table) -> pa.Table:
    """A table whose rows int64 [n] have the columns of n items; columns that only one of the two has stay as they are.

    Raises [`HfGrError`] on a column of another type.
    """
    order = np.arange(len(table))
    order[rows] = len(table) + np.arange(len(rows))
    for place, ours in enumerate(table.schema):
        if ours.name in items.column_names:
            column = pa.chunked_array([*table[ours.name].chunks, *_as_type(items[ours.name], ours).chunks])
            table = table.set_column(place, ours, column.take(order))
    return table


def _as_type(column: pa.ChunkedArray, ours: pa.Field) -> pa.ChunkedArray:
    try:
        return column.cast(ours.type)
    except pa.ArrowException:
        raise HfGrError(
            f"column {ours.name!r} of the items is {column.type}, but {ours.type} in the catalog; convert it."
        ) from None
