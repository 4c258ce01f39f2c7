"""MiniOneRec's files: csv of histories and next items, item json, index json with the semantic IDs."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from daft import DataType, col
from daft.functions import regexp_extract, regexp_replace, split, when

from hf_gr.errors import HfGrError

from .common import finish, settings_of, up_to_date
from .files import ROW, check_file, column_names, open_text, pick_columns, read_columns
from .filters import FilterOptions
from .items import items_table


WITH_COLD_ITEMS = FilterOptions(keep_cold_items=True)

_TOKEN = re.compile(r"<[a-zA-Z]+_(\d+)>")
_COLUMNS = ("user_id", "history_item_id", "item_id")


def prepare_minionerec(
    out: str | Path,
    interactions: str | Path | Sequence[str | Path],
    items: str | Path,
    index: str | Path | None = None,
    *,
    options: FilterOptions = WITH_COLD_ITEMS,
    license: str = "unknown",
) -> np.ndarray | None:
    """Writes a dataset folder from MiniOneRec's files and returns the semantic IDs of its items.

    A csv row is one step: a history (the last 50 items at most) and the item that came next. A user's first history
    and all next items, by length of the history and then by row, give the whole sequence; its order is the time.

    Args:
        out: Folder to write.
        interactions: The csv files, in the order train, valid, test: `user_id`, `history_item_id` (a list written as
            Python does, of ids without spaces, commas or quotes), `item_id`.
        items: Item json: id → `title`, `description` and what else there is.
        index: Index json: id → `["<a_1>", "<b_2>", "<c_3>"]`.
        options: What is kept; items without interactions too, unless told otherwise, since they have semantic IDs.
        license: Licence identifier.

    Returns:
        Codes int32 [N, L] of the N items of the folder in its order, as [`read_index`]; `None` without `index`.

    Raises:
        HfGrError: On missing columns, rows that do not continue one another, items without a semantic ID.
    """
    paths = [check_file(path) for path in ([interactions] if isinstance(interactions, str | Path) else interactions)]
    if not paths:
        raise HfGrError("no csv file was given; name train, valid and test.")
    files = {f"interactions {number}": path for number, path in enumerate(paths)} | {"items": check_file(items)}
    settings = settings_of("minionerec", files, options)
    if up_to_date(out, settings, files):
        return None if index is None else read_index(index, _written_ids(out))
    described = _read_object(files["items"], "item id → title, description")
    table = items_table(_records(described, files["items"]), files["items"])
    if index is not None:  # an item without a semantic ID is to be found before anything is written
        read_index(index, table["item_id"].to_pylist())
    table = finish(
        out,
        daft.from_arrow(_sequences(paths)),
        table,
        where=paths[0],
        time="position",
        options=options,
        source=f"Moved over from MiniOneRec's files ({', '.join(f'`{path.name}`' for path in paths)}).",
        license=license,
        settings=settings,
    )
    return None if index is None else read_index(index, table["item_id"].to_pylist())


def read_index(path: str | Path, item_ids: Sequence[str]) -> np.ndarray:
    """Semantic IDs out of an index json.

    Args:
        path: Json file: id → list of L tokens `<LETTER_CODE>`; the level is the place in the list.
        item_ids: The N items wanted, in order.

    Returns:
        Codes, int32 [N, L]. Raises [`HfGrError`] for a missing item, a token of another form or unequal lengths.
    """
    path = check_file(path)
    index = _read_object(path, "item id → list of tokens")
    codes: list[list[int]] = []
    for item_id in item_ids:
        if item_id not in index:
            raise HfGrError(f"{path} has no semantic ID for item {item_id!r}; use the index made from the same items.")
        tokens = index[item_id]
        found = [_TOKEN.fullmatch(str(token)) for token in tokens] if isinstance(tokens, list) else []
        levels = len(codes[0]) if codes else max(1, len(found))
        if len(found) != levels or not all(found):
            raise HfGrError(
                f"{path}: item {item_id!r} has {tokens!r}, not {levels} token(s) like '<a_12>'; make it again."
            )
        codes.append([int(match[1]) for match in found if match])
    return np.array(codes, dtype=np.int32)


def _sequences(paths: list[Path]) -> pa.Table:
    """Every user's whole sequence: `_row`, `user_id`, `item_id`, `timestamp` (position)."""
    parts = []
    nothing = daft.lit([]).cast(DataType.list(DataType.string()))
    for number, path in enumerate(paths):
        picked = pick_columns(column_names(path), {}, _COLUMNS, (), path, "is it a csv file of MiniOneRec?")
        bare = regexp_replace(col("history_item_id"), r"[\[\]'\"\s]", "")
        steps = read_columns(path, picked).select(
            "user_id",
            "item_id",
            when(bare != "", split(bare, ",")).otherwise(nothing).alias("history"),
            when(bare != "", regexp_extract(bare, "[^,]+$")).alias("last"),
            daft.lit(number).alias("file"),
            ROW,
        )
        parts.append(steps.to_arrow())
    steps = pa.concat_tables(parts)
    steps = steps.append_column("length", pc.list_value_length(steps["history"]))
    steps = daft.from_arrow(steps).sort(["user_id", "length", "file", ROW]).to_arrow()
    if not steps.num_rows:
        raise HfGrError(f"{paths[0]} holds no interactions; check the file.")
    user, target = (np.array(steps[name].to_pylist(), dtype=object) for name in ("user_id", "item_id"))
    for name, ids in (("user_id", user), ("item_id", target)):
        empty = [row for row, value in enumerate(ids.tolist()) if not value]
        if empty:
            who = f"user {user[empty[0]]!r}, item {target[empty[0]]!r}"
            raise HfGrError(
                f"{', '.join(path.name for path in paths)}: {name!r} is empty for {who} ({len(empty)} such row(s)); "
                "fix or drop the row(s)."
            )
    first = np.concatenate([[True], user[1:] != user[:-1]])
    _check_continues(steps, user, target, first, paths)
    histories = steps["history"].combine_chunks().filter(pa.array(first))
    lengths = pc.list_value_length(histories).to_numpy()
    # A user's sequence: the first history, then the target of every step.
    starts = np.flatnonzero(first)
    events = np.insert(target, np.repeat(starts, lengths), np.array(histories.flatten().to_pylist(), dtype=object))
    counts = np.diff(np.append(starts, len(user))) + lengths
    position = np.arange(len(events)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = {"user_id": np.repeat(user[starts], counts), "item_id": events, "timestamp": position}
    return pa.table({ROW: np.arange(len(events)), **columns})


def _check_continues(
    steps: pa.Table, user: np.ndarray, target: np.ndarray, first: np.ndarray, paths: list[Path]
) -> None:
    last = np.array(steps["last"].to_pylist(), dtype=object)
    broken = np.flatnonzero(~first[1:] & (last[1:] != target[:-1])) + 1
    if len(broken):
        row = broken[0]
        raise HfGrError(
            f"{', '.join(path.name for path in paths)}: a history of user {user[row]!r} ends in {last[row]!r}, but "
            f"the step before it led to {target[row - 1]!r}; give all files, in the order train, valid, test."
        )


def _records(described: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    for item_id, record in described.items():
        if not isinstance(record, dict):
            raise HfGrError(f"{path}: item {item_id!r} is {record!r}, not an object with a title; check the file.")
    return [{**record, "item_id": item_id} for item_id, record in described.items()]


def _read_object(path: Path, holds: str) -> dict[str, Any]:
    with open_text(path) as handle:
        text = handle.read()
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise HfGrError(f"{path} is not JSON ({error}); it should hold {holds}.") from None
    if not isinstance(found, dict) or not found:
        raise HfGrError(f"{path} holds no JSON object; it should hold {holds}.")
    return found


def _written_ids(out: str | Path) -> list[str]:
    return pq.read_table(Path(out) / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
