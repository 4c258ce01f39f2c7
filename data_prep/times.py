"""Points in time out of numbers, ISO dates and Arrow's own types, to the nanosecond."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_gr.errors import HfGrError

from .values import given, whole_numbers


TimeUnit = Literal["auto", "s", "ms", "us", "ns"]

FIRST_YEAR, LAST_YEAR = 1970, 2100
BEYOND = np.iinfo(np.int64).max
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # a second is 1, 10^3, 10^6, 10^9 of them
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_NUMBER, _DATE = 1, 2
_ISO = (
    r"^(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[Tt ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<part>\d{1,18}))?)?"
    r" ?(?:Z|z|UTC|GMT|(?P<sign>[+-])(?P<zone_hour>\d\d):?(?P<zone_minute>\d\d)?)?)?$"
)


@dataclass(frozen=True)
class Times:
    """N points in time.

    Attributes:
        microseconds: int64 [N], since 1970-01-01 UTC; 0 where `valid` is false, [`BEYOND`] where it takes more.
        nanoseconds: int64 [N], what is left of a microsecond, 0 to 999.
        valid: bool [N], whether the value was read.
        unit: What numbers were taken for (`"milliseconds"`), `"dates"`, or both.
    """

    microseconds: np.ndarray
    nanoseconds: np.ndarray
    valid: np.ndarray
    unit: str

    @property
    def usual(self) -> np.ndarray:
        """bool [N]: whether a time lies in the years from 1970 to 2100."""
        first, last = (_days(np.array([year])) for year in (FIRST_YEAR, LAST_YEAR + 1))
        return (self.microseconds >= first * 86_400_000_000) & (self.microseconds < last * 86_400_000_000)


def read_times(column: pa.ChunkedArray, where: str | Path, unit: TimeUnit = "auto") -> Times:
    """Reads a column of times; raises [`HfGrError`] where the column as a whole cannot be read.

    Args:
        column: Arrow timestamps or dates; numbers; or text, each cell a number or an ISO 8601 date. What names no zone
            is in UTC.
        where: File, for messages.
        unit: What numbers count. `"auto"` tells it from their size, when the smallest and the largest hundredth are
            left aside: below 1e11 seconds (the year 5138), below 1e14 milliseconds, below 1e17 microseconds, else
            nanoseconds (our choice). It is refused where both ends do not agree, or the numbers look like dates.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _of_dates(column)
    parts = [_read(chunk, where) for chunk in (column.chunks or [pa.array([], column.type)])]
    sorts, wholes, billionths, floats = (np.concatenate(group) for group in zip(*parts, strict=True))
    numbers = sorts == _NUMBER
    told = _unit(np.where(np.isnan(floats), wholes, floats)[numbers], billionths[numbers], where, unit)
    digits = _DIGITS[told]
    exact = numbers & np.isnan(floats)
    scale = 10 ** max(0, 6 - digits)
    fits = np.abs(np.where(np.isnan(floats), wholes, floats)) < 9e18 / scale
    safe = np.where(exact & fits, wholes, 0)
    if digits <= 6:  # of the nine digits after the point, 6 - digits more make microseconds, the next three the rest
        rest = billionths // 10**digits
        micros, nanos = safe * scale + rest // 1000, rest % 1000
    else:
        micros, nanos = safe // 1000, safe % 1000
    rough = numbers & fits & ~np.isnan(floats)
    micros[rough] = np.rint(floats[rough] * 10.0 ** (6 - digits)).astype(np.int64)
    dates = sorts == _DATE
    micros[dates], nanos[dates] = wholes[dates], billionths[dates]
    micros[numbers & ~fits] = BEYOND
    valid = dates | numbers
    nanos = np.where(dates | (exact & fits), nanos, 0)
    names = [_NAMES[told]] * bool(numbers.any()) + ["dates"] * bool(dates.any())
    return Times(np.where(valid, micros, 0), nanos, valid, " and ".join(names))


def _of_dates(column: pa.ChunkedArray) -> Times:
    kind = column.type
    valid = pc.is_valid(column).to_numpy(zero_copy_only=False)
    storage = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    values = pc.fill_null(column.cast(storage), 0).to_numpy().astype(np.int64)
    unit = {pa.date32(): "day", pa.date64(): "ms"}.get(kind) or kind.unit
    if unit == "ns":
        return Times(values // 1000, values % 1000, valid, "dates")
    scale = {"day": 86_400_000_000, "s": 10**6, "ms": 1000, "us": 1}[unit]
    fits = np.abs(values) < 2**63 // scale
    micros = np.where(fits, np.where(fits, values, 0) * scale, BEYOND)
    return Times(micros, np.zeros(len(values), np.int64), valid, "dates")


def _read(chunk: pa.Array, where: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every cell: number or date, whole part (or microseconds), billionths (or nanoseconds), float or NaN."""
    kind, size = chunk.type, len(chunk)
    nothing = np.full(size, np.nan)
    if pa.types.is_null(kind):
        return np.zeros(size, np.int8), np.zeros(size, np.int64), np.zeros(size, np.int64), nothing
    if pa.types.is_integer(kind):
        wholes, valid = whole_numbers(chunk)
        return valid.astype(np.int8) * _NUMBER, wholes, np.zeros(size, np.int64), nothing
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        floats = chunk.cast(pa.float64()).to_numpy(zero_copy_only=False)
        valid = np.isfinite(floats)
        return valid.astype(np.int8) * _NUMBER, np.zeros(size, np.int64), np.zeros(size, np.int64), floats
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise HfGrError(f"{where}: column 'timestamp' holds {kind}, which is no point in time; give dates or numbers.")
    return _text(given(chunk))


def _text(text: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    size = len(text)
    sorts, wholes, billionths = np.zeros(size, np.int8), np.zeros(size, np.int64), np.zeros(size, np.int64)
    floats = np.full(size, np.nan)
    fields = pc.extract_regex(text, r"^(?P<sign>[+-]?)(?P<whole>\d{1,19})(?:\.(?P<part>\d*))?$")
    rows = np.flatnonzero(pc.is_valid(fields).to_numpy(zero_copy_only=False))
    if len(rows):
        fields = fields.take(pa.array(rows))
        whole = fields.field("whole").cast(pa.uint64()).to_numpy()
        part = _billionths(fields.field("part"))
        minus = pc.equal(fields.field("sign"), "-").to_numpy(zero_copy_only=False)
        fits = whole < 2**63
        whole = np.where(fits, whole, 0).astype(np.int64)
        wholes[rows] = np.where(minus, -whole - (part > 0), whole)
        billionths[rows] = np.where(minus & (part > 0), 10**9 - part, part)
        sorts[rows] = fits * _NUMBER
    powers = pc.fill_null(pc.match_substring_regex(text, r"^[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}$"), False)
    rows = np.flatnonzero(powers.to_numpy(zero_copy_only=False))
    if len(rows):
        values = np.array([float(value) for value in text.take(pa.array(rows)).to_pylist()])
        floats[rows] = np.where(np.isfinite(values), values, np.nan)
        sorts[rows] = np.isfinite(values) * _NUMBER
    rows = np.flatnonzero((sorts == 0) & pc.is_valid(text).to_numpy(zero_copy_only=False))
    if len(rows):
        micros, nanos, valid = _iso(text.take(pa.array(rows)))
        wholes[rows], billionths[rows], sorts[rows] = micros, nanos, valid * _DATE
    return sorts, wholes, billionths, floats


def _iso(text: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    fields = pc.extract_regex(text, _ISO)
    valid = pc.is_valid(fields).to_numpy(zero_copy_only=False)

    def number(name: str) -> np.ndarray:
        digits = pc.fill_null(fields.field(name), "0")
        return pc.if_else(pc.equal(digits, ""), "0", digits).cast(pa.int64()).to_numpy()

    year, month, day = number("year"), number("month"), number("day")
    hour, minute, second = number("hour"), number("minute"), number("second")
    valid &= (month >= 1) & (month <= 12) & (hour < 24) & (minute < 60) & (second < 60) & (year >= 1)
    months = np.where(valid, (year - 1970) * 12 + month - 1, 0)
    days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    following = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    valid &= (day >= 1) & (days + day - 1 < following)
    zone = number("zone_hour") * 60 + number("zone_minute")
    east = pc.fill_null(pc.equal(fields.field("sign"), "+"), False).to_numpy(zero_copy_only=False)
    minutes = ((days + day - 1) * 24 + hour) * 60 + minute - np.where(east, zone, -zone)
    part = _billionths(pc.fill_null(fields.field("part"), ""))
    micros = (minutes * 60 + second) * 10**6 + part // 1000
    return np.where(valid, micros, 0), np.where(valid, part % 1000, 0), valid


def _billionths(part: pa.Array) -> np.ndarray:
    """Digits after a point as int64 [N] billionths; further digits are cut."""
    return pc.utf8_slice_codeunits(pc.utf8_rpad(part, 9, "0"), 0, 9).cast(pa.int64()).to_numpy()


def _unit(values: np.ndarray, billionths: np.ndarray, where: str | Path, unit: TimeUnit) -> str:
    if unit != "auto" or not len(values):
        return "s" if unit == "auto" else unit
    sizes = np.sort(np.abs(values.astype(np.float64)))
    ends = sizes[[int(np.ceil(0.01 * (len(sizes) - 1))), int(0.99 * (len(sizes) - 1))]]
    low, high = ("s" if size < 1e11 else "ms" if size < 1e14 else "us" if size < 1e17 else "ns" for size in ends)
    remedy = "say what numbers count with --time-unit"
    if low != high:
        raise HfGrError(
            f"{where}: times of {_NAMES[low]} and of {_NAMES[high]} stand in one column (such as {_shown(ends[0])} "
            f"and {_shown(ends[1])}); {remedy}, or write all in one unit."
        )
    if (_calendar(values) & (billionths == 0)).mean() >= 0.98:
        raise HfGrError(
            f"{where}: the times look like dates written as numbers (such as {_shown(float(values[0]))}); write "
            f"{_dashed(float(values[0]))}, or {remedy}."
        )
    if ends.min() >= 25_569 and ends.max() < 73_416:  # days of 1970 to 2100, counted from 1899-12-30
        raise HfGrError(
            f"{where}: the times look like Excel's day numbers (such as {_shown(float(values[0]))}); write dates as "
            f"2024-03-01T10:00:00, or {remedy}."
        )
    return low


def _calendar(values: np.ndarray) -> np.ndarray:
    """Whether a number reads as a date of the years 1970 to 2100, year, month and day in eight digits."""
    whole = np.where((values >= 19_700_101) & (values < 21_010_101) & (values == np.floor(values)), values, 0)
    whole = whole.astype(np.int64)
    month, day = whole // 100 % 100, whole % 100
    return (whole > 0) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)


def _dashed(value: float) -> str:
    return f"{int(value) // 10000:04d}-{int(value) // 100 % 100:02d}-{int(value) % 100:02d}"


def _shown(value: float) -> str:
    return f"{value:.15g}" if value != int(value) else str(int(value))


def _days(years: Sequence[int] | np.ndarray) -> int:
    """Days from 1970-01-01 to the first day of a year."""
    return int(((np.asarray(years) - 1970) * 12).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)[0])
