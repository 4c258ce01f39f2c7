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
from .events import typed_events
from .files import pick_columns, plain
from .filters import DEFAULT, FilterOptions
from .items import items_table
from .table import check_keep, check_map, pick_events, refuse_item_options
from .times import TimeUnit
from .users import EXPOSURES, pick_exposures, pick_users, typed_exposures, typed_users


def prepare_hub(
    out: str | Path,
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    items_dataset: str | None = None,
    items_config: str | None = None,
    items_split: str = "train",
    users_config: str | None = None,
    users_split: str = "train",
    exposures_config: str | None = None,
    exposures_split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
    item_columns: Mapping[str, str] | None = None,
    user_columns: Mapping[str, str] | None = None,
    exposure_columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "auto",
    any_year: bool = False,
    drop_empty: bool = False,
    category_separator: str | None = None,
    keep: Sequence[str] = (),
    options: FilterOptions = DEFAULT,
    license: str = "unknown",
) -> None:
    """Writes a dataset folder from a dataset with interactions and, if there are such, configs with items (or another
    dataset), users and exposures.

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
        users_config: Configuration of `dataset` with what is known of users; columns as in `prepare_table`.
        users_split: Split of it.
        exposures_config: Configuration of `dataset` with what users were shown; columns as in `prepare_table`.
        exposures_split: Split of it.
        revision: Branch, tag or commit of `dataset`.
        columns: Our name → the dataset's name, for all tables.
        item_columns: The same for the items alone.
        user_columns: The same for the users.
        exposure_columns: The same for the exposures.
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
    user_columns = check_map(user_columns, ("user_id",))
    exposure_columns = check_map(exposure_columns, EXPOSURES)
    for name, there, own in (
        ("users", users_config, user_columns),
        ("exposures", exposures_config, exposure_columns),
    ):
        if own and not there:
            raise HfGrError(
                f"--{name[:-1]}-column maps a column of the {name}, but there are none; give --{name}-config NAME."
            )
    item_columns = columns | item_columns
    source = _Source(dataset, config, split, revision)
    rows = source.events(pick_events(source.names, columns, keep, source.what))
    unit = source.unit(time_unit, columns)
    events, time = typed_events(rows, dataset, unit, any_year=any_year, drop_empty=drop_empty)
    table = users = exposures = None
    if items_dataset or items_config:
        name = items_dataset or dataset
        source = _Source(name, items_config, items_split, None if items_dataset else revision)
        picked = pick_columns(source.names, item_columns, ("item_id",), it.OPTIONAL, source.what)
        table = items_table(source.table(picked).to_pylist(), name, separator=category_separator or "|")
    if users_config:
        source = _Source(dataset, users_config, users_split, revision)
        picked = pick_users(source.names, columns | user_columns, source.what)
        users = typed_users(source.table(picked), source.what)
    if exposures_config:
        source, given = _Source(dataset, exposures_config, exposures_split, revision), columns | exposure_columns
        rows, unit = source.events(pick_exposures(source.names, given, source.what)), source.unit(time_unit, given)
        exposures = typed_exposures(rows, source.what, time, unit, any_year=any_year, drop_empty=drop_empty)
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
    more |= {"users_config": users_config, "users_split": users_split, "user_columns": user_columns}
    more |= {"exposures_config": exposures_config, "exposures_split": exposures_split}
    more |= {"exposure_columns": exposure_columns}
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
        users=users,
        exposures=exposures,
    )


class _Source:
    """A split of a configuration of a dataset, loaded."""

    def __init__(self, name: str, config: str | None, split: str, revision: str | None) -> None:
        from datasets import load_dataset, load_dataset_builder  # takes a second to import

        self.what = f"dataset {name} (config {config or 'default'}, split {split})"
        try:
            builder = load_dataset_builder(name, config, revision=revision)
            self._data = load_dataset(name, config, split=split, revision=revision, **_as_text(builder))
            self._time = _time_said(builder, split)
        except HfGrError:
            raise
        except Exception as error:  # whatever the builder of a dataset raises, hub and file errors included
            raise HfGrError(
                f"{self.what} cannot be loaded ({first_line(error)}); check its id, config and split."
            ) from None

    @property
    def names(self) -> list[str]:
        return self._data.column_names

    def table(self, picked: Mapping[str, str]) -> pa.Table:
        """The picked columns under our names."""
        table = self._data.select_columns(list(picked.values())).with_format("arrow")[:]
        return pa.table({ours: plain(table[theirs]) for ours, theirs in picked.items()})

    def events(self, picked: Mapping[str, str]) -> pa.Table:
        """The same of events, whose `timestamp` is called `position` where a file of ours says that it is one."""
        table = self.table(picked)
        if self._time != "position" or picked.get("timestamp") != "timestamp":
            return table
        return table.rename_columns({"timestamp": "position"})

    def unit(self, unit: TimeUnit, columns: Mapping[str, str]) -> TimeUnit:
        """The unit of times: microseconds where a file of ours says so, and nothing else is asked for."""
        ours = self._time == "timestamp" and columns.get("timestamp", "timestamp") == "timestamp"
        return "us" if ours and unit == "auto" else unit


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
