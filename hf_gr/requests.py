"""Requests: what a user asks for, in item ids and words, read into rows of the catalog."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa

from .catalog import SidCatalog
from .errors import HfGrError
from .limits import Limits, shown


REQUEST_KEYS = (
    "history",
    "exclude",
    "exclude_seen",
    "allow",
    "category",
    "where",
    "query",
    "ratings",
    "behaviors",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Request:
    """One request in catalog rows.

    Attributes:
        history: int64 [n], items of the catalog, removed ones too, oldest first.
        exclude: int64 [e], items that are no answer, with `exclude_seen` those of the history among them.
        allow: int64 [a], items that alone are answers; `None`: all.
        category: Only items that carry one of these categories; none: all.
        where: Only items where all of these boolean columns of the catalog's items are true.
        query: Free text put before the history.
        context: [n], rating (float) or behavior (str) of every event of `history`; `None` if the model reads none.
        skipped: Ids that were left out, as the catalog does not know them.
    """

    history: np.ndarray
    exclude: np.ndarray
    allow: np.ndarray | None
    category: tuple[str, ...]
    where: tuple[str, ...]
    query: str | None
    context: np.ndarray | None
    skipped: tuple[str, ...]


def parse_request(
    value: Any, catalog: SidCatalog, context: str = "none", *, strict: bool = False, limits: Limits | None = None
) -> Request:
    """Reads one request.

    A list may be any iterable of strings: a tuple, an array, a Series, an Arrow array. Removed items stay in
    histories, as the model was trained on them; they are no answers.

    Args:
        value: Item ids, oldest first, or a dict with any of `history`, `exclude`, `allow` (lists of ids),
            `exclude_seen` (whether the history's items are no answers), `category` (only items of this one, or of one
            in a list), `where` (a boolean column of the catalog's items such as "in_stock", or a list of them: only
            items where all are true), `query` (words) and, parallel to `history`, `ratings` (numbers) or `behaviors`
            (words). Filters compose. Any of them may be `None`.
        catalog: Whose items count.
        context: The vocabulary's. A model that reads ratings or behaviors needs one for every event of the history, as
            a made-up one would silently shift the answers. It reads a value that no training event had as unknown.
        strict: Whether ids that the catalog does not know are refused. Else they are skipped and stand in `skipped`.
        limits: Of lengths; [`Limits`] if left out.

    Raises:
        HfGrError: On anything else; on unknown categories and columns; when no id of the history is known, which the
            list of a new user would hide; and when `allow` names no live item: a filter is never dropped silently.
    """
    limits = limits or Limits()
    if value is None:
        raise HfGrError('a request is None; give item ids, or {"history": []} for a new user.')
    fields = value if isinstance(value, Mapping) else {"history": value}
    unknown = [str(key) for key in fields if key not in REQUEST_KEYS]
    if unknown:
        raise HfGrError(f"a request has no key {unknown[0]!r}; it may have: {', '.join(REQUEST_KEYS)}.")
    ids = {name: _ids(name, fields.get(name), limits) for name in ("history", "exclude", "allow")}
    rows = {
        name: np.array([catalog.row_of.get(item_id, -1) for item_id in listed], np.int64)
        for name, listed in ids.items()
    }
    skipped = [i for name, listed in ids.items() for i, row in zip(listed, rows[name], strict=True) if row < 0]
    known = {name: found[found >= 0] for name, found in rows.items()}
    if strict and skipped:
        raise HfGrError(f"{_unknown(skipped)}; leave them out, or let them be skipped with strict=False.")
    if ids["history"] and not len(known["history"]):
        raise HfGrError(
            f"history is {shown(ids['history'])}: no item of the catalog, whose ids are written as "
            f"{catalog.item_ids[0]!r}; give its ids, or an empty history for a new user."
        )
    restricted = fields.get("allow") is not None
    if restricted and not catalog.live[known["allow"]].any():
        raise HfGrError(f"allow is {shown(ids['allow'])}: no live item of the catalog, so nothing can be answered.")
    exclude_seen = fields.get("exclude_seen")
    if not isinstance(exclude_seen, bool | np.bool_ | None):
        raise HfGrError(f"exclude_seen is {shown(exclude_seen)}; give true or false.")
    category, where = _names("category", fields), _names("where", fields)
    catalog.check_words(category, where)
    values = _context(fields, context, len(ids["history"]))
    return Request(
        known["history"],
        np.union1d(known["exclude"], known["history"]) if exclude_seen else known["exclude"],
        known["allow"] if restricted else None,
        category,
        where,
        _query(fields.get("query"), limits),
        None if values is None else values[rows["history"] >= 0],
        tuple(skipped),
    )


def _ids(name: str, value: Any, limits: Limits) -> list[str]:
    if value is None:
        return []
    if not is_list(value) or (isinstance(value, Set) and name == "history"):  # a set has no order
        raise HfGrError(f"{name} is {shown(value)}; give a list of item ids, or a dict with a key 'history'.")
    limit, most = ("history", limits.history) if name == "history" else ("ids", limits.ids)
    try:
        ids = _entries(value, most)
    except TypeError:  # a tensor of one number
        raise HfGrError(f"{name} is {shown(value)}; give a list of item ids.") from None
    limits.length(name, limit, len(value) if isinstance(value, Sized) else len(ids))
    for entry in ids:
        if not isinstance(entry, str):
            written = f"write {str(entry)!r}, of an array .astype(str)" if _is_number(entry) else "write them as text"
            raise HfGrError(f"{name} holds {shown(entry)}; item ids are strings: {written}.")
    return list(map(str, ids))  # plain ones, where NumPy's were given


def is_list(value: Any) -> bool:
    """Whether a value is many values, as a list, an array, a Series or a generator is; text and dicts are one."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _entries(value: Any, most: int) -> list[Any]:
    """Of a list the entries, at most one more than `most`."""
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value.slice(0, most + 1).to_pylist()
    return list(islice(value, most + 1))


def _names(key: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    value = fields.get(key)
    if value is None:
        return ()
    names = [value] if isinstance(value, str) else list(value) if is_list(value) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise HfGrError(f"{key} is {shown(value)}; give a name, or a list of at least one.")
    return tuple(map(str, names))


def _query(value: Any, limits: Limits) -> str | None:
    if not isinstance(value, str | None):
        raise HfGrError(f"query is {shown(value)}; give words.")
    if value is None:
        return None
    limits.length("query", "query", len(value))
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        raise HfGrError(f"query is {shown(value)}, with half a character in it; decode it as UTF-8.")
    return str(value)


def _context(fields: Mapping[str, Any], context: str, events: int) -> np.ndarray | None:
    """What stands beside every event as given, before unknown items are left out."""
    read = {"none": None, "rating": "ratings", "behavior": "behaviors"}[context]
    for name in ("ratings", "behaviors"):
        if name != read and fields.get(name) is not None:
            raise HfGrError(f"{name} are given, but this model reads none; leave them out.")
    if read is None:
        return None
    value = fields.get(read)
    values = [] if value is None and events == 0 else _entries(value, events) if is_list(value) else None
    fits = _is_number if context == "rating" else _is_text
    if values is None or len(values) != events or not all(map(fits, values)):
        raise HfGrError(
            f"this model reads a {context} with every item, but {read} is {shown(value)} for {events} item(s); give "
            f'{{"history": [...], "{read}": [...]}}, one for each.'
        )
    return np.array(values, np.float32 if context == "rating" else object)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _unknown(ids: Sequence[str]) -> str:
    some = ", ".join(map(repr, ids[:3])) + (", …" if len(ids) > 3 else "")
    return f"{len(ids)} item id(s) are not in the catalog: {some}"


def warn_skipped(requests: Iterable[Any]) -> None:
    """Warns, in one line, of ids that were skipped in any of the requests."""
    skipped = list(dict.fromkeys(i for request in requests if isinstance(request, Request) for i in request.skipped))
    if skipped:
        logger.warning("%s; skipped.", _unknown(skipped))
