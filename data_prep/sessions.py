"""Sessions: one row an item list with behaviours, as in multi-behaviour data (RetailRocket, Yoochoose).

What the augmentation is, found in the RetailRocket form of MB-IMN: every purchase of a session made a row of its
own, with what came before it as the list and the bought item as the target. So rows of one session are nested: list 1
is the beginning of list 2, and the event after it in list 2 is the purchase of target 1. On top of that rows are
repeated (most of them three times), and when several items were bought one after the other the later lists leave some
of those purchases out. Of 30,690 training rows 13,768 are distinct and 11,149 remain when those are dropped that a
longer row contains with their purchase. Among these, lists of 3 to 7 events that begin another list are rare (7),
lists of 8 or more are many (1,603): those are the left-out purchases; shorter ones are mostly different visitors who
saw the same item.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import daft
import numpy as np
import pyarrow as pa

from hf_gr.errors import HfGrError

from .common import finish, settings_of, up_to_date
from .files import ROW, check_file, column_names, pick_columns, read_columns
from .filters import DEFAULT, FilterOptions
from .table import check_map, read_items


Event = tuple[str, str]  # item, behaviour

_THEIRS = {"session_id": "session_id", "item_ids": "item_ids", "behaviors": "behaviors", "target": "bought_item_id"}
_MIN_SHARED = 3  # a list this long that begins another one is taken for the same session: see above


def prepare_sessions(
    out: str | Path,
    sessions: str | Path | Sequence[str | Path],
    items: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    target_behavior: str = "buy",
    undo_augmentation: bool = True,
    options: FilterOptions = DEFAULT,
    source: str | None = None,
    license: str = "unknown",
) -> None:
    """Writes a dataset folder in which a session is a user, the order in its list the time; behaviours are kept.

    Args:
        out: Folder to write.
        sessions: One file or several (train, test), any format of `prepare_table`: `session_id`, `item_ids` (separated
            by spaces), optional `behaviors` (as many, separated by spaces) and target, an item that comes after the
            list. With several files a session is called `FILE-SESSION_ID`, as each file counts from 1.
        items: Items file; without it the items are made from the ids.
        columns: Our name (`session_id`, `item_ids`, `behaviors`, `target`) → the files' name; `target` is
            `bought_item_id` unless mapped.
        target_behavior: Behaviour of the target.
        undo_augmentation: Whether rows that are the beginning of another row are merged into it, repeated ones into
            one: see [`merge_prefixes`].
        options: What is kept.
        source: Where the data comes from, in a sentence, for the card.
        license: Licence identifier.

    Raises:
        HfGrError: On a missing column, lists of unequal length, or one session id on rows that do not continue one
            another.
    """
    paths = [check_file(path) for path in ([sessions] if isinstance(sessions, str | Path) else sessions)]
    if not paths:
        raise HfGrError("no sessions file was given; name at least one.")
    files = {f"sessions {number}": path for number, path in enumerate(paths)}
    if items is not None:
        files["items"] = check_file(items)
    columns = check_map(columns, tuple(_THEIRS))
    more = {"columns": columns, "target_behavior": target_behavior, "undo_augmentation": undo_augmentation}
    settings = settings_of("sessions", files, options, **more)
    if up_to_date(out, settings):
        return
    ids: list[str] = []
    lists: list[list[Event]] = []
    for path in paths:
        rows = _read(path, columns, target_behavior)
        kept = merge_prefixes(rows) if undo_augmentation else [(name, [*events, *last]) for name, events, last in rows]
        _check_unique([name for name, _ in kept], path)
        print(f"[prepare] {path.name}: {len(rows):,} rows -> {len(kept):,} sessions", flush=True)
        ids += [name if len(paths) == 1 else f"{path.name.split('.')[0]}-{name}" for name, _ in kept]
        lists += [events for _, events in kept]
    finish(
        out,
        _events(ids, lists),
        None if items is None else read_items(files["items"]),
        where=paths[0] if len(paths) == 1 else paths[0].parent,
        time="position",
        options=options,
        source=source or f"Sessions prepared from {', '.join(f'`{path.name}`' for path in paths)}.",
        license=license,
        settings=settings,
    )


def merge_prefixes(rows: Sequence[tuple[str, list[Event], list[Event]]]) -> list[tuple[str, list[Event]]]:
    """Puts the rows that one session was cut into together again.

    1. A row whose list and target, together, are the beginning of another row's list and target (or equal to them)
       tells nothing more and is dropped.
    2. Of those left, a row whose list (of at least 3 events) is the beginning of another row's list, but whose target
       does not follow there, is a purchase that the longer row leaves out: its target is put in at that place.
    Shorter lists without that evidence stay sessions of their own, so no target is ever lost. The rule is ours.

    Args:
        rows: Session id, list, and target: one event or none.

    Returns:
        Session id of the longest row, and all its events in order, for every session, in the order of the rows.
    """
    order = sorted(range(len(rows)), key=lambda row: (rows[row][1] + rows[row][2], -row))
    whole = [rows[row][1] + rows[row][2] for row in order]
    following = [*whole, []][1:]
    fresh = [row for row, mine, longer in zip(order, whole, following, strict=True) if longer[: len(mine)] != mine]

    fresh.sort(key=lambda row: rows[row][1])
    sessions: list[tuple[int, list[Event]]] = []
    left_out: list[tuple[int, Event]] = []  # place in the list, purchase
    for row, after in zip(fresh, [*fresh, None][1:], strict=True):
        _, events, target = rows[row]
        begins = after is not None and rows[after][1][: len(events)] == events
        if begins and len(events) >= _MIN_SHARED:
            left_out += [(len(events), event) for event in target]
            continue
        sessions.append((row, _put_in(events, left_out) + target))
        left_out = []
    return [(rows[row][0], events) for row, events in sorted(sessions)]


def _put_in(events: list[Event], left_out: list[tuple[int, Event]]) -> list[Event]:
    merged = list(events)
    for place, event in reversed(left_out):
        if event not in events[place : place + 3]:  # consecutive purchases may stand in another order
            merged.insert(place, event)
    return merged


def _read(path: Path, columns: Mapping[str, str], behavior: str) -> list[tuple[str, list[Event], list[Event]]]:
    found = column_names(path)
    wanted = {name: theirs for name, theirs in _THEIRS.items() if theirs in found} | dict(columns)
    picked = pick_columns(found, wanted, ("session_id", "item_ids"), ("behaviors", "target"), path)
    table = read_columns(path, picked).to_arrow()
    rows = []
    for record in table.to_pylist():
        name = str(record["session_id"])
        items = (record["item_ids"] or "").split()
        behaviors = (record["behaviors"] or "").split() if "behaviors" in picked else [""] * len(items)
        if not items or len(items) != len(behaviors):
            raise HfGrError(
                f"{path}: session {name!r} has {len(items)} item(s) and {len(behaviors)} behaviour(s); give as many "
                "of both, at least one, separated by spaces."
            )
        last = [(record["target"], behavior)] if record.get("target") else []
        rows.append((name, list(zip(items, behaviors, strict=True)), last))
    if not rows:
        raise HfGrError(f"{path} holds no sessions; check the file.")
    return rows


def _check_unique(ids: list[str], path: Path) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise HfGrError(
                f"{path}: session {name!r} has rows that do not continue one another; give each its own id."
            )
        seen.add(name)


def _events(ids: list[str], lists: list[list[Event]]) -> daft.DataFrame:
    counts = np.array([len(events) for events in lists])
    starts = np.cumsum(counts) - counts
    columns = {
        ROW: pa.array(np.arange(counts.sum())),
        "user_id": pa.array(ids, pa.string()).take(pa.array(np.repeat(np.arange(len(ids)), counts))),
        "item_id": pa.array([item for events in lists for item, _ in events], pa.string()),
        "timestamp": pa.array(np.arange(counts.sum()) - np.repeat(starts, counts)),
    }
    behaviors = [behavior for events in lists for _, behavior in events]
    if any(behaviors):
        columns["behavior"] = pa.array([behavior or None for behavior in behaviors], pa.string())
    return daft.from_arrow(pa.table(columns))
