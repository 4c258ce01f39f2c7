"""Interactions and items from tables: CSV, TSV, JSON lines or Parquet, gzipped or not, under any column names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from hf_gr.errors import HfGrError

from . import events as ev
from . import items as it
from .common import finish, settings_of, up_to_date
from .events import typed_events, without_spare_position
from .files import JSON_LINES, check_file, column_names, file_kind, json_lines, pick_columns, read_table
from .filters import DEFAULT, FilterOptions
from .items import items_table
from .times import TimeUnit
from .users import EXPOSURES, read_exposures, read_users


_REMEDY = "map it: --item-column {name}=THEIR_NAME"
_KNOWN = (*ev.REQUIRED, *ev.OPTIONAL, *it.OPTIONAL)


def prepare_table(
    out: str | Path,
    interactions: str | Path,
    items: str | Path | None = None,
    users: str | Path | None = None,
    exposures: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    item_columns: Mapping[str, str] | None = None,
    user_columns: Mapping[str, str] | None = None,
    exposure_columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    any_year: bool = False,
    drop_empty: bool = False,
    category_separator: str | None = None,
    flags: Sequence[str] = (),
    keep: Sequence[str] = (),
    options: FilterOptions = DEFAULT,
    source: str | None = None,
    license: str = "unknown",
) -> None:
    """Writes a dataset folder from one table of interactions and, where there are such, of items, users, exposures.

    Ids are read as strings (`0012` stays `0012`). Columns that are neither known, mapped nor in `keep` are left out.

    Args:
        out: Folder to write.
        interactions: File with `user_id`, `item_id`, `timestamp` or `position` (an order without a clock), optional
            `session_id`, `rating`, `behavior` and `review` (text); `.csv`, `.tsv` (quoted or not), `.jsonl`, `.json`
            (one object a line), `.ndjson`, `.parquet`, or one of the text formats with `.gz` after it. Where there are
            times, a position counts only if `columns` names it: it then orders the events of one time.
        items: File with `item_id` and optional `title`, `brand`, `categories`, `description`, `image`. Without it the
            items are made from the ids.
        users: File with `user_id` and whatever is known of users, a row each. Rows of users without an event in the
            folder are left out.
        exposures: File of what users were shown: `user_id`, `item_id`, `timestamp` or `position` as in the
            interactions, `clicked` (true or false, 1 or 0), and any other column. Rows of users and items that are not
            in the folder are left out.
        columns: Our name → the files' name, for all files: `{"user_id": "uid"}`.
        item_columns: The same for the items file alone, where it calls a column differently.
        user_columns: The same for the users file.
        exposure_columns: The same for the exposures file.
        time_unit: What numeric time stamps count; see `data_prep.times.read_times`.
        any_year: Whether times outside the years from 1970 to 2100 are taken rather than refused.
        drop_empty: Whether rows without user, item or time are dropped rather than refused.
        category_separator: Splits `categories` given as one string; `|` if left out.
        flags: Columns of the items file that say yes or no (`in_stock`), mapped or not; requests may filter by them.
        keep: Further columns of the interactions, mapped or not (`device`), in their own type; those of text are read
            as whole numbers, numbers or yes and no where every value is one.
        options: What is kept.
        source: Where the data comes from, in a sentence, for the card.
        license: Licence identifier.

    Raises:
        HfGrError: On a missing or empty file, a missing column, repeated item ids, interactions with unknown items or
            unreadable values.
    """
    interactions = check_file(interactions)
    files = {"interactions": interactions}
    if items is not None:
        files["items"] = check_file(items)
    user_columns = check_map(user_columns, ("user_id",))
    exposure_columns = check_map(exposure_columns, EXPOSURES)
    for name, path, own in (("users", users, user_columns), ("exposures", exposures, exposure_columns)):
        if path is not None:
            files[name] = check_file(path)
        elif own:
            raise HfGrError(
                f"--{name[:-1]}-column maps a column of the {name}, but there are none; give --{name} FILE."
            )
    item_columns = check_map(item_columns, ("item_id", *it.OPTIONAL, *flags))
    check_keep(keep)
    columns = check_map(columns, (*_KNOWN, *flags, *keep))
    if items is None:
        refuse_item_options(columns, item_columns, category_separator, flags, "--items")
    item_columns = columns | item_columns
    more: dict[str, object] = {"columns": columns, "item_columns": item_columns, "time_unit": time_unit}
    more |= {"any_year": any_year, "drop_empty": drop_empty, "separator": category_separator}
    if flags:
        more["flags"] = list(flags)
    picked = pick_events(column_names(interactions), columns, keep, interactions)
    optional: dict[str, object] = {"keep": list(keep), "session_id": picked.get("session_id")}
    optional |= {"user_columns": user_columns, "exposure_columns": exposure_columns}
    more |= {name: value for name, value in optional.items() if value}
    settings = settings_of("table", files, options, **more)
    if up_to_date(out, settings, files):
        return
    events, time = typed_events(
        read_table(interactions, picked), interactions, time_unit, any_year=any_year, drop_empty=drop_empty
    )
    shown = None
    if exposures is not None:
        given = columns | exposure_columns
        shown = read_exposures(files["exposures"], given, time, time_unit, any_year=any_year, drop_empty=drop_empty)
    table = None if items is None else read_items(files["items"], item_columns, category_separator or "|", flags)
    finish(
        out,
        events,
        table,
        where=interactions,
        time=time,
        options=options,
        source=source or f"Prepared from {' and '.join(f'`{path.name}`' for path in files.values())}.",
        license=license,
        settings=settings,
        users=None if users is None else read_users(files["users"], columns | user_columns),
        exposures=shown,
    )


def pick_events(
    found: Sequence[str], columns: Mapping[str, str], keep: Sequence[str], where: str | Path
) -> dict[str, str]:
    """Our name → the file's name of the columns of events; see `data_prep.files.pick_columns`."""
    picked = pick_columns(found, columns, (*ev.REQUIRED, *keep), ev.OPTIONAL, where)
    return without_spare_position(picked, columns)


def check_keep(keep: Sequence[str], known: Sequence[str] = (*ev.REQUIRED, *ev.OPTIONAL)) -> None:
    """Raises [`HfGrError`] on names of further columns that have another meaning."""
    for name in keep:
        if name in known or list(keep).count(name) > 1:
            raise HfGrError(f"--keep names {name!r}, which is kept anyway; leave that --keep out.")
        if name in it.OPTIONAL or name.startswith("_"):
            what = "a column of the items" if name in it.OPTIONAL else "a name of helpers"
            raise HfGrError(
                f"--keep names {name!r}, which is {what}; give it another name: --keep NEW --column NEW={name}."
            )


def refuse_item_options(
    columns: Mapping[str, str],
    item_columns: Mapping[str, str],
    separator: str | None,
    flags: Sequence[str],
    option: str,
) -> None:
    """Raises [`HfGrError`] on what only speaks of a table of items, where there is none; `option` would name it."""
    mapped = [f"the column {name!r} of the items is mapped" for name in columns if name in it.OPTIONAL]
    mapped += [f"the column {name!r} of the items is mapped" for name in item_columns]
    mapped += [f"{name!r} is to be a flag of the items" for name in flags]
    mapped += ["a separator of the items' categories is given"] if separator is not None else []
    if mapped:
        raise HfGrError(
            f"{mapped[0]}, but there is no table of items, and items are not read out of the log; write a file with "
            f"one row an item and name it with {option}."
        )


def read_items(
    path: Path,
    columns: Mapping[str, str] | None = None,
    separator: str | None = "|",
    flags: Sequence[str] = (),
) -> pa.Table:
    """The items table out of a file in any of the formats of [`prepare_table`]."""
    needed = ("item_id", *flags)
    if file_kind(path) in JSON_LINES:
        raw = list(json_lines(path, numbers_as_text=True))
        found = list(dict.fromkeys(key for record in raw for key in record))  # an item may lack what a later one has
        picked = pick_columns(found, columns or {}, needed, it.OPTIONAL, path, _REMEDY)
        records = [{name: record.get(theirs) for name, theirs in picked.items()} for record in raw]
    else:
        picked = pick_columns(column_names(path), columns or {}, needed, it.OPTIONAL, path, _REMEDY)
        records = read_table(path, picked).to_pylist()
    return items_table(records, path, separator=separator, flags=flags)


def check_map(columns: Mapping[str, str] | None, known: tuple[str, ...]) -> dict[str, str]:
    """The column map, if it names only columns that we know."""
    for name in columns or {}:
        if name not in known:
            raise HfGrError(
                f"the column map names {name!r}; what can be mapped: {', '.join(known)} (as in user_id=THEIR_NAME)."
            )
    return dict(columns or {})
