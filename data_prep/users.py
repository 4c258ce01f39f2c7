"""Tables beside the log: what is known of users, and what they were shown. All of their columns are kept."""

from collections.abc import Mapping
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
    """A file of users, `user_id` as text, other columns in their own type (`data_prep.values.typed`).

    Raises [`HfGrError`] on ids that are empty or repeated, and on unreadable columns.
    """
    table = read_table(path, _pick(path, columns, ("user_id",), (), "--user-column"))
    columns_of = {name: typed(table[name], name, path) for name in table.column_names if name != "user_id"}
    return check_users(pa.table({"user_id": ids(table["user_id"], "user_id", path)} | columns_of), path)


def read_exposures(
    path: Path, columns: Mapping[str, str], time: TimeKind, unit: TimeUnit, *, any_year: bool, drop_empty: bool
) -> pa.Table:
    """A file of exposures by user and time: ids and times as in the log, whose `time` they must share, `clicked`, and
    other columns in their own type.

    Raises [`HfGrError`] on what is missing or unreadable.
    """
    picked = _pick(path, columns, ("user_id", "item_id", "clicked"), ev.OPTIONAL, "--exposure-column")
    picked = without_spare_position(picked, columns)
    table = read_table(path, picked)
    exposures, found = typed_events(table, path, unit, any_year=any_year, drop_empty=drop_empty)
    if found != time:
        raise HfGrError(f"{path} has {found}s, but the interactions have {time}s; give both the same.")
    helpers = [name for name in exposures.column_names if name.startswith("_")]
    return exposures.sort(["user_id", "timestamp", ROW]).exclude(*helpers).to_arrow()


def _pick(
    path: Path, columns: Mapping[str, str], required: tuple[str, ...], optional: tuple[str, ...], option: str
) -> dict[str, str]:
    """Our name → the file's name of all columns of a file, those that we do not know under their own."""
    found = column_names(path)
    picked = pick_columns(found, columns, required, optional, path, f"map it: {option} {{name}}=THEIR_NAME")
    for name in found:
        if name in picked.values():
            continue
        if name in picked or name.startswith("_") or found.count(name) > 1:
            raise HfGrError(f"{path} has a column {name!r}, a name that is taken; rename or remove it.")
        picked[name] = name
    return picked
