"""Interactions and items from any dataset that `datasets.load_dataset` reads: an id on the Hub or a local folder."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from hf_gr.artifacts import check_output
from hf_gr.dataset import TimeKind, time_of
from hf_gr.errors import HfGrError, first_line

from . import events as ev
from . import items as it
from .common import finish, settings_of
from .events import typed_events, without_spare_position
from .files import pick_columns, plain
from .filters import DEFAULT, FilterOptions
from .items import items_table
from .table import check_keep, check_map, refuse_item_options
from .times import TimeUnit


def prepare_hub(
    out: str | Path,
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    items_dataset: str | None = None,
    items_config: str | None = None,
    items_split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
    item_columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    any_year: bool = False,
    drop_empty: bool = False,
    category_separator: str | None = None,
    keep: Sequence[str] = (),
    options: FilterOptions = DEFAULT,
    license: str = "unknown",
) -> None:
    """Writes a dataset folder from a dataset with interactions and, if there is one, another (or a config) with items.

    The dataset is always read again: whether it has changed only its server knows. Columns of CSV files are read as
    text; a dataset that this package wrote says in its file what its times are.

    Args:
        out: Folder to write.
        dataset: Dataset id or local folder; columns as in `prepare_table`.
        config: Its configuration with the interactions.
        split: Split of it; `"train+test"` takes both.
        items_dataset: Dataset id or folder of the items; `None` takes `dataset` if `items_config` is given, else makes
            the items from the ids.
        items_config: Configuration with the items.
        items_split: Split of it.
        revision: Branch, tag or commit of `dataset`.
        columns: Our name → the dataset's name, for both.
        item_columns: The same for the items alone.
        time_unit: What numeric time stamps count; see `data_prep.times.read_times`.
        any_year: Whether times outside the years from 1970 to 2100 are taken rather than refused.
        drop_empty: Whether rows without user, item or time are dropped rather than refused.
        category_separator: Splits `categories` given as one string; `|` if left out.
        keep: Further columns of the interactions, as in `prepare_table`.
        options: What is kept.
        license: Licence identifier.

    Raises:
        HfGrError: When a dataset cannot be loaded, lacks a column or holds unreadable values.
    """
    check_output(out, "prepare", [dataset, *([items_dataset] if items_dataset else [])])
    check_keep(keep)
    columns = check_map(columns, (*ev.REQUIRED, *ev.OPTIONAL, *it.OPTIONAL, *keep))
    item_columns = check_map(item_columns, ("item_id", *it.OPTIONAL))
    if not (items_dataset or items_config):
        refuse_item_options(columns, item_columns, category_separator, (), "--items-dataset or --items-config")
    item_columns = columns | item_columns
    rows, said = _load(dataset, config, split, revision, columns, (*ev.REQUIRED, *keep), ev.OPTIONAL)
    if said == "timestamp" and time_unit == "auto" and columns.get("timestamp", "timestamp") == "timestamp":
        time_unit = "us"
    rows = rows.select(list(without_spare_position(dict.fromkeys(rows.column_names, ""), columns)))
    events, time = typed_events(rows, dataset, time_unit, any_year=any_year, drop_empty=drop_empty)
    table = None
    if items_dataset or items_config:
        name = items_dataset or dataset
        commit = None if items_dataset else revision
        records, _ = _load(name, items_config, items_split, commit, item_columns, ("item_id",), it.OPTIONAL)
        table = items_table(records.to_pylist(), name, separator=category_separator or "|")
    more: dict[str, object] = {
        "dataset": dataset,
        "config": config,
        "split": split,
        "revision": revision,
        "columns": columns,
    }
    more |= {"items_dataset": items_dataset, "items_config": items_config, "items_split": items_split}
    more |= {"item_columns": item_columns, "time_unit": time_unit, "separator": category_separator}
    more |= {"any_year": any_year, "drop_empty": drop_empty, "keep": list(keep)}
    finish(
        out,
        events,
        table,
        where=dataset,
        time=time,
        options=options,
        source=f"Prepared from the dataset `{dataset}` (config {config or 'default'}, split {split}).",
        license=license,
        settings=settings_of("hub", {}, options, **more),
    )


def _load(
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    columns: Mapping[str, str],
    required: tuple[str, ...],
    optional: tuple[str, ...],
) -> tuple[pa.Table, TimeKind | None]:
    """The picked columns under our names; and what `timestamp` holds, where a data set of ours says it."""
    from datasets import load_dataset, load_dataset_builder  # takes a second to import

    what = f"dataset {name} (config {config or 'default'}, split {split})"
    try:
        builder = load_dataset_builder(name, config, revision=revision)
        data = load_dataset(name, config, split=split, revision=revision, **_as_text(builder))
        said = _time_said(builder, split)
    except HfGrError:
        raise
    except Exception as error:  # whatever the builder of a dataset raises, hub and file errors included
        raise HfGrError(f"{what} cannot be loaded ({first_line(error)}); check its id, config and split.") from None
    picked = pick_columns(data.column_names, columns, required, optional, what)
    if said == "position" and picked.get("timestamp") == "timestamp":
        picked["position"] = picked.pop("timestamp")
    table = data.select_columns(list(picked.values())).with_format("arrow")[:]
    return pa.table({ours: plain(table[theirs]) for ours, theirs in picked.items()}), said


def _as_text(builder: Any) -> dict[str, Any]:
    """Options with which a CSV file is read as it is written: `0012` stays `0012`, and `NA` is not yet nothing."""
    from datasets import Features, Value
    from datasets.packaged_modules.csv.csv import Csv

    if not isinstance(builder, Csv) or not builder.config.data_files:
        return {}
    names = builder.config.column_names or builder.config.names
    if names is None:
        with fsspec.open(_files(builder)[0], "rt", encoding="utf-8-sig", newline="", compression="infer") as handle:
            names = next(csv.reader(handle, delimiter=builder.config.delimiter or builder.config.sep), [])
    return {"features": Features({name: Value("string") for name in names}), "keep_default_na": False}


def _time_said(builder: Any, split: str) -> TimeKind | None:
    """What the Parquet file of a split says that `timestamp` holds."""
    file = next((file for file in _files(builder, split) if file.endswith(".parquet")), None)
    if file is None:
        return None
    with fsspec.open(file, "rb") as handle:
        return time_of(pq.read_schema(handle), file)


def _files(builder: Any, split: str | None = None) -> list[str]:
    files = builder.config.data_files or {}
    wanted = [name for name in files if split is None or split.startswith(str(name))] or list(files)
    return [str(file) for name in wanted for file in files[name]]
