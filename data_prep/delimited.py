"""Delimited text (CSV, TSV and the like) by pyarrow: a cell of megabytes takes megabytes.

Daft's reader sizes its buffers by the longest cell: one of 200,000 characters takes 7 GiB.
"""

import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv

from hf_gr.errors import HfGrError, first_line


_BLOCK, _LONGEST = 16 << 20, 1 << 30  # bytes read at a time; the most that one row may take
_END = "\x1d end of the file \x1d"
_OPEN = "{} has a quotation mark that is not closed; is the file whole?"
_QUOTED = r'^"(?:[^"]|"")*"$'


@dataclass(frozen=True)
class Delimited:
    """How a text file parts its cells.

    Attributes:
        delimiter: What stands between two cells.
        quoted: Whether `"` around a cell protects what is in it (`""` is a quotation mark).
        header: Whether the first line has the names.
    """

    delimiter: str
    quoted: bool = True
    header: bool = True


class _Wrong(HfGrError):
    """Rows of another number of cells than the first line."""


def read_delimited(path: Path, width: int, places: Sequence[int], form: Delimited) -> pa.Table:
    """Columns of a delimited text file as strings, rows in the file's order.

    Args:
        path: File, UTF-8, gzipped or not.
        width: Number of columns.
        places: Which of them are wanted, counted from 0; one may be wanted twice.
        form: How cells are parted.

    Returns:
        A string column for every place, named "0", "1", …. Raises [`HfGrError`] that names the line of a row with
        another number of cells, a column that is not UTF-8, or a file that is cut.
    """
    block = min(_BLOCK, max(path.stat().st_size + 1, 1 << 16))
    while True:
        try:
            return _read(path, width, places, form, block)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error) or block >= _LONGEST:
                raise HfGrError(_told(path, error, places)) from None
            block *= 8  # a row longer than a block: read again in larger ones
        except (OSError, EOFError, OverflowError, zlib.error) as error:
            raise HfGrError(f"{path} cannot be read ({first_line(error)}); is it whole?") from None


def unquoted(path: Path, width: int, places: Sequence[int], form: Delimited) -> pa.Table:
    """The columns of a file that may or may not quote, as TSV files come; see [`read_delimited`].

    It is read as it stands, `"` being a character like any other. Quotes were meant as such only if the header has
    them, if every cell that begins with `"` is a whole quoted cell and one has `""` in it, or if lines do not fit the
    header otherwise.
    """
    with _Stream(path, width, form) as stream:
        if stream.read(4).lstrip(b"\xef\xbb\xbf").startswith(b'"'):
            return read_delimited(path, width, places, form)
    plain = replace(form, quoted=False)
    try:
        table = read_delimited(path, width, places, plain)
    except _Wrong as error:
        try:
            return read_delimited(path, width, places, form)
        except HfGrError:
            raise error from None
    if _means_quotes(table):
        quoted = read_delimited(path, width, places, form)
        return quoted if quoted.num_rows == table.num_rows else table
    return table


def _means_quotes(table: pa.Table) -> bool:
    doubled = False
    for column in table.columns:
        begin = column.filter(pc.starts_with(column, '"'))
        if not len(begin):
            continue
        if not pc.all(pc.match_substring_regex(begin, _QUOTED)).as_py():
            return False
        doubled |= pc.any(pc.match_substring(pc.utf8_slice_codeunits(begin, 1, -1), '""')).as_py()
    return doubled


def _read(path: Path, width: int, places: Sequence[int], form: Delimited, block: int) -> pa.Table:
    names = [str(place) for place in range(width)]
    wanted = [names[place] for place in dict.fromkeys(places)]

    wrong: list[pc_csv.InvalidRow] = []

    def note(row: pc_csv.InvalidRow) -> str:  # what it raises would be lost
        wrong.append(row)
        return "error"

    read = pc_csv.ReadOptions(
        column_names=names, block_size=block, use_threads=False, skip_rows_after_names=int(form.header)
    )
    parse = pc_csv.ParseOptions(
        delimiter=form.delimiter,
        quote_char='"' if form.quoted else False,
        newlines_in_values=form.quoted,
        invalid_row_handler=note,
    )
    convert = pc_csv.ConvertOptions(
        column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, strings_can_be_null=False
    )
    with _Stream(path, width, form) as stream:
        try:
            table = pc_csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert).read_all()
        except pa.ArrowInvalid:
            if not wrong:
                raise
            raise _Wrong(_OPEN.format(path) if _END in wrong[0].text else _of_row(path, wrong[0], form)) from None
    last = table.slice(table.num_rows - 1)
    if table.num_rows == 0 or any(column[0].as_py() != _END for column in last.columns):
        raise _Wrong(_OPEN.format(path))
    table = table.slice(0, table.num_rows - 1)
    return pa.Table.from_arrays(
        [table[names[place]] for place in places], [str(place) for place in range(len(places))]
    )


def _of_row(path: Path, row: pc_csv.InvalidRow, form: Delimited) -> str:
    delimiter = {",": "a comma", "\t": "a tab"}.get(form.delimiter, repr(form.delimiter))
    remedy = f'fix it (a cell with a line break, {delimiter} or " in it stands in quotation marks)'
    return (
        f"{path} cannot be read: row {row.number} has {row.actual_columns} cell(s) where there are "
        f"{row.expected_columns} columns ({_short(row.text)!r}); {remedy if form.quoted else 'fix it'}."
    )


class _Stream(io.RawIOBase):
    """The bytes of a file, unpacked, and a last row that would be swallowed by a quotation mark that is not closed.

    Refuses quotation marks that are escaped by a backslash, which would be lost.
    """

    def __init__(self, path: Path, width: int, form: Delimited) -> None:
        self.path, self.form, self.end = path, form, b""
        # A backslash before the mark that ends a cell is the last character of that cell.
        self.backslashed = re.compile(rb'\\"[^"\r\n' + re.escape(form.delimiter.encode()) + rb"]")
        self.more = ("\n" + form.delimiter.join([_END] * width) + "\n").encode()
        opener = gzip.open if path.suffix == ".gz" else open
        self.handle: Any = opener(path, "rb")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.handle.read(size)
        if self.form.quoted:
            if self.backslashed.search(self.end + data):
                raise HfGrError(
                    f'{self.path} writes quotation marks inside a cell as \\", which is not read; double them ("").'
                )
            self.end = data[-2:]
        if len(data) < size:  # both kinds of handle fill what is asked for until the end
            data, self.more = data + self.more, b""
        return data

    def close(self) -> None:
        self.handle.close()
        super().close()


def _told(path: Path, error: pa.ArrowInvalid, places: Sequence[int]) -> str:
    text = first_line(error)
    if "invalid UTF8" in text:
        found = re.search(r"column #(\d+)", text)
        return f"{path}: column {int(found[1]) + 1 if found else ''} holds text that is not UTF-8; convert the file."
    if "straddling" in text:
        return f"{path} has a row of more than {_LONGEST >> 20} MB; is a quotation mark not closed?"
    if "Empty CSV file" in text:
        return f"{path} is empty; download or export it again."
    return f"{path} cannot be read ({text}); fix that row or export it again."


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
