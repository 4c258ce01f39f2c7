"""Interactions out of whatever a source calls them: string ids, microseconds or positions, ratings, behaviours."""

from pathlib import Path
from typing import Literal

import daft
from daft import DataType, Expression, col, lit
from daft.functions import coalesce, when

from hf_gr.dataset import TimeKind
from hf_gr.errors import HfGrError

from .files import ROW


TimeUnit = Literal["auto", "s", "ms", "us", "ns"]

REQUIRED = ("user_id", "item_id")
OPTIONAL = ("timestamp", "position", "rating", "behavior", "review")
_MICROSECONDS = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1e-3}


def typed_events(frame: daft.DataFrame, where: str | Path, unit: TimeUnit = "auto") -> tuple[daft.DataFrame, TimeKind]:
    """Reads every column as what it must be.

    Args:
        frame: Columns `_row` (place in the file), `user_id`, `item_id`, `timestamp` or `position`, optional `rating`,
            `behavior` and `review`; strings, numbers or dates.
        where: File, for messages.
        unit: What numbers in `timestamp` count; `"auto"` tells it from the largest: below 1e11 seconds (the year
            5138), below 1e14 milliseconds, below 1e17 microseconds, else nanoseconds (our choice). Dates are ISO 8601,
            in UTC where they name no zone.

    Returns:
        The events (`user_id`, `item_id` str, `timestamp` int64, `rating` float32, `behavior`, `review` str, and
        `_row`), and whether `timestamp` holds microseconds or positions. Raises [`HfGrError`] that names an empty or
        unreadable value.
    """
    names = frame.column_names
    if "timestamp" not in names and "position" not in names:
        raise HfGrError(f"{where} has neither a column 'timestamp' nor 'position'; map one: timestamp=THEIR_NAME.")
    time: TimeKind = "timestamp" if "timestamp" in names else "position"
    parsed = {name: _id(frame, name, where) for name in REQUIRED}
    parsed["timestamp"] = _microseconds(frame, unit) if time == "timestamp" else _integer(col("position"))
    if "rating" in names:
        parsed["rating"] = _finite(col("rating")).cast(DataType.float32())
    parsed |= {name: col(name).cast(DataType.string()) for name in ("behavior", "review") if name in names}
    raw = {name: col(time if name == "timestamp" else name).cast(DataType.string()) for name in parsed}
    both = frame.select(
        ROW, *[parsed[name].alias(name) for name in parsed], *[raw[name].alias(f"raw_{name}") for name in parsed]
    ).collect()
    _check(both, where, time)
    return both.select(ROW, *parsed), time


def _id(frame: daft.DataFrame, name: str, where: str | Path) -> Expression:
    kind = frame.schema()[name].dtype
    if kind.is_string():
        return when(col(name) != "", col(name))
    if kind.is_integer():
        return col(name).cast(DataType.string())
    if kind.is_float32() or kind.is_float64():  # integers with gaps, as pandas writes them: 12.0 is the id "12"
        whole = col(name).try_cast(DataType.int64())
        return when(whole.cast(DataType.float64()) == col(name), whole.cast(DataType.string()))
    raise HfGrError(f"{where}: column {name!r} holds {kind}, but ids must be strings or whole numbers.")


def _finite(value: Expression) -> Expression:
    number = value.try_cast(DataType.float64())
    return when(number.abs() < lit(float("inf")), number)  # also drops NaN, which is less than nothing


def _integer(value: Expression) -> Expression:
    number = _finite(value)
    return when(number == number.floor(), number.cast(DataType.int64()))


def _microseconds(frame: daft.DataFrame, unit: TimeUnit) -> Expression:
    value, microseconds = col("timestamp"), DataType.timestamp("us", "UTC")
    kind = frame.schema()["timestamp"].dtype
    moment = value.try_cast(microseconds).cast(DataType.int64())
    if kind.is_temporal():
        return moment
    number = _finite(value)
    if unit == "auto":
        largest = frame.agg(number.abs().max().alias("largest")).to_pydict()["largest"][0] or 0
        unit = "s" if largest < 1e11 else "ms" if largest < 1e14 else "us" if largest < 1e17 else "ns"
    counted = (number * _MICROSECONDS[unit]).floor().cast(DataType.int64())
    return coalesce(counted, moment) if kind.is_string() else counted


def _check(both: daft.DataFrame, where: str | Path, time: TimeKind) -> None:
    must = [name for name in both.column_names if name in ("user_id", "item_id", "timestamp", "rating")]
    bad = {name: col(name).is_null() for name in must}
    if "rating" in bad:  # an interaction may lack a rating, but what is there must be a number
        bad["rating"] = bad["rating"] & (coalesce(col("raw_rating"), lit("")) != lit(""))
    counts = both.agg(*[wrong.cast(DataType.int64()).sum().alias(name) for name, wrong in bad.items()]).to_pydict()
    for name in must:
        count = counts[name][0]
        if not count:
            continue
        first = both.where(bad[name]).sort(ROW).limit(1).to_pydict()
        value, who = first[f"raw_{name}"][0], f"user {first['raw_user_id'][0]!r}, item {first['raw_item_id'][0]!r}"
        column = time if name == "timestamp" else name
        if value in (None, ""):
            problem = f"column {column!r} is empty"
        else:
            kinds = {"timestamp": "a number or an ISO date", "position": "a whole number", "rating": "a number"}
            problem = f"column {column!r} holds {value!r}, which is not {kinds.get(column, 'a whole-number id')},"
        raise HfGrError(f"{where}: {problem} for {who} ({count} such row(s)); fix or drop the row(s).")
