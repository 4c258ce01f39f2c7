"""The items table out of records that describe items, one dict an item."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_gr.dataset import check_items
from hf_gr.errors import HfGrError

from .values import BLANKS, JsonFloat, is_empty


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
    seen: dict[str, int] = {}
    twice: dict[str, list[int]] = {}
    written: set[str] = set()
    for number, record in enumerate(records, 1):
        raw = record.get("item_id")
        item_id = _item_id(raw, number, where)
        written.add(raw if isinstance(raw, str) else item_id)
        if item_id in seen:
            twice.setdefault(item_id, [seen[item_id]]).append(number)
            continue
        seen[item_id] = number
        _check_plain(record, item_id, where)
        texts = {name: as_text(record.get(name)) for name in TEXT}
        texts["title"] = texts["title"] or item_id
        marks = {name: _as_flag(record.get(name), name, item_id, where) for name in flags}
        rows.append({"item_id": item_id, **texts, "categories": as_list(record.get("categories"), separator), **marks})
    if twice and repeated == "refuse":
        item_id, numbers = next(iter(twice.items()))
        raise HfGrError(
            f"{where}: item_id {item_id!r} stands in rows {numbers[0]} and {numbers[1]} ({len(twice)} id(s) stand in "
            "more than one row); keep one row per item."
        )
    _say_blanks(written)
    _say_lists(rows, separator, where)
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
    """A list of texts without empty ones; a number is a list of one."""
    if isinstance(value, str):
        value = value.split(separator) if separator else [value]
    elif not isinstance(value, list | tuple):
        value = [value]
    return [text for text in map(as_text, value) if text]


def _as_flag(value: Any, name: str, item_id: str, where: str | Path) -> bool:
    text = "" if value is None or value != value else str(value).strip().lower()
    if text not in _YES | _NO:
        raise HfGrError(f"{where}: {name} of item {item_id!r} is {value!r}; a flag is true or false (or 1 or 0).")
    return text in _YES


def _item_id(value: Any, number: int, where: str | Path) -> str:
    if isinstance(value, JsonFloat | float) and not is_empty(value) and float(value).is_integer():
        if abs(float(value)) >= 2**53:
            raise HfGrError(
                f"{where}: item_id of item {number} is {value!r}, a float that may stand for several ids (from 2^53 "
                "on they are not told apart); export the column as text or integers."
            )
        value = int(float(value))  # integers with gaps, as pandas writes them
    if isinstance(value, bool | float | JsonFloat) or not isinstance(value, str | int) or is_empty(value):
        raise HfGrError(f"{where}: item_id of item {number} is {value!r}; give every item a text or a whole number.")
    return str(value).strip(BLANKS)


def _check_plain(record: Mapping[str, Any], item_id: str, where: str | Path) -> None:
    for name in OPTIONAL:
        value = record.get(name)
        parts = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(part, dict) for part in parts):
            raise HfGrError(
                f"{where}: {name!r} of item {item_id!r} holds an object, which is not read; write what is in it to a "
                "column of its own."
            )


def _say_blanks(ids: set[str]) -> None:
    blank = sum(item_id != item_id.strip(BLANKS) for item_id in ids)
    if blank:
        print(f"[prepare] items: blanks around {blank:,} ids dropped", flush=True)


def _say_lists(rows: Sequence[Mapping[str, Any]], separator: str | None, where: str | Path) -> None:
    """Says where categories are lists written as text, or are parted by commas: each then is one category."""
    if separator is None:
        return
    names = [row["categories"][0] for row in rows if len(row["categories"]) == 1]
    lists = [name for name in names if name[0] in "[(" and name[-1] in "])"]
    commas = [name for name in names if ", " in name] if all(len(row["categories"]) < 2 for row in rows) else []
    for found, what in ((lists, "lists written as text"), (commas if not lists else [], "parted by commas")):
        if found:
            print(
                f"[prepare] warning: categories of {len(found):,} item(s) of {where} are {what} ({found[0]!r}); each "
                f"is taken as one category: write them as a{separator}b",
                flush=True,
            )
