"""The end of every source: filter, write the folder, say so; or see that nothing is to be done."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import daft
import pyarrow as pa

from hf_gr.artifacts import check_output, fingerprint, is_current, report
from hf_gr.dataset import TimeKind, write_dataset
from hf_gr.errors import HfGrError

from .filters import FilterOptions, among, filter_events


def settings_of(source: str, files: Mapping[str, Path], options: FilterOptions, **more: Any) -> dict[str, Any]:
    """Everything that shapes the folder, for its manifest: source, fingerprints of the files, options."""
    read = {name: f"{path.name} {fingerprint(path)}" for name, path in files.items()}
    return {"source": source, "files": read, "times": "microseconds", **asdict(options), **more}


def up_to_date(out: str | Path, settings: Mapping[str, Any], files: Mapping[str, Path]) -> bool:
    """Whether the folder was made with these settings from these files; says so if it was.

    Raises [`HfGrError`] for a folder that was not, and may not be replaced.
    """
    current = is_current(out, "prepare", settings, {})
    if current:
        report("prepare", {}, out, current=True)
    else:
        check_output(out, "prepare", files.values())
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
    users: pa.Table | None = None,
    exposures: pa.Table | None = None,
) -> pa.Table:
    """Filters, writes the dataset folder and prints what was written. Returns the items of the folder.

    Of `users` and `exposures` the rows of those users and items stay that are in the folder.
    """
    interactions, items = filter_events(events, items, options, where)
    ids = {"user_id": interactions["user_id"], "item_id": items["item_id"]}
    users = None if users is None else _rows_of(users, "users", {"user_id": ids["user_id"]})
    exposures = None if exposures is None else _rows_of(exposures, "exposures", ids)
    counts = write_dataset(
        out, interactions, items, users, exposures, source=source, license=license, time=time, settings=dict(settings)
    )
    for line in _remarks(counts):
        print(f"[prepare] {line}", flush=True)
    report("prepare", {}, out)
    return items


def _rows_of(table: pa.Table, what: str, ids: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """The rows of a table whose ids are all in the folder; prints how many they are."""
    kept = table
    for name, known in ids.items():
        kept = kept.filter(among(kept[name], known))
    print(
        f"[prepare] {what}: {table.num_rows:,} -> {kept.num_rows:,} rows of users and items in the folder", flush=True
    )
    if not kept.num_rows:
        raise HfGrError(f"no row of the {what} is of a user and an item of the folder; are the ids written alike?")
    return kept


def _remarks(counts: Mapping[str, int]) -> list[str]:
    """What the user should know of the data before anything is learned from them."""
    remarks = []
    if counts["same_time_events"]:
        events = _share(counts["same_time_events"], counts["interactions"])
        users = _share(counts["same_time_users"], counts["users"])
        remarks.append(
            f"ties: {events} events are at the time of the user's previous one, the last two of {users} users are at "
            "one time: there the order is the file's"
        )
    if counts["short_users"]:
        users = _share(counts["short_users"], counts["users"])
        remarks.append(
            f"short users: {users} have fewer than 3 events: leave-one-out trains on them and does not judge them "
            "(--min-user-events 3 drops them)"
        )
    return remarks


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({count / total:.1%})"
