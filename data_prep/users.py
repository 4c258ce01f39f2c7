"""Tables beside the log: what is known of users, and what they were shown. All of their columns are kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from hf_gr.dataset import TimeKind, check_users
from hf_gr.errors import HfGrError

from . import events as ev
from .events import typed_events, without_spare_position
from .files import ROW, column_names, pick_columns, read_table
from .times import TimeUnit
from .values import ids, typed


EXPOSURES = ("user_id", "item_id", "timestamp", "position", "clicked")


def read_users(path: Path, columns: Mapping[str, str]) -> pa.Table:
    """A file of users as [`typed_users`] gives it."""
    return typed_users(read_table(path, pick_users(column_names(path), columns, path)), path)


def read_exposures(
    path: Path, columns: Mapping[str, str], time: TimeKind, unit: TimeUnit, *, any_year: bool, drop_empty: bool
) -> pa.Table:
    """A file of exposures as [`typed_exposures`] gives it."""
    table = read_table(path, pick_exposures(column_names(path), columns, path))
    return typed_exposures(table, path, time, unit, any_year=any_year, drop_empty=drop_empty)


def pick_users(found: Sequence[str], columns: Mapping[str, str], where: str | Path) -> dict[str, str]:
    """Our name → the table's name of all columns of a table of users."""
    return _pick(found, columns, ("user_id",), (), where, "--user-column")


def pick_exposures(found: Sequence[str], columns: Mapping[str, str], where: str | Path) -> dict[str, str]:
    """Our name → the table's name of all columns of a table of exposures; a position beside times only if mapped."""
    required = ("user_id", "item_id", "clicked")
    return without_spare_position(_pick(found, columns, required, ev.OPTIONAL, where, "--exposure-column"), columns)


def typed_users(table: pa.Table, where: str | Path) -> pa.Table:
    """Users, `user_id` as text, other columns in their own type (`data_prep.values.typed`).

    Raises [`HfGrError`] on ids that are empty or repeated, and on unreadable columns.
    """
    columns_of = {name: typed(table[name], name, where) for name in table.column_names if name != "user_id"}
    return check_users(pa.table({"user_id": ids(table["user_id"], "user_id", where)} | columns_of), where)


def typed_exposures(
    table: pa.Table, where: str | Path, time: TimeKind, unit: TimeUnit, *, any_year: bool, drop_empty: bool
) -> pa.Table:
    """Exposures by user and time: ids and times as in the log, whose `time` they must share, `clicked`, and other
    columns in their own type.

    Raises [`HfGrError`] on what is missing or unreadable.
    """
    exposures, found = typed_events(table, where, unit, any_year=any_year, drop_empty=drop_empty)
    if found != time:
        raise HfGrError(f"{where} has {found}s, but the interactions have {time}s; give both the same.")
    helpers = [name for name in exposures.column_names if name.startswith("_")]
    return exposures.sort(["user_id", "timestamp", ROW]).exclude(*helpers).to_arrow()


def _pick(
    found: Sequence[str],
    columns: Mapping[str, str],
    required: tuple[str, ...],
    optional: tuple[str, ...],
    where: str | Path,
    option: str,
) -> dict[str, str]:
    """The known columns, and those that we do not know under their own names."""
    picked = pick_columns(found, columns, required, optional, where, f"map it: {option} {{name}}=THEIR_NAME")
    for name in found:
        if name in picked.values():
            continue
        if name in picked or name.startswith("_") or list(found).count(name) > 1:
            raise HfGrError(f"{where} has a column {name!r}, a name that is taken; rename or remove it.")
        picked[name] = name
    return picked
