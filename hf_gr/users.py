"""Files of users: one request a row, in Parquet, CSV or JSONL, or a dataset folder. Ids stay the text they are."""

import ast
import io
import json
import tokenize
from collections.abc import Container, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from .catalog import SidCatalog
from .dataset import InteractionDataset
from .errors import HfGrError, first_line
from .limits import shown
from .requests import REQUEST_KEYS


COLUMNS = ("user_id", *REQUEST_KEYS)
_SEPARATORS = ("|", ",", None)  # of words in a cell, the first that is there; None: blanks


def read_users(path: Path, catalog: SidCatalog, context: str) -> Iterator[tuple[str, dict[str, Any] | HfGrError]]:
    """Every user with a request for [`~hf_gr.requests.parse_request`], or with what is wrong with its cells.

    Args:
        path: Parquet, CSV or JSONL file with `user_id`, `history` and any other key of a request, or a dataset folder:
            every user with all of the events.
        catalog: Its ids and categories tell what a cell of text means ([`cell_ids`]).
        context: The vocabulary's: what of a dataset folder stands beside an event.

    Raises:
        HfGrError: On a file that cannot be read, has no such columns, no rows, or a row without a user.
    """
    if path.is_dir():
        yield from _dataset_rows(path, context)
        return
    columns, rows = _rows(path)
    for name in ("user_id", "history"):
        if name not in columns:
            raise HfGrError(f"{path} has no column {name!r} (it has: {', '.join(columns)}); rename it.")
    if not rows:
        raise HfGrError(f"{path} holds no users; give at least one row.")
    for number, row in enumerate(rows):
        user_id = _user_id(path, number, row.get("user_id"))
        try:
            fields = {name: _cell(name, row.get(name), catalog) for name in REQUEST_KEYS}
        except HfGrError as error:
            yield user_id, error
        else:
            yield user_id, {name: value for name, value in fields.items() if value is not None}


def _dataset_rows(folder: Path, context: str) -> Iterator[tuple[str, dict[str, Any]]]:
    dataset = InteractionDataset.load(folder)
    events = dataset.events
    for user_id, start, end in zip(events.user_ids, events.ptr[:-1], events.ptr[1:], strict=True):
        fields: dict[str, Any] = {"history": [dataset.item_ids[row] for row in events.items[start:end]]}
        if context == "rating" and events.ratings is not None:
            fields["ratings"] = events.ratings[start:end].tolist()
        if context == "behavior" and events.behaviors is not None:
            fields["behaviors"] = [value or "unknown" for value in events.behaviors[start:end]]
        yield user_id, fields


def _rows(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of columns, and the rows."""
    if not file.is_file():
        raise HfGrError(f"{file} does not exist; give a Parquet, CSV or JSONL file of users, or a dataset folder.")
    try:
        match file.suffix:
            case ".parquet":
                return _of_table(file, pq.read_table(file))
            case ".csv":
                return _of_table(file, _read_csv(file))
            case ".jsonl" | ".json":
                return read_jsonl(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise HfGrError(f"{file} cannot be read ({first_line(error)}); is it what its name says?") from None
    raise HfGrError(f"{file} is neither .parquet, .csv nor .jsonl; write the users as one of these.")


def _of_table(file: Path, table: pa.Table) -> tuple[list[str], list[dict[str, Any]]]:
    names = table.column_names
    for name in COLUMNS:
        if names.count(name) > 1:
            raise HfGrError(f"{file} has {names.count(name)} columns {name!r}; keep one.")
    return names, table.select([name for name in COLUMNS if name in names]).to_pylist()


def _read_csv(file: Path) -> pa.Table:
    """All cells as text: what looks like a number or a date is an id as well."""
    return pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in COLUMNS}),
    )


def read_jsonl(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of all keys, and the objects of a file that holds one object a line; text in them is never a date.

    Raises [`HfGrError`] that names the line, and `UnicodeDecodeError` where the file is not UTF-8.
    """
    columns: dict[str, None] = {}
    rows = []
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise HfGrError(
                    f"{file}, line {number} is not JSON ({first_line(error)}); write one object a line."
                ) from None
            if not isinstance(row, dict):
                raise HfGrError(f"{file}, line {number} is {shown(row)}; write one object a line.")
            columns |= dict.fromkeys(row)
            rows.append(row)
    return list(columns), rows


def _user_id(file: Path, number: int, value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise HfGrError(f"{file}, row {number}: user_id is {shown(value)}; write every user's id as text.")
    text = str(value)
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise HfGrError(f"{file}, row {number}: user_id is {shown(value)}, with half a character; write it as UTF-8.")
    return text


def _cell(name: str, value: Any, catalog: SidCatalog) -> Any:
    """A cell as [`parse_request`] takes it: text becomes a list, and an empty cell is no field at all."""
    if name == "query" or not isinstance(value, str):
        return value
    if name == "exclude_seen":
        return {"true": True, "1": True, "false": False, "0": False, "": None}.get(value.strip().lower(), value)
    if name in ("category", "where"):  # one name, which may be of several words
        known = value in catalog.rows_by_category or value in catalog.flags
        return value or None if known or not _looks_like_list(value) else _parsed(value, numbers=False)
    if name == "ratings":
        return _ratings(value) or None
    ids = cell_ids(value, catalog.row_of if name in ("history", "exclude", "allow") else ())
    return ids if ids or name == "history" or _looks_like_list(value) else None


def cell_ids(text: str, known: Container[str] = ()) -> list[str]:
    """Ids in a cell of text: a list as JSON, pandas or Python write it, or words.

    Args:
        text: `["a", "b c"]`, `['a', 'b c']`, `a|b`, `a,b` or `a b`; words are parted by bars where there is one, else
            by commas, else by blanks. Numbers in a list are taken as they are written. A whole text in `known` is one
            id: those that hold a blank or a comma need a list only where there are several.
        known: Ids that there are.

    Raises:
        HfGrError: On what begins as a list and is none, such as a NumPy array in print.
    """
    if text in known:
        return [text]
    if _looks_like_list(text):
        return _parsed(text, numbers=False)
    separator = next(sign for sign in _SEPARATORS if sign is None or sign in text)
    return [word.strip() for word in text.split(separator) if word.strip()]


def _looks_like_list(text: str) -> bool:
    return text.strip().startswith("[")


def _ratings(text: str) -> Any:
    """Numbers where all words are; else the text, which is refused with the user's name."""
    if _looks_like_list(text):
        return _parsed(text, numbers=True)
    try:
        return [float(word) for word in cell_ids(text)]
    except ValueError:
        return text


def _parsed(text: str, *, numbers: bool) -> list[Any]:
    """A list in JSON or Python's form; without `numbers` those in it stay text as written."""
    try:
        values = json.loads(text) if numbers else json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        values = _python_list(text)
    if not isinstance(values, list):
        raise HfGrError(f'{shown(text)} begins as a list and cannot be read as one; write ["one", "two"].')
    return values


def _python_list(text: str) -> Any:
    """What `str(list)` wrote, `None` if it is something else. Python joins strings without a comma between them, as
    NumPy prints them: those are nobody's ids."""
    try:
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline)]
        kinds = [kind for kind in kinds if kind not in (tokenize.NL, tokenize.NEWLINE)]
        if any(pair == (tokenize.STRING, tokenize.STRING) for pair in pairwise(kinds)):
            return None
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return None
