"""Amazon reviews and product metadata as published: 2014 (McAuley), 2018 (Ni) and 2023 (Hou)."""

import ast
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_gr.errors import HfGrError, first_line

from .common import finish, settings_of, up_to_date
from .events import typed_events
from .files import check_file, column_names, open_text, pick_columns, read_table
from .filters import FilterOptions
from .items import as_text, items_table


_REVIEWS = {  # edition → our name: theirs
    "2014/2018": {"user_id": "reviewerID", "item_id": "asin", "rating": "overall", "timestamp": "unixReviewTime"},
    "2023": {"user_id": "user_id", "item_id": "parent_asin", "rating": "rating", "timestamp": "timestamp"},
}
FIVE_CORE = FilterOptions(k_core=5)

_TAG = re.compile(r"<(?:[a-zA-Z/!][^<>]*)>")
_SPACE = re.compile(r"\s+")


def prepare_amazon(
    out: str | Path,
    reviews: str | Path,
    metadata: str | Path | None = None,
    *,
    options: FilterOptions = FIVE_CORE,
) -> None:
    """Writes a dataset folder from one category's reviews and metadata; the edition is told by the columns.

    Texts of the items are freed of HTML entities and tags, categories flattened in order without repeats. Where an
    item is described twice (2018 repeats some) the first description counts.

    Args:
        out: Folder to write.
        reviews: One review a line, `.json.gz`, `.jsonl.gz` or plain: `reviewerID`, `asin`, `overall`, `unixReviewTime`
            (2014, 2018; seconds) or `user_id`, `parent_asin`, `rating`, `timestamp` (2023; milliseconds).
        metadata: One product a line: Python literals (2014) or JSON (2018, 2023). Without it the items are made from
            the ids.
        options: What is kept; 5-core unless told otherwise.

    Raises:
        HfGrError: On an unknown edition, an unreadable line, or reviews of items that the metadata lack (unless
            `drop_unknown_items`).
    """
    reviews = check_file(reviews)
    files = {"reviews": reviews}
    if metadata is not None:
        files["metadata"] = check_file(metadata)
    settings = settings_of("amazon", files, options)
    if up_to_date(out, settings, files):
        return
    found = column_names(reviews)
    edition = "2023" if "parent_asin" in found else "2014/2018"
    remedy = "is it a file of Amazon reviews? Other tables are read by `hf-gr prepare table`"
    picked = pick_columns(found, _REVIEWS[edition], tuple(_REVIEWS[edition]), (), reviews, remedy)
    events, time = typed_events(read_table(reviews, picked), reviews, "ms" if edition == "2023" else "s")
    finish(
        out,
        events,
        None if metadata is None else read_metadata(files["metadata"]),
        where=reviews,
        time=time,
        options=options,
        source=f"Amazon product reviews, {edition} edition (`{reviews.name}`); published for research use.",
        license="unknown",
        settings=settings,
    )


def read_metadata(path: Path) -> pa.Table:
    """The items table out of a metadata file of any edition."""
    return items_table((_item(record, path) for record in _records(path)), path, repeated="first")


def clean(text: Any) -> str | None:
    """Text without HTML entities and tags, white space collapsed; `None` when nothing is left."""
    plain = as_text(text)
    if plain is None:
        return None
    plain = html.unescape(html.unescape(plain))  # some entities were escaped twice (&amp;amp;)
    return _SPACE.sub(" ", _TAG.sub(" ", plain)).strip() or None


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Products of a file; its first line tells whether lines are JSON or Python literals."""
    with open_text(path) as handle:
        parse = None
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            parse = parse or _parser(line)
            try:
                record = parse(line)
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise HfGrError(f"{path} line {number} is unreadable ({first_line(error)}); fix or drop it.") from None
            if not isinstance(record, dict):
                raise HfGrError(f"{path} line {number} does not describe a product; is it the metadata file?")
            yield record


def _parser(line: str) -> Any:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return ast.literal_eval
    return json.loads


def _item(record: dict[str, Any], path: Path) -> dict[str, Any]:
    item_id = record.get("parent_asin") or record.get("asin")
    if not item_id:
        raise HfGrError(
            f"{path}: a product has no 'parent_asin' or 'asin' ({str(record)[:60]}…); is it the metadata file?"
        )
    title = as_text(record.get("title"))
    return {
        "item_id": item_id,
        # Some pages of 2018 were scraped with their JavaScript for a title.
        "title": None if title is None or "getTime" in title else clean(title),
        "brand": clean(record.get("brand") or record.get("store")),
        "categories": _categories(record.get("categories") or record.get("category") or []),
        "description": clean(record.get("description")),
    }


def _categories(value: list[Any] | str) -> list[str]:
    """2014: a list of paths; 2018 and 2023: one path."""
    names = [value] if isinstance(value, str) else value
    flat = [name for path in names for name in (path if isinstance(path, list) else [path])]
    return list(dict.fromkeys(name for name in map(clean, flat) if name))
