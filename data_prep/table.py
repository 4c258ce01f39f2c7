"""Interactions and items from tables: CSV, TSV, JSON lines or Parquet, gzipped or not, under any column names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from hf_gr.errors import HfGrError

from . import events as ev
from . import items as it
from .common import finish, settings_of, up_to_date
from .events import TimeUnit, typed_events
from .files import JSON_LINES, check_file, column_names, file_kind, json_lines, pick_columns, read_columns
from .filters import DEFAULT, FilterOptions
from .items import items_table


_KNOWN = (*ev.REQUIRED, *ev.OPTIONAL, *it.OPTIONAL)


def prepare_table(
    out: str | Path,
    interactions: str | Path,
    items: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    item_columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    category_separator: str = "|",
    flags: Sequence[str] = (),
    options: FilterOptions = DEFAULT,
    source: str | None = None,
    license: str = "unknown",
) -> None:
    """Writes a dataset folder from one table of interactions and, if there is one, one of items.

    Ids are read as strings (`0012` stays `0012`). Columns that are neither known nor mapped are left out.

    Args:
        out: Folder to write.
        interactions: File with `user_id`, `item_id`, `timestamp` or `position` (an order without a clock), optional
            `rating`, `behavior` and `review` (text); `.csv`, `.tsv`, `.jsonl`, `.json` (one object a line),
            `.ndjson`, `.parquet`, or one of the text formats with `.gz` after it.
        items: File with `item_id` and optional `title`, `brand`, `categories`, `description`, `image`. Without it the
            items are made from the ids.
        columns: Our name → the files' name, for both files: `{"user_id": "uid"}`.
        item_columns: The same for the items file alone, where it calls a column differently.
        time_unit: What numeric time stamps count; see `data_prep.events.typed_events`.
        category_separator: Splits `categories` given as one string.
        flags: Columns of the items file that say yes or no (`in_stock`), mapped or not; requests may filter by them.
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
    columns = check_map(columns, (*_KNOWN, *flags))
    item_columns = columns | check_map(item_columns, ("item_id", *it.OPTIONAL, *flags))
    more: dict[str, object] = {"columns": columns, "item_columns": item_columns, "time_unit": time_unit}
    more["separator"] = category_separator
    if flags and items is None:
        raise HfGrError(f"{flags[0]!r} is to be a flag of the items, but there is no table of items; give one.")
    if flags:
        more["flags"] = list(flags)
    settings = settings_of("table", files, options, **more)
    if up_to_date(out, settings):
        return
    picked = pick_columns(column_names(interactions), columns, ev.REQUIRED, ev.OPTIONAL, interactions)
    events, time = typed_events(read_columns(interactions, picked), interactions, time_unit)
    table = None if items is None else read_items(files["items"], item_columns, category_separator, flags)
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
        raw = list(json_lines(path))
        found = list(dict.fromkeys(key for record in raw for key in record))  # an item may lack what a later one has
        picked = pick_columns(found, columns or {}, needed, it.OPTIONAL, path)
        records = [{name: record.get(theirs) for name, theirs in picked.items()} for record in raw]
    else:
        picked = pick_columns(column_names(path), columns or {}, needed, it.OPTIONAL, path)
        records = read_columns(path, picked).to_arrow().to_pylist()
    return items_table(records, path, separator=separator, flags=flags)


def check_map(columns: Mapping[str, str] | None, known: tuple[str, ...]) -> dict[str, str]:
    """The column map, if it names only columns that we know."""
    for name in columns or {}:
        if name not in known:
            raise HfGrError(
                f"the column map names {name!r}; what can be mapped: {', '.join(known)} (as in user_id=THEIR_NAME)."
            )
    return dict(columns or {})
