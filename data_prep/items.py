"""The items table out of records that describe items, one dict an item."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_gr.dataset import check_items
from hf_gr.errors import HfGrError


TEXT = ("title", "brand", "description", "image")
OPTIONAL = ("title", "brand", "categories", "description", "image")
_YES, _NO = {"true", "1", "1.0", "yes"}, {"false", "0", "0.0", "no", ""}


def items_table(
    records: Iterable[Mapping[str, Any]],
    where: str | Path,
    *,
    separator: str | None = None,
    repeated: str = "refuse",
    flags: Sequence[str] = (),
) -> pa.Table:
    """Items with `item_id`, `title` and those of `brand`, `categories`, `description`, `image` that any item has.

    Args:
        records: An item each: `item_id` (string or whole number) and optional texts; `categories` a list or a string;
            a text that comes as a list is joined with spaces. Without a title the id stands in.
        where: File, for messages.
        separator: Splits `categories` that are one string; `None` keeps the string as the one category.
        repeated: `"refuse"` raises [`HfGrError`] when an id occurs twice, `"first"` keeps the first row.
        flags: Further keys that say yes or no of an item (`in_stock`), kept as boolean columns; nothing counts as no.
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, record in enumerate(records, 1):
        item_id = _item_id(record.get("item_id"), number, where)
        if repeated == "first" and item_id in seen:
            continue
        seen.add(item_id)
        texts = {name: as_text(record.get(name)) for name in TEXT}
        texts["title"] = texts["title"] or item_id
        marks = {name: _as_flag(record.get(name), name, item_id, where) for name in flags}
        rows.append({"item_id": item_id, **texts, "categories": as_list(record.get("categories"), separator), **marks})
    kept = ["item_id", "title"] + [name for name in OPTIONAL[1:] if any(row[name] for row in rows)]
    kinds = {name: pa.list_(pa.string()) if name == "categories" else pa.string() for name in kept}
    kinds |= dict.fromkeys(flags, pa.bool_())
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    return check_items(pa.table(columns), where)


def items_from_ids(item_ids: Iterable[str]) -> pa.Table:
    """Items of which nothing but the id is known."""
    ids = pa.array(item_ids, pa.string())
    return pa.table({"item_id": ids, "title": ids})


def as_text(value: Any) -> str | None:
    """A text without outer white space; lists joined with spaces; `None` for nothing, an empty text or NaN."""
    if value is None or value != value:
        return None
    if isinstance(value, list | tuple):
        value = " ".join(text for text in map(as_text, value) if text)
    return str(value).strip() or None


def as_list(value: Any, separator: str | None = None) -> list[str]:
    """A list of texts without empty ones."""
    if isinstance(value, str):
        value = value.split(separator) if separator else [value]
    return [text for text in map(as_text, value or []) if text]


def _as_flag(value: Any, name: str, item_id: str, where: str | Path) -> bool:
    text = "" if value is None or value != value else str(value).strip().lower()
    if text not in _YES | _NO:
        raise HfGrError(f"{where}: {name} of item {item_id!r} is {value!r}; a flag is true or false (or 1 or 0).")
    return text in _YES


def _item_id(value: Any, number: int, where: str | Path) -> str:
    if isinstance(value, float) and value.is_integer():  # integers with gaps, as pandas writes them
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise HfGrError(f"{where}: item_id of item {number} is {value!r}; give every item a string or a whole number.")
    return str(value)
