"""Interactions out of whatever a source calls them: string ids, microseconds or positions, ratings, behaviors."""

from collections.abc import Mapping
from pathlib import Path

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_gr.dataset import TimeKind, day
from hf_gr.errors import HfGrError

from .files import JSON_FLOAT, ROW
from .times import BEYOND, FIRST_YEAR, LAST_YEAR, Times, TimeUnit, read_times
from .values import BLANKS, empty, ids, is_text, numbers, typed, whole_numbers


REQUIRED = ("user_id", "item_id")
OPTIONAL = ("timestamp", "position", "session_id", "rating", "behavior", "review")
FINE, PLACE = "_nanoseconds", "_position"  # columns that only tell events apart: they are not written


def without_spare_position(picked: dict[str, str], columns: Mapping[str, str]) -> dict[str, str]:
    """The picked columns without a `position` that stands beside times and that the user did not map; says so."""
    if not {"timestamp", "position"} <= set(picked) or "position" in columns:
        return picked
    print(
        "[prepare] column 'position' left out, as there are times; --column position=position lets it order the "
        "events of one time",
        flush=True,
    )
    return {ours: theirs for ours, theirs in picked.items() if ours != "position"}


def typed_events(
    table: pa.Table,
    where: str | Path,
    unit: TimeUnit = "auto",
    *,
    any_year: bool | None = None,
    drop_empty: bool | None = None,
) -> tuple[daft.DataFrame, TimeKind]:
    """Reads every column as what it must be, and says what was found.

    Args:
        table: Columns `user_id`, `item_id`, `timestamp` or `position` (or both: then the position orders what has one
            time), optional `session_id`, `rating`, `behavior` and `review`, and others, which are kept
            (`data_prep.values.typed`); text, numbers or dates; rows in the file's order.
        where: File, for messages.
        unit: What numbers in `timestamp` count; see `data_prep.times.read_times`.
        any_year: Whether times outside the years from 1970 to 2100 are taken; `None` where the command has no options
            of time.
        drop_empty: Whether rows without user, item or time are dropped; `None` where the command has no such option.

    Returns:
        The events (`user_id`, `item_id` str, `timestamp` int64 microseconds UTC or positions, `rating` float32,
        `session_id`, `behavior`, `review` str, and the others), whether `timestamp` is a time or a position, and
        helpers: `_row`, the place in the order by full time, position and row of the file, and where needed what tells
        events of one microsecond apart.

    Raises:
        HfGrError: That names an empty or unreadable value.
    """
    if "timestamp" not in table.column_names and "position" not in table.column_names:
        raise HfGrError(
            f"{where} has neither a column 'timestamp' nor 'position'; map the time, --column timestamp=THEIR_NAME, "
            "or a column that says in which order things happened, --column position=THEIR_NAME."
        )
    time: TimeKind = "timestamp" if "timestamp" in table.column_names else "position"
    if time == "position" and (unit != "auto" or any_year):
        raise HfGrError(f"{where} has positions, not times; leave --time-unit and --any-year out.")
    table = _without_empty(table, where, bool(drop_empty))
    events, bad = _typed(table, where, time, unit, any_year)
    for name, wrong in bad.items():
        _refuse(table, name, wrong, where, drop_empty is not None)
    _say_blanks(table, where)
    return daft.from_arrow(events), time


def _typed(
    table: pa.Table, where: str | Path, time: TimeKind, unit: TimeUnit, any_year: bool | None
) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """The events, and of every column where it holds what it must not, bool [N]."""
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    bad: dict[str, np.ndarray] = {}
    for name in REQUIRED:
        floats = _json_floats(table, name)
        columns[name] = ids(table[name], name, where, json_floats=floats)
        bad[name] = pc.is_null(columns[name]).to_numpy(zero_copy_only=False)
        if is_text(table[name].type) and not floats:
            _check_points(columns[name], name, where)
    keys: list[np.ndarray] = []
    place = None
    if "position" in table.column_names:
        place, valid = _positions(table["position"], where)
        bad["position"] = ~valid
        keys.append(place)
    if time == "timestamp":
        times = read_times(table["timestamp"], where, unit)
        if times.unit == "dates" and unit != "auto" and any_year is not None:
            raise HfGrError(f"{where}: the times are dates, of which --time-unit says nothing; leave it out.")
        bad["timestamp"] = ~times.valid
        if not bad["timestamp"].any():
            _check_years(table, times, where, any_year)
        columns["timestamp"] = pa.array(times.microseconds)
        keys += [times.nanoseconds, times.microseconds]
        if times.nanoseconds.any():
            columns[FINE] = pa.array(times.nanoseconds)
        if place is not None:
            columns[PLACE] = pa.array(place)
        _say_times(times)
    else:
        columns["timestamp"] = pa.array(place)
    if "rating" in table.column_names:
        with np.errstate(over="ignore"):
            ratings = numbers(table["rating"], "rating", where).astype(np.float32)
        bad["rating"] = ~np.isfinite(ratings) & ~empty(table["rating"])
        columns["rating"] = pa.array(ratings, from_pandas=True)
    for name in ("behavior", "review"):
        if name in table.column_names:
            columns[name] = _words(table[name], name, where)
    if "session_id" in table.column_names:
        floats = _json_floats(table, "session_id")
        columns["session_id"] = ids(table["session_id"], "session_id", where, json_floats=floats)
    for name in table.column_names:
        if name not in (*REQUIRED, *OPTIONAL):
            columns[name] = typed(table[name], name, where)
    columns[ROW] = pa.array(_ranks(keys))
    return pa.table(columns), bad


def _json_floats(table: pa.Table, name: str) -> bool:
    return (table.schema.field(name).metadata or {}).items() >= JSON_FLOAT.items()


def _ranks(keys: list[np.ndarray]) -> np.ndarray:
    """Place of every row in the order of the keys, the last one first; ties keep the file's order."""
    order = np.lexsort(keys)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _positions(column: pa.ChunkedArray, where: str | Path) -> tuple[np.ndarray, np.ndarray]:
    if pa.types.is_integer(column.type):
        return whole_numbers(column)
    values = numbers(column, "position", where)
    valid = (values == np.floor(values)) & (np.abs(values) < 2**53)
    return np.where(valid, values, 0).astype(np.int64), valid


def _words(column: pa.ChunkedArray, name: str, where: str | Path) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise HfGrError(f"{where}: column {name!r} holds {kind}, but must be text; write it as text.")
    if not is_text(kind):
        column = column.cast(pa.string())
    if name == "behavior":
        column = pc.utf8_trim(column, characters=BLANKS)
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)


def _without_empty(table: pa.Table, where: str | Path, drop: bool) -> pa.Table:
    if not drop:
        return table
    names = [name for name in (*REQUIRED, "timestamp", "position") if name in table.column_names]
    nothing = {name: empty(table[name]) for name in names}
    any_of = np.logical_or.reduce(list(nothing.values()))
    counts = ", ".join(f"{int(wrong.sum()):,} without {name}" for name, wrong in nothing.items() if wrong.any())
    kept = table.filter(pa.array(~any_of))
    print(
        f"[prepare] drop empty: {table.num_rows:,} -> {kept.num_rows:,} rows ({counts or 'none'})",
        flush=True,
    )
    return kept


def _refuse(table: pa.Table, name: str, wrong: np.ndarray, where: str | Path, droppable: bool) -> None:
    if not wrong.any():
        return
    row = int(wrong.argmax())
    value, user, item = (_cell(table, column, row) for column in (name, *REQUIRED))
    remedy = "fix or drop the row(s)"
    if not empty(table[name].slice(row, 1))[0]:
        kinds = {
            "timestamp": "a number or an ISO date such as 2024-03-01T10:00:00",
            "position": "a whole number",
            "rating": "a number",
        }
        problem = f"column {name!r} holds {value!r}, which is not {kinds.get(name, 'a whole-number id')},"
    else:
        problem = (
            f"column {name!r} is empty" if value in (None, "", "nan") else f"column {name!r} is empty ({value!r})"
        )
        remedy += ", or let --drop-empty drop rows without user, item or time" if droppable else ""
    raise HfGrError(
        f"{where}: {problem} for user {user!r}, item {item!r} in row {row + 1} ({int(wrong.sum())} such row(s)); "
        f"{remedy}."
    )


def _check_years(table: pa.Table, times: Times, where: str | Path, any_year: bool | None) -> None:
    far = times.microseconds == BEYOND if any_year else ~times.usual
    if not far.any():
        return
    row = int(far.argmax())
    value, user, item = (_cell(table, column, row) for column in ("timestamp", *REQUIRED))
    raise HfGrError(
        f"{where}: column 'timestamp' holds {value!r}, which is not in the years {FIRST_YEAR} to {LAST_YEAR} (read as "
        f"{times.unit}), for user {user!r}, item {item!r} in row {row + 1} ({int(far.sum())} such row(s)); fix or "
        f"drop the row(s){', or see --time-unit and --any-year' * (any_year is False)}."
    )


def _cell(table: pa.Table, name: str, row: int) -> str | None:
    value = table[name][row].as_py()
    return None if value is None else str(value)


def _check_points(column: pa.ChunkedArray, name: str, where: str | Path) -> None:
    """Refuses `12` beside `12.0`; says that ids end in `.0`."""
    names = pc.unique(column)
    pointed = names.filter(pc.fill_null(pc.match_substring_regex(names, r"^-?\d+\.0$"), False))
    if not len(pointed):
        return
    bare = pc.utf8_slice_codeunits(pointed, 0, -2)
    both = pc.is_in(bare, names)
    if pc.any(both).as_py():
        first = bare.filter(both)[0].as_py()
        raise HfGrError(
            f"{where}: column {name!r} has ids {first!r} and {first + '.0'!r} ({pc.sum(both).as_py()} pair(s)), "
            "as whole numbers become where pandas reads a gap; write each id in one way."
        )
    print(
        f"[prepare] {name}: {len(pointed):,} ids end in '.0', as whole numbers do after a gap in pandas "
        f"({pointed[0].as_py()!r}); they are taken as they are written",
        flush=True,
    )


def _say_blanks(table: pa.Table, where: str | Path) -> None:
    for name in REQUIRED:
        if not is_text(table[name].type):
            continue
        blank = pc.sum(pc.not_equal(table[name], pc.utf8_trim(table[name], characters=BLANKS))).as_py()
        if blank:
            print(f"[prepare] {name}: blanks around {blank:,} ids dropped", flush=True)


def _say_times(times: Times) -> None:
    if times.valid.any():
        known = times.microseconds[times.valid]
        print(f"[prepare] times: {times.unit}, {day(known.min())} to {day(known.max())}", flush=True)
