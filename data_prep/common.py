"""The end of every source: filter, write the folder, say so; or see that nothing is to be done."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import daft
import pyarrow as pa

from hf_gr.artifacts import fingerprint, is_current, report
from hf_gr.dataset import TimeKind, write_dataset

from .filters import FilterOptions, filter_events


def settings_of(source: str, files: Mapping[str, Path], options: FilterOptions, **more: Any) -> dict[str, Any]:
    """Everything that shapes the folder, for its manifest: source, fingerprints of the files, options."""
    read = {name: f"{path.name} {fingerprint(path)}" for name, path in files.items()}
    return {"source": source, "files": read, **asdict(options), **more}


def up_to_date(out: str | Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder was made with these settings from these files; says so if it was."""
    current = is_current(out, "prepare", settings, {})
    if current:
        report("prepare", {}, out, current=True)
    return current


def finish(
    out: str | Path,
    events: daft.DataFrame,
    items: pa.Table | None,
    *,
    where: str | Path,
    time: TimeKind,
    options: FilterOptions,
    source: str,
    license: str,
    settings: Mapping[str, Any],
) -> pa.Table:
    """Filters, writes the dataset folder and prints what was written. Returns the items of the folder."""
    interactions, items = filter_events(events, items, options, where)
    write_dataset(out, interactions, items, source=source, license=license, time=time, settings=dict(settings))
    report("prepare", {}, out)
    return items
