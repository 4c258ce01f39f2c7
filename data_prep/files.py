"""Files in: CSV, TSV, JSON lines and Parquet, gzipped or not, as Arrow tables whose rows keep the file's order.

Values of CSV and JSON are text exactly as it is written, never inferred: an id `0012` stays `0012`.
"""

import ast
import contextlib
import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import daft
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from daft.functions import monotonically_increasing_id

from hf_gr.errors import HfGrError, first_line

from .delimited import Delimited, read_delimited, unquoted
from .values import JsonFloat


ROW = "_row"  # place in the file, so that ties in time keep the file's order
JSON_FLOAT = {b"json": b"float"}  # mark of a text column in which JSON had numbers with a point or an exponent
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".json", ".ndjson")
PARQUET = (".parquet",)
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".bz2", ".xz", ".zst")
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)
# A number or a date, which is no name of a column.
_DATA = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?|\d{4}-\d\d-\d\d.*|\d{1,2}/\d{1,2}/\d{2,4}.*")
_BATCH = 50_000  # JSON objects that become one batch of the table


def check_file(path: str | Path) -> Path:
    """The path, if a file with something in it lies there; raises [`HfGrError`] otherwise."""
    path = Path(path)
    if path.is_dir():
        raise HfGrError(f"{path} is a folder; name the file in it.")
    if not path.is_file():
        raise HfGrError(f"{path} is not a file; check the path.")
    if path.stat().st_size == 0:
        raise HfGrError(f"{path} is empty; download or export it again.")
    return path


def file_kind(path: Path) -> str:
    """The suffix that tells the format, `.gz` left out: `.csv`, `.tsv`, `.jsonl`, `.json`, `.ndjson`, `.parquet`."""
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind in _ARCHIVES:
        raise HfGrError(f"{path} is an archive, or packed in a way that is not read; unpack it and name a file of it.")
    known = (*DELIMITERS, *JSON_LINES, *PARQUET)
    if kind not in known:
        raise HfGrError(
            f"{path}: the name does not tell the format; write it as .csv (commas and a line of names), .tsv (tabs "
            f"and a line of names), {', '.join(JSON_LINES)} (one object a line) or .parquet; a .gz may follow."
        )
    return kind


@contextlib.contextmanager
def open_text(path: Path, encoding: str = "utf-8-sig") -> Iterator[TextIO]:
    """Opens a text file, gzipped or not; what goes wrong while it is read becomes one [`HfGrError`] line."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding=encoding, newline="") as handle:
            yield handle
    except _UNREADABLE as error:
        raise HfGrError(f"{path} cannot be read ({first_line(error)}); is it whole, and UTF-8 text?") from None


def json_lines(path: Path, *, numbers_as_text: bool = False) -> Iterator[dict[str, Any]]:
    """One object a line, blank lines skipped.

    Args:
        path: File of JSON lines, gzipped or not.
        numbers_as_text: Whether numbers come as they are written: whole ones as `str`, others as [`JsonFloat`]. An id
            of 20 digits then keeps them all.
    """
    decoder = json.JSONDecoder(parse_int=str, parse_float=JsonFloat) if numbers_as_text else json.JSONDecoder()
    with open_text(path) as handle:
        for number, line in enumerate(handle, 1):
            text = line.strip()
            if not text:
                continue
            try:
                record = decoder.decode(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise HfGrError(f"{path} line {number} {_why_not_json(text, error)}.") from None
            if not isinstance(record, dict):
                kind = "a JSON array" if isinstance(record, list) else "a JSON value"
                raise HfGrError(f"{path} line {number} is {kind}, not a JSON object; write one object {{…}} a line.")
            yield record


def _why_not_json(text: str, error: Exception) -> str:
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        if isinstance(ast.literal_eval(text), dict):
            return "is a Python literal, not JSON; write one JSON object a line (json.dumps of the literal)"
    if text[0] in "[{" and (len(text) == 1 or text[-1] in ",:[{"):
        return "begins JSON that goes on over several lines, which is not read; write one object {…} a line"
    return f"is not JSON ({first_line(error).split(': line ')[0]}); write one object {{…}} a line"


def column_names(path: Path) -> list[str]:
    """Header of a CSV file, keys of the first 100 JSON objects, or the columns of a Parquet file."""
    kind = file_kind(check_file(path))
    if kind in DELIMITERS:
        with open_text(path) as handle:
            names = [name.strip() for name in next(csv.reader(handle, delimiter=DELIMITERS[kind]), [])]
        _check_delimiter(path, names, DELIMITERS[kind])
    elif kind in JSON_LINES:
        first = itertools.islice(json_lines(path), 100)  # optional keys may be missing from some objects
        names = list(dict.fromkeys(key for record in first for key in record))
    else:
        names = _parquet_names(path)
    if not names:
        raise HfGrError(f"{path} is empty; download or export it again.")
    return names


def _check_delimiter(path: Path, names: Sequence[str], delimiter: str) -> None:
    if names and names[0].lower().startswith("sep="):
        raise HfGrError(f"{path} begins with Excel's line {names[0]!r}; delete that line.")
    if len(names) != 1:
        return
    for other, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), ("::", "'::'"), (",", "commas")):
        if other != delimiter and other in names[0]:
            ours = {",": "commas", "\t": "tabs"}[delimiter]
            kind = {"\t": ".tsv", ",": ".csv"}.get(other)
            remedy = f"let its name end in {kind}" if kind else f"write it with {ours}"
            raise HfGrError(f"{path}: the columns are parted by {word}, not by {ours}; {remedy}.")


def pick_columns(
    found: Sequence[str],
    columns: Mapping[str, str],
    required: Sequence[str],
    optional: Sequence[str],
    where: str | Path,
    remedy: str = "map it: --column {name}=THEIR_NAME",
) -> dict[str, str]:
    """Our name → the file's name, for every required column and every optional one that is there.

    Args:
        found: Columns of the file.
        columns: Our name → the file's name, where they differ.
        required: Our names that must be there.
        optional: Our names that may be missing, unless `columns` names them.
        where: File, for the message.
        remedy: What to do about a column that is missing; `{name}` is our name of it.
    """
    picked = {}
    for name in (*required, *optional):
        theirs = columns.get(name, name)
        if theirs in found:
            picked[name] = theirs
        elif name in required or name in columns:
            _refuse_data_as_names(found, found, where)
            has = ", ".join(_short(other) for other in found[:20]) + (", …" if len(found) > 20 else "")
            raise HfGrError(f"{where} has no column {theirs!r} (it has: {has}); {remedy.format(name=name)}.")
        if theirs in found and found.count(theirs) > 1:
            raise HfGrError(f"{where} has more than one column {theirs!r}; rename one in its first line.")
    _refuse_data_as_names(list(picked.values()), found, where)
    return picked


def _refuse_data_as_names(names: Sequence[str], found: Sequence[str], where: str | Path) -> None:
    """Refuses a first line of numbers and dates; 0, 1, 2, … are the names that pandas gives."""
    if list(found) == [str(number) for number in range(len(found))]:
        return
    if any(_DATA.fullmatch(name) for name in names):
        first = ", ".join(_short(name) for name in found[:8]) + (", …" if len(found) > 8 else "")
        raise HfGrError(
            f"{where} seems to have no line of names: its first line is data ({first}); write a first line with the "
            "name of every column, such as user_id, item_id, timestamp."
        )


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"


def read_table(path: Path, picked: Mapping[str, str]) -> pa.Table:
    """The picked columns under our names, rows in the file's order.

    Returns:
        Strings from CSV and JSON, else Parquet's types. A JSON column that held a number with a point has the metadata
        [`JSON_FLOAT`]. Raises [`HfGrError`] on what cannot be read, and on objects and lists in JSON.
    """
    kind = file_kind(path)
    if kind in DELIMITERS:
        form = Delimited(DELIMITERS[kind])
        names = column_names(path)
        places = [names.index(theirs) for theirs in picked.values()]
        read = unquoted if kind == ".tsv" else read_delimited
        return read(path, len(names), places, form).rename_columns(list(picked))
    if kind in JSON_LINES:
        return _read_json(path, picked)
    try:
        table = pq.read_table(path, columns=list(dict.fromkeys(picked.values())))
    except (pa.ArrowInvalid, OSError) as error:
        raise HfGrError(f"{path} cannot be read whole ({first_line(error)}); export it again.") from None
    return pa.table({ours: plain(table[theirs]) for ours, theirs in picked.items()})


def read_columns(path: Path, picked: Mapping[str, str]) -> daft.DataFrame:
    """[`read_table`] as a Daft table, rows numbered (`_row`)."""
    return numbered(read_table(path, picked))


def numbered(table: pa.Table) -> daft.DataFrame:
    """A Daft table with the place of every row (`_row`)."""
    return daft.from_arrow(table).with_column(ROW, monotonically_increasing_id()).collect()


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary-encoded column (pandas' category) as its values, views of text as text."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def _read_json(path: Path, picked: Mapping[str, str]) -> pa.Table:
    floats: set[str] = set()
    records = json_lines(path, numbers_as_text=True)
    batches = []
    for start in itertools.count(0, _BATCH):
        part = list(itertools.islice(records, _BATCH))
        if not part:
            break
        columns = {}
        for ours, theirs in picked.items():
            values = [record.get(theirs) for record in part]
            kinds = set(map(type, values))
            if JsonFloat in kinds:
                floats.add(ours)
            if kinds - {str, JsonFloat, type(None)}:
                values = [_plain_json(value, theirs, start + place, path) for place, value in enumerate(values, 1)]
            try:
                columns[ours] = pa.array(values, pa.string())
            except UnicodeEncodeError:  # half of a surrogate pair
                raise HfGrError(f"{path}: {theirs!r} holds text that is not UTF-8; fix that row.") from None
        batches.append(pa.RecordBatch.from_pydict(columns))
    fields = [pa.field(ours, pa.string(), metadata=JSON_FLOAT if ours in floats else None) for ours in picked]
    schema = pa.schema(fields)
    return pa.Table.from_batches(
        [pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in batches], schema
    )


def _plain_json(value: Any, name: str, place: int, path: Path) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):  # NaN, which JSON does not know, as Python writes it
        return str(value)
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        raise HfGrError(
            f"{path}: {name!r} of object {place} is {kind} ({_short(json.dumps(value, ensure_ascii=False))}); only "
            "plain values are read: write what is in it to a column of its own."
        )
    return value


def _parquet_names(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except pa.ArrowInvalid as error:
        raise HfGrError(f"{path} is not a Parquet file ({first_line(error)}); export it again.") from None
