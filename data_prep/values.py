"""Cells of a table as what they must be: what counts as nothing, numbers, ids."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_gr.errors import HfGrError
from hf_gr.tables import EXACT


# What writers of tables put where there is nothing.
NULL_WORDS = ("", "NA", "N/A", "n/a", "<NA>", "#N/A", "NULL", "null", "nan", "NaN", "NAN", "NaT", "None", "\\N")
BLANKS = " \t\r\n\v\f\u00a0\ufeff"
_NUMERIC = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
# Further columns: whole numbers that int64 holds, and numbers; neither has zeros in front, as codes have.
_WHOLE, _DECIMAL = r"^(-?[1-9]\d{0,17}|0)$", r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d{1,2})?$"
_YES_OR_NO = r"^(?i:true|false)$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class JsonFloat(str):
    """A JSON number with a point or an exponent, as it was written."""


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def given(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Text without outer blanks; null where nothing or a word for nothing (`NA`, `NULL`, `nan`, …) stands."""
    trimmed = pc.utf8_trim(column, characters=BLANKS)
    words = pc.is_in(trimmed, pa.array(NULL_WORDS, trimmed.type))
    return pc.if_else(words, pa.scalar(None, trimmed.type), trimmed)


def is_empty(value: object) -> bool:
    """Whether a single cell is nothing: null, NaN, blanks or a word for nothing."""
    return value is None or value != value or (isinstance(value, str) and value.strip(BLANKS) in NULL_WORDS)


def empty(column: pa.ChunkedArray) -> np.ndarray:
    """bool [N]: where a column has nothing: null, NaN, blanks or a word for nothing."""
    if is_text(column.type):
        column = given(column)
    return pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)


def numbers(column: pa.ChunkedArray, name: str, where: str | Path) -> np.ndarray:
    """float64 [N], NaN where there is no finite number."""
    kind = column.type
    if is_text(kind):
        column = given(column)
        plain = pc.utf8_ltrim(column, characters="+")
        right = pc.match_substring_regex(column, _NUMBER)
        column = pc.if_else(right, plain, pa.scalar(None, plain.type))
    elif not any(check(kind) for check in _NUMERIC):
        raise HfGrError(f"{where}: column {name!r} holds {kind}, which are no numbers; write them as numbers.")
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(values), values, np.nan)


def typed(column: pa.ChunkedArray, name: str, where: str | Path) -> pa.ChunkedArray:
    """A further column of a table in its own type; a text column as what all of its values are written as.

    Text becomes whole numbers (int64), else numbers (float64), else yes or no (bool), and stays text where a value
    would not be the same as a number: `007` is none. Of other types plain ones stay as they are.

    Raises:
        HfGrError: On lists, objects and bytes.
    """
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise HfGrError(f"{where}: column {name!r} holds {kind}; only plain values are kept: write it as text.")
    if not is_text(kind):
        return column
    there, nothing = given(column), pa.scalar(None, column.type)
    for pattern, wanted in ((_WHOLE, pa.int64()), (_DECIMAL, pa.float64()), (_YES_OR_NO, pa.bool_())):
        if there.null_count < len(there) and pc.all(pc.match_substring_regex(there, pattern)).as_py():
            return there.cast(wanted)
    return pc.if_else(pc.equal(column, ""), nothing, column)


def whole_numbers(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N] out of integers of any width, and where there is one that fits."""
    valid = pc.is_valid(column).to_numpy(zero_copy_only=False).copy()
    column = pc.fill_null(column, 0)
    if pa.types.is_uint64(column.type):
        values = column.to_numpy()
        valid &= values < 2**63
        return np.where(valid, values, 0).astype(np.int64), valid
    return column.cast(pa.int64()).to_numpy(), valid


def ids(column: pa.ChunkedArray, name: str, where: str | Path, *, json_floats: bool = False) -> pa.ChunkedArray:
    """A column of ids as text: null where it is empty or no id.

    Args:
        column: Text (outer blanks are dropped), integers, or floats that are whole and exact (`12.0` is the id `12`,
            as pandas writes integers with gaps).
        name: Column, for messages.
        where: File, for messages.
        json_floats: Whether the text comes of JSON numbers with a point, which are floats too.

    Raises:
        HfGrError: On another type, and on floats so large that several ids may have become one.
    """
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if is_text(kind):
        column = given(column if not pa.types.is_string_view(kind) else column.cast(pa.large_string()))
        return _json_ids(column, name, where) if json_floats else column
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        return column.cast(pa.string())
    if not pa.types.is_floating(kind):
        raise HfGrError(f"{where}: column {name!r} holds {kind}, but ids must be text or whole numbers.")
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    large = np.flatnonzero(np.abs(values) >= EXACT[kind])
    if len(large):
        raise HfGrError(_inexact(name, where, values[large[0]], kind))
    whole = np.isfinite(values) & (values == np.floor(values))
    text = pa.array(np.where(whole, values, 0).astype(np.int64)).cast(pa.string())
    return pa.chunked_array([pc.if_else(pa.array(whole), text, pa.scalar(None, pa.string()))])


def _json_ids(column: pa.ChunkedArray, name: str, where: str | Path) -> pa.ChunkedArray:
    floats = pc.match_substring_regex(column, r"^-?\d+(\.\d+)?([eE][+-]?\d+)?$")
    floats = pc.and_(floats, pc.match_substring_regex(column, r"[.eE]"))
    values = pc.if_else(floats, column, pa.scalar(None, column.type)).cast(pa.float64())
    return pc.coalesce(ids(values, name, where), pc.if_else(floats, pa.scalar(None, column.type), column))


def _inexact(name: str, where: str | Path, value: float, kind: pa.DataType) -> str:
    return (
        f"{where}: column {name!r} holds floats ({kind}), and {value:.17g} may stand for several ids, which such "
        f"floats no longer tell apart from {EXACT[kind]} on; export the column as text or integers."
    )


def same_but_written_otherwise(item_id: str) -> str:
    """An id without what programs add or drop: outer blanks, `.0` at the end, zeros in front."""
    return re.sub(r"\.0$", "", item_id.strip(BLANKS)).lstrip("0") or "0"
