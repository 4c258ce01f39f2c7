"""Lists on disk, so that any system can be judged the same way.

One row (Parquet) or line (JSONL) holds the list of one case: `user_id`, and `item_ids`, best first. Leave-one-out has
one case a user. Under the temporal split a user may have several, in order of time: a column `case` then numbers them
from 0 for every user; without it a user's rows are taken in the order in which they appear. Rows of users that are not
judged are ignored. Where there are `scores` beside the items, they must be finite; the order of the list counts.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..dataset import Cases, InteractionDataset
from ..errors import HfGrError, first_line
from ..limits import shown
from ..tables import EXACT
from ..users import read_jsonl
from .metrics import INVALID, MISSING


USERS_KEY = b"hf_gr.users"  # in the metadata of a file of lists, what they were made from
WHOLE_HISTORIES = b"whole histories"


def read_predictions(
    file: str | Path, dataset: InteractionDataset, cases: Cases, *, top_k: int | None = None
) -> np.ndarray:
    """Reads lists for the given cases.

    Args:
        file: `.parquet`, or `.jsonl`/`.json` with one object a line.
        dataset: Gives the item ids; an id that it does not know (or null) becomes `INVALID` (-2) and keeps its rank.
        cases: What is judged; each must have its list.
        top_k: Width of the result; `None`: the longest list.

    Returns:
        int64 [cases, top_k], padded with -1.

    Raises:
        HfGrError: The file cannot be read, lacks a column, lacks a case (the first one is named), or has one twice.
    """
    table = _read(Path(file))
    _check_scores(table, file)
    lists = table["item_ids"].cast(pa.large_list(pa.large_string())).combine_chunks()
    ids = lists.flatten()  # leaves null lists out, and a null list has length 0 below
    rows = pc.index_in(ids, pa.array(dataset.item_ids, pa.large_string()), skip_nulls=True)
    flat = pc.fill_null(rows, INVALID).to_numpy().astype(np.int64)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    chosen = _row_of_each_case(table, cases, file)
    starts, counts = (np.cumsum(lengths) - lengths)[chosen], lengths[chosen]
    width = top_k or max(int(counts.max(initial=0)), 1)
    inside = np.arange(width) < counts[:, None]
    result = np.full((len(cases), width), MISSING, np.int64)
    result[inside] = flat[(starts[:, None] + np.arange(width))[inside]]
    return result


def without_history(lists: np.ndarray, cases: Cases) -> np.ndarray:
    """The lists without the items of each one's history; those behind them move up.

    Args:
        lists: int64 [cases, K], padded with -1.
        cases: Of the same order.

    Returns:
        int64 [cases, K].
    """
    result = np.full_like(lists, MISSING)
    for row, (items, history) in enumerate(zip(lists, cases, strict=True)):
        left = items[(items != MISSING) & ~np.isin(items, history)]
        result[row, : len(left)] = left
    return result


def write_predictions(file: str | Path, recommended: np.ndarray, cases: Cases, item_ids: list[str]) -> None:
    """Writes lists as Parquet: `user_id`, `case`, `item_ids` (null where an answer was no item), `target`."""
    names = np.array([*item_ids, None], dtype=object)
    lists = [
        names[np.where((row >= 0) & (row < len(item_ids)), row, len(item_ids))].tolist()
        for row in (row[row != MISSING] for row in recommended)
    ]
    table = pa.table(
        {
            "user_id": pa.array(cases.user_ids, pa.string()),
            "case": pa.array(case_numbers(cases), pa.int32()),
            "item_ids": pa.array(lists, pa.list_(pa.string())),
            "target": pa.array(names[cases.targets], pa.string()),
        }
    )
    pq.write_table(table, file)


def case_numbers(cases: Cases) -> np.ndarray:
    """Number of every case among those of its user, from 0, int64 [cases]."""
    return np.array(_running_numbers(cases.user_ids.tolist()), np.int64)


def _running_numbers(users: list[str]) -> list[int]:
    next_number: dict[str, int] = {}
    numbers = []
    for user in users:
        numbers.append(next_number.get(user, 0))
        next_number[user] = numbers[-1] + 1
    return numbers


def _read(file: Path) -> pa.Table:
    if not file.is_file():
        raise HfGrError(f"{file} does not exist; name a .parquet or .jsonl file with user_id and item_ids.")
    if file.suffix == ".csv":
        raise HfGrError(f"{file}: CSV holds no lists; write .parquet or .jsonl with one row a list (item_ids).")
    if file.suffix not in (".parquet", ".jsonl", ".json"):
        raise HfGrError(f"{file}: cannot read {file.suffix or 'a file without ending'}; write .parquet or .jsonl.")
    try:
        table = pq.read_table(file) if file.suffix == ".parquet" else _read_jsonl(file)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        raise HfGrError(f"{file} cannot be read ({first_line(error)}); write one row or line per list.") from None
    if (table.schema.metadata or {}).get(USERS_KEY) == WHOLE_HISTORIES:
        raise HfGrError(
            f"{file} was made by `hf-gr recommend` from whole histories, which hold what is to be predicted; evaluate "
            "the model itself with --model."
        )
    if "item_ids" not in table.column_names and {"user_id", "item_id"} <= set(table.column_names):
        raise HfGrError(
            f"{file} has one row an item; gather them to one row a list, best first, in pandas: "
            "frame.groupby('user_id', sort=False)['item_id'].agg(list).rename('item_ids').reset_index()."
        )
    kinds = {"user_id": pa.string(), "item_ids": pa.list_(pa.string()), "case": pa.int64()}
    for name, kind in kinds.items():
        if name not in table.column_names:
            if name == "case":
                continue
            raise HfGrError(f"{file} has no column {name!r} (it has: {', '.join(table.column_names)}); add it.")
        found = table[name].type
        try:
            column = _without_floats(table[name]).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise HfGrError(f"{file}: column {name!r} is {found}, not {kind}; write it as such.") from None
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _without_floats(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of floats, or of lists of them, as whole numbers: so pandas writes whole numbers with gaps.

    Raises `ArrowInvalid` where a float is none, or so large that several numbers may have become one.
    """
    nested = _is_list(column.type)
    kind = column.type.value_type if nested else column.type
    if not pa.types.is_floating(kind):
        return column
    values = pc.list_flatten(column) if nested else column
    if (pc.max(pc.abs(values)).as_py() or 0) >= EXACT[kind]:
        raise pa.ArrowInvalid("inexact")
    return column.cast(pa.list_(pa.int64()) if nested else pa.int64())


def _read_jsonl(file: Path) -> pa.Table:
    """The columns that are read here; of any other only the name."""
    names, rows = read_jsonl(file)
    if not rows:
        raise HfGrError(f"{file} holds no lists; write one object a line.")
    columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
    for name in columns.keys() & {"user_id", "item_ids"}:
        columns[name] = [_id_text(file, name, row.get(name)) for row in rows]
    for name in columns.keys() & {"case", "scores"}:
        columns[name] = [row.get(name) for row in rows]
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def _id_text(file: Path, name: str, value: Any) -> Any:
    """An id, or every id of a list, as text: 12 and 12.0 are the id `12`; what is no number stays as it is."""
    if isinstance(value, list):
        return [_id_text(file, name, entry) for entry in value]
    if isinstance(value, float):
        if not (value.is_integer() and abs(value) < 2**53):
            raise HfGrError(
                f"{file}: {name!r} holds {shown(value)}, which is no exact whole number; write ids as text."
            )
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_scores(table: pa.Table, file: str | Path) -> None:
    """Refuses scores that are NaN, infinite or null."""
    if "scores" not in table.column_names or not _is_list(table["scores"].type):
        return
    for row, scores in enumerate(table["scores"].to_pylist()):
        if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores or []):
            user = table["user_id"][row].as_py()
            raise HfGrError(f"{file}: a score of user {user!r} (row {row}) is not finite; such a list has no order.")


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)  # polars writes large ones


def _row_of_each_case(table: pa.Table, cases: Cases, file: str | Path) -> np.ndarray:
    users = table["user_id"].to_pylist()
    numbers = table["case"].to_pylist() if "case" in table.column_names else _running_numbers(users)
    rows: dict[tuple[str, int], int] = {}
    for row, key in enumerate(zip(users, numbers, strict=True)):
        if key in rows:
            raise HfGrError(f"{file}: two lists for case {key[1]} of user {key[0]!r} (row {row}); keep one.")
        rows[key] = row
    wanted = list(zip(cases.user_ids.tolist(), case_numbers(cases).tolist(), strict=True))
    for user, number in wanted:
        if (user, number) not in rows:
            have = sum(known == user for known, _ in rows)
            raise HfGrError(
                f"{file}: no list for case {number} of user {user!r} (the file has {have} for this user); give every "
                "judged case one row."
            )
    for user, count in Counter(user for user, _ in wanted).items():
        if (user, count) in rows:
            raise HfGrError(f"{file}: user {user!r} has more lists than cases ({count}); keep one list a case.")
    return np.array([rows[key] for key in wanted], np.int64)
