"""Requests: what a user asks for, in item ids and words, read into rows of the catalogue."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .catalog import SidCatalog
from .errors import HfGrError


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


@dataclass(frozen=True)
class Request:
    """One request in catalogue rows.

    Attributes:
        history: int64 [n], live items, oldest first.
        exclude: int64 [e], items that are no answer, with `exclude_seen` those of the history among them.
        allow: int64 [a], items that alone are answers; `None`: all.
        category: Only items that carry one of these categories; none: all.
        where: Only items where all of these boolean columns of the catalogue's items are true.
        query: Free text put before the history.
        context: [n], rating (float) or behaviour (str) of every event of `history`; `None` if the model reads none.
        skipped: Ids that were left out: unknown, or removed from the catalogue.
    """

    history: np.ndarray
    exclude: np.ndarray
    allow: np.ndarray | None
    category: tuple[str, ...]
    where: tuple[str, ...]
    query: str | None
    context: np.ndarray | None
    skipped: tuple[str, ...]


def parse_request(value: Any, catalog: SidCatalog, context: str = "none") -> Request:
    """Reads one request.

    Args:
        value: Item ids, oldest first, or a dict with any of `history`, `exclude`, `allow` (lists of ids),
            `exclude_seen` (whether the history's items are no answers), `category` (only items of this one, or of one
            in a list), `where` (a boolean column of the catalogue's items such as "in_stock", or a list of them: only
            items where all are true), `query` (words) and, parallel to `history`, `ratings` (numbers) or `behaviors`
            (words). Filters compose. Any of them may be `None`.
        catalog: Whose live items count.
        context: The vocabulary's. A model that reads ratings or behaviours needs one for every event of the history:
            there is no value that stands for "unknown", and a made-up one would silently shift the answers.

    Raises:
        HfGrError: On anything else, on unknown categories and columns, and when `allow` names no live item: a filter
            is never dropped silently.
    """
    fields = value if isinstance(value, Mapping) else {"history": value}
    unknown = [str(key) for key in fields if key not in REQUEST_KEYS]
    if unknown:
        raise HfGrError(f"a request has no key {unknown[0]!r}; it may have: {', '.join(REQUEST_KEYS)}.")
    ids = {"history": _ids("history", fields.get("history", []))}
    ids |= {name: _ids(name, [] if fields.get(name) is None else fields[name]) for name in ("exclude", "allow")}
    rows = {name: np.array([_live_row(i, catalog) for i in found], np.int64) for name, found in ids.items()}
    skipped = [i for name, found in ids.items() for i, row in zip(found, rows[name], strict=True) if row < 0]
    known = {name: found[found >= 0] for name, found in rows.items()}
    restricted = fields.get("allow") is not None
    if restricted and not len(known["allow"]):
        raise HfGrError(f"allow is {shown(ids['allow'])}: no live item of the catalogue, so nothing can be answered.")
    query, exclude_seen = fields.get("query"), fields.get("exclude_seen")
    if not isinstance(query, str | None):
        raise HfGrError(f"query is {shown(query)}; give words.")
    if not isinstance(exclude_seen, bool | None):
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
        query,
        None if values is None else values[rows["history"] >= 0],
        tuple(skipped),
    )


def _ids(name: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple):
        raise HfGrError(f"{name} is {shown(value)}; give a list of item ids, or a dict with a key 'history'.")
    wrong = [entry for entry in value if not isinstance(entry, str)]
    if wrong:
        raise HfGrError(f"{name} holds {shown(wrong[0])}; item ids are strings.")
    return list(value)


def _names(key: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    value = fields.get(key)
    if value is None:
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise HfGrError(f"{key} is {shown(value)}; give a name, or a list of at least one.")
    return tuple(names)


def _live_row(item_id: str, catalog: SidCatalog) -> int:
    row = catalog.row_of.get(item_id, -1)
    return row if row >= 0 and catalog.live[row] else -1


def _context(fields: Mapping[str, Any], context: str, events: int) -> np.ndarray | None:
    """What stands beside every event as given, before unknown items are left out."""
    if context == "none":
        return None
    name, kind = ("ratings", int | float) if context == "rating" else ("behaviors", str)
    values = fields.get(name)
    values = [] if values is None and events == 0 else values
    if not isinstance(values, list | tuple) or len(values) != events or not all(isinstance(v, kind) for v in values):
        raise HfGrError(
            f"this model reads a {context} with every item, but {name} is {shown(values)} for {events} item(s); give "
            f'{{"history": [...], "{name}": [...]}}, one for each.'
        )
    return np.array(values, np.float32 if context == "rating" else object)


def shown(value: Any) -> str:
    """A value as a message tells it: cut, and with its type."""
    text = repr(value)
    return f"{text[:40]}{'…' if len(text) > 40 else ''} ({type(value).__name__})"


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:3])) + (", …" if len(ids) > 3 else "")


def check_skipped(requests: Sequence[Request], strict: bool) -> None:
    """Warns, in one line, of ids that are unknown or removed; raises [`HfGrError`] if `strict`."""
    skipped = list(dict.fromkeys(item_id for request in requests for item_id in request.skipped))
    if not skipped:
        return
    what = f"{len(skipped)} item id(s) are not among the catalogue's live items: {_some(skipped)}"
    if strict:
        raise HfGrError(f"{what}; leave them out, or let them be skipped with strict=False.")
    logger.warning("%s; skipped.", what)
