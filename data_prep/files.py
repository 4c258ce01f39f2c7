"""Files in: CSV, TSV, JSON lines and Parquet, gzipped or not, as Daft tables whose rows keep the file's order.

CSV and JSON values are read as strings, never inferred: an id `0012` stays `0012`.
"""

import contextlib
import csv
import gzip
import itertools
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import daft
import pyarrow as pa
import pyarrow.parquet as pq
from daft.exceptions import DaftCoreException
from daft.functions import monotonically_increasing_id

from hf_gr.errors import HfGrError, first_line


ROW = "_row"  # place in the file, so that ties in time keep the file's order
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".json", ".ndjson")
PARQUET = (".parquet",)
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)


def check_file(path: str | Path) -> Path:
    """The path, if a file with something in it lies there; raises [`HfGrError`] otherwise."""
    path = Path(path)
    if not path.is_file():
        raise HfGrError(f"{path} is not a file; check the path.")
    if path.stat().st_size == 0:
        raise HfGrError(f"{path} is empty; download or export it again.")
    return path


def file_kind(path: Path) -> str:
    """The suffix that tells the format, `.gz` left out: `.csv`, `.tsv`, `.jsonl`, `.json`, `.ndjson`, `.parquet`."""
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    known = (*DELIMITERS, *JSON_LINES, *PARQUET)
    if kind not in known:
        raise HfGrError(f"{path}: the name does not tell the format; let it end in {', '.join(known)} (or .gz after).")
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


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """One object a line, blank lines skipped."""
    with open_text(path) as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise HfGrError(f"{path} line {number} is not JSON ({error}); fix or drop the line.") from None
            if not isinstance(record, dict):
                raise HfGrError(f"{path} line {number} is not a JSON object; write one {{…}} a line.")
            yield record


def column_names(path: Path) -> list[str]:
    """Header of a CSV file, keys of the first 100 JSON objects, or the columns of a Parquet file."""
    kind = file_kind(check_file(path))
    if kind in DELIMITERS:
        with open_text(path) as handle:
            names = next(csv.reader(handle, delimiter=DELIMITERS[kind]), [])
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise HfGrError(f"{path} has more than one column {repeated[0]!r}; rename one in its first line.")
    elif kind in JSON_LINES:
        first = itertools.islice(json_lines(path), 100)  # optional keys may be missing from some objects
        names = list(dict.fromkeys(key for record in first for key in record))
    else:
        names = _parquet_names(path)
    if not names:
        raise HfGrError(f"{path} is empty; download or export it again.")
    return names


def pick_columns(
    found: Sequence[str],
    columns: Mapping[str, str],
    required: Sequence[str],
    optional: Sequence[str],
    where: str | Path,
) -> dict[str, str]:
    """Our name → the file's name, for every required column and every optional one that is there.

    Args:
        found: Columns of the file.
        columns: Our name → the file's name, where they differ.
        required: Our names that must be there.
        optional: Our names that may be missing, unless `columns` names them.
        where: File, for the message.
    """
    picked = {}
    for name in (*required, *optional):
        theirs = columns.get(name, name)
        if theirs in found:
            picked[name] = theirs
        elif name in required or name in columns:
            has = ", ".join(found)
            raise HfGrError(f"{where} has no column {theirs!r} (it has: {has}); map it: {name}=THEIR_NAME.")
    return picked


def read_columns(path: Path, picked: Mapping[str, str]) -> daft.DataFrame:
    """The picked columns under our names and `_row`, collected; strings from CSV and JSON, else Parquet's types."""
    kind = file_kind(path)
    source = str(path.resolve()).replace("[", "[[]")  # Daft takes paths for glob patterns
    if kind in DELIMITERS:
        frame = read_csv(path, column_names(path), delimiter=DELIMITERS[kind])
    elif kind in JSON_LINES:
        schema = {theirs: daft.DataType.string() for theirs in picked.values()}
        frame = daft.read_json(source, infer_schema=False, schema=schema)
    else:
        frame = daft.read_parquet(source)
    frame = materialise(frame.select(*[daft.col(theirs).alias(name) for name, theirs in picked.items()]), path)
    if kind in DELIMITERS:
        _check_decoded(frame, path)
    if kind in PARQUET and frame.count_rows() != pq.read_metadata(path).num_rows:
        raise HfGrError(f"{path} cannot be read whole; export it again.")
    return frame


def read_csv(
    path: Path, names: Sequence[str], *, delimiter: str = ",", has_headers: bool = True, quote: str = '"'
) -> daft.DataFrame:
    """A delimited text file with every column a string; lazy."""
    return daft.read_csv(
        str(path.resolve()).replace("[", "[[]"),
        infer_schema=False,
        schema={name: daft.DataType.string() for name in names},
        has_headers=has_headers,
        delimiter=delimiter,
        quote=quote,
    )


def materialise(frame: daft.DataFrame, where: str | Path) -> daft.DataFrame:
    """Runs the plan and numbers the rows (`_row`); a file that Daft cannot read becomes one [`HfGrError`] line.

    The numbering comes last on purpose: Daft 0.7 at times loses the error of a scan whose next and last step is a
    projection, and hands out an empty table instead.
    """
    logger = logging.getLogger("daft_local_execution")  # would print a second line beside the exception
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return frame.with_column(ROW, monotonically_increasing_id()).collect()
    except (DaftCoreException, *_UNREADABLE) as error:
        raise HfGrError(f"{where} cannot be read ({first_line(error)}); fix that row or export it again.") from None
    finally:
        logger.setLevel(level)


def _check_decoded(frame: daft.DataFrame, path: Path) -> None:
    # An empty CSV field is an empty string to Daft: only bytes that are not UTF-8 become nulls.
    names = frame.column_names
    nulls = frame.agg(*[daft.col(name).is_null().cast(daft.DataType.int64()).sum() for name in names]).to_pydict()
    for name in names:
        if nulls[name][0]:
            raise HfGrError(
                f"{path}: column {name!r} has {nulls[name][0]} value(s) that are not UTF-8; convert the file."
            )


def _parquet_names(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except pa.ArrowInvalid as error:
        raise HfGrError(f"{path} is not a Parquet file ({first_line(error)}); export it again.") from None
