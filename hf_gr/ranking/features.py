"""What is known of users and of requests, as columns of a click model: categories by their number, numbers by how many
standard deviations they are from the mean. Values, means and deviations are those of the training part."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import HfGrError
from ..models.click import UNKNOWN
from ..tables import row_of


CLOCK = {"hour": 24, "weekday": 7}  # of a timestamp in UTC; Monday is the first day
_HOUR, _DAY = 3_600 * 10**6, 86_400 * 10**6


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Of the column.
        values: Its categories as texts; none: a column of numbers.
        mean: Of a column of numbers.
        deviation: Likewise, above 0.
    """

    name: str
    values: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def learned(cls, name: str, column: pa.ChunkedArray, where: str) -> "Column":
        """A column of what training has of it: floating-point numbers are numbers, all else that has a text (strings,
        whole numbers, booleans) is categories.

        Raises [`HfGrError`] on another type, or without any value.
        """
        there = column.drop_null()
        if not len(there):
            raise HfGrError(f"column {name!r} of {where} holds no value in the training part; leave it out.")
        if pa.types.is_floating(column.type):
            numbers = there.cast(pa.float64()).to_numpy()
            return cls(name, (), float(numbers.mean()), float(numbers.std()) or 1.0)
        return cls(name, tuple(sorted(pc.unique(_texts(there, name, where)).to_pylist())))

    def encoded(self, column: pa.ChunkedArray, where: str) -> np.ndarray:
        """Categories as int64 [n], 0 where the value is null or unknown; numbers as float32 [n], 0 (the mean) where it
        is null."""
        if not self.values:
            if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
                raise HfGrError(f"column {self.name!r} of {where} is {column.type}, but was numbers in training.")
            numbers = column.cast(pa.float64()).fill_null(self.mean).to_numpy()
            return ((numbers - self.mean) / self.deviation).astype(np.float32)
        known = pc.index_in(_texts(column, self.name, where), pa.array(self.values))
        return known.fill_null(-1).to_numpy().astype(np.int64) + 1


def _texts(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise HfGrError(
            f"column {name!r} of {where} holds {column.type}; a click model reads texts, whole numbers, booleans and "
            "numbers: leave it out."
        ) from None


@dataclass(frozen=True)
class Features:
    """All columns of a click model.

    Attributes:
        user: Columns of `users.parquet`.
        event: Columns of events or exposures: of the request, known before the answer.
        clock: Whether the hour and the weekday of the request are read.
    """

    user: tuple[Column, ...] = ()
    event: tuple[Column, ...] = ()
    clock: bool = False

    @property
    def category_sizes(self) -> list[int]:
        """Values of every column of categories, the unknown one among them."""
        clock = [size + 1 for size in CLOCK.values()] if self.clock else []
        return [len(column.values) + 1 for column in (*self.user, *self.event) if column.values] + clock

    @property
    def num_numbers(self) -> int:
        return sum(not column.values for column in (*self.user, *self.event))

    def encoded(
        self, users: pa.Table | None, user_ids: pa.ChunkedArray, events: pa.Table | None, times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The columns of n requests.

        Args:
            users: `users.parquet`; a user who is not in it has unknown values.
            user_ids: n strings.
            events: Table of n rows with the columns of the request.
            times: int64 [n], microseconds; read with `clock` alone.

        Returns:
            Categories int64 [n, C] and numbers float32 [n, M].
        """
        found: list[np.ndarray] = []
        if self.user:
            assert users is not None
            rows = pa.array(row_of(user_ids, users["user_id"]))
            rows = pc.if_else(pc.less(rows, 0), None, rows)
            found += [column.encoded(users[column.name].take(rows), "users.parquet") for column in self.user]
        for column in self.event:
            assert events is not None
            found.append(column.encoded(events[column.name], "the events"))
        if self.clock:
            found += [times // _HOUR % 24 + 1, (times // _DAY + 3) % 7 + 1]  # 1970-01-01 was a Thursday
        return stacked(found, len(times))

    def of_request(self, user: Mapping[str, Any], request: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The columns of one request, as [`encoded`].

        Args:
            user: Name → value of what is known of the user; what is left out is unknown.
            request: Name → value of every column of the request and, with `clock`, `timestamp`: microseconds.

        Raises:
            HfGrError: On names that the model does not read, columns of the request that are missing, and values of
                another kind.
        """
        names = [*(column.name for column in self.event), *(["timestamp"] if self.clock else [])]
        for told, known, kind in ((user, [column.name for column in self.user], "user"), (request, names, "request")):
            if unknown := [name for name in told if name not in known]:
                raise HfGrError(f"{kind} holds {unknown[0]!r}, but this model reads {_listed(known)} there; drop it.")
        if missing := [name for name in names if name not in request]:
            raise HfGrError(f"request lacks {missing[0]!r}, which this model reads; give it.")
        parts = ((self.user, user, "user"), (self.event, request, "request"))
        found = [_one(column, told.get(column.name), where) for columns, told, where in parts for column in columns]
        if self.clock:
            time = request["timestamp"]
            if not isinstance(time, int) or isinstance(time, bool):
                raise HfGrError(f"timestamp of the request is {time!r}; give whole microseconds since 1970 (UTC).")
            found += [np.array([time // _HOUR % 24 + 1]), np.array([(time // _DAY + 3) % 7 + 1])]
        return stacked(found, 1)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> "Features":
        user, event = (
            tuple(Column(**column | {"values": tuple(column["values"])}) for column in data[kind])
            for kind in ("user", "event")
        )
        return cls(user, event, data["clock"])


def stacked(columns: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns side by side, categories int64 [rows, C] and numbers float32 [rows, M] apart."""
    categories = np.full((rows, 0), UNKNOWN, np.int64)
    numbers = np.zeros((rows, 0), np.float32)
    for column in columns:
        if column.dtype == np.float32:
            numbers = np.column_stack([numbers, column])
        else:
            categories = np.column_stack([categories, column])
    return categories, numbers


def _one(column: Column, value: Any, where: str) -> np.ndarray:
    try:
        array = pa.array([value]) if value is not None else pa.nulls(1, pa.string() if column.values else pa.float64())
    except pa.ArrowException:
        raise HfGrError(f"{column.name!r} of the {where} is {value!r}; give a text, a number or a boolean.") from None
    return column.encoded(pa.chunked_array([array]), where)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
