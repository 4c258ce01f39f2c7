"""Sessions: one row an item list with behaviors, as in multi-behavior data (RetailRocket, Yoochoose, RecBole).

Some sources cut a session up: every purchase makes a row of its own, with what came before it as the list and the
bought item as the target, so that list 1 is the beginning of list 2. Rows are put together again only if asked, and
only those of one session id: lists of different visitors begin alike too. In the RetailRocket form of MB-IMN the id
counts the rows; what belongs together there cannot be told, and every row stays a session.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_gr.errors import HfGrError, first_line

from . import events as ev
from .common import finish, settings_of, up_to_date
from .files import ROW, check_file, column_names, pick_columns, read_table
from .filters import DEFAULT, FilterOptions
from .items import OPTIONAL
from .table import check_keep, check_map, read_items
from .values import ids, is_empty, is_text, typed


Event = tuple[str, str]  # item, behavior
Row = tuple[str, list[Event], list[Event]]  # session, its list, its target or nothing

_THEIRS = {"session_id": "session_id", "item_ids": "item_ids", "behaviors": "behaviors", "target": "bought_item_id"}


def prepare_sessions(
    out: str | Path,
    sessions: str | Path | Sequence[str | Path],
    items: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    item_columns: Mapping[str, str] | None = None,
    target_behavior: str | None = None,
    undo_augmentation: bool = False,
    keep: Sequence[str] = (),
    options: FilterOptions = DEFAULT,
    source: str | None = None,
    license: str = "unknown",
) -> None:
    """Writes a dataset folder in which a session is a user, the order in its list the time; behaviors are kept.

    Args:
        out: Folder to write.
        sessions: One file or several (train, test), any format of `prepare_table`: `session_id`, `item_ids` (parted by
            spaces, or a list column), optional `behaviors` (as many, likewise) and target, an item that comes after
            the list. With several files a session is called `FILE-SESSION_ID`, as each file counts from 1.
        items: Items file; without it the items are made from the ids.
        columns: Our name (`session_id`, `item_ids`, `behaviors`, `target`) → the files' name; `target` is
            `bought_item_id` unless mapped.
        item_columns: The same for the items file.
        target_behavior: Behavior of the target; left out, `buy` if its column is `bought_item_id`.
        undo_augmentation: Whether rows of one session id are put together again: see [`merge_prefixes`].
        keep: Further columns of the rows (`device`), mapped or not, as in `prepare_table`; the value of a row stands
            at each of its events. Not with `undo_augmentation`, which makes one session of several rows.
        options: What is kept.
        source: Where the data comes from, in a sentence, for the card.
        license: Licence identifier.

    Raises:
        HfGrError: On a missing column, an empty session id, lists of unequal length, a target whose behavior nobody
            says, or one session id on several rows that are not to be, or cannot be, put together.
    """
    paths = [check_file(path) for path in ([sessions] if isinstance(sessions, str | Path) else sessions)]
    if not paths:
        raise HfGrError("no sessions file was given; name at least one.")
    files = {f"sessions {number}": path for number, path in enumerate(paths)}
    if items is not None:
        files["items"] = check_file(items)
    names = [path.name.split(".")[0] for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise HfGrError(f"two files are called {twice!r}, which is to tell their sessions apart; rename one.")
    check_keep(keep, (*_THEIRS, *ev.REQUIRED, *ev.OPTIONAL))
    if keep and undo_augmentation:
        raise HfGrError(
            "--keep keeps a value of every row, and --undo-augmentation joins rows; leave one of them out."
        )
    columns = check_map(columns, (*_THEIRS, *keep))
    item_columns = check_map(item_columns, ("item_id", *OPTIONAL))
    if item_columns and items is None:
        raise HfGrError("--item-column maps a column of the items, but there is no table of items; give --items FILE.")
    more: dict[str, object] = {"columns": columns, "item_columns": item_columns}
    more |= {"target_behavior": target_behavior, "undo_augmentation": undo_augmentation}
    more |= {"keep": list(keep)} if keep else {}
    settings = settings_of("sessions", files, options, **more)
    if up_to_date(out, settings, files):
        return
    users: list[str] = []
    lists: list[list[Event]] = []
    further: list[pa.Table] = []
    for path, name in zip(paths, names, strict=True):
        rows, table = _read(path, columns, target_behavior, keep)
        further.append(table)
        kept = (
            merge_prefixes(rows)
            if undo_augmentation
            else [(session, [*events, *last]) for session, events, last in rows]
        )
        _check_unique([session for session, _ in kept], path, undo_augmentation)
        print(f"[prepare] {path.name}: {len(rows):,} rows -> {len(kept):,} sessions", flush=True)
        users += [session if len(paths) == 1 else f"{name}-{session}" for session, _ in kept]
        lists += [events for _, events in kept]
    if len(set(users)) < len(users):
        name = next(name for name, count in Counter(users).items() if count > 1)
        raise HfGrError(f"sessions of two files would both be called {name!r}; rename one of the files.")
    finish(
        out,
        _events(users, lists, _further(further, paths[0])),
        None if items is None else read_items(files["items"], item_columns),
        where=paths[0] if len(paths) == 1 else paths[0].parent,
        time="position",
        options=options,
        source=source or f"Sessions prepared from {', '.join(f'`{path.name}`' for path in paths)}.",
        license=license,
        settings=settings,
    )


def merge_prefixes(rows: Sequence[Row]) -> list[tuple[str, list[Event]]]:
    """Puts the rows that one session was cut into together again; rows of other sessions are never looked at.

    1. A row whose list and target, together, are the beginning of another row's list and target (or equal to them)
       tells nothing more and is dropped.
    2. Of those left, a row whose list is the beginning of another row's list, but whose target does not follow there,
       is a purchase that the longer row leaves out: its target is put in at that place.
    So no target is ever lost. The rule is ours.

    Args:
        rows: Session id, list, and target: one event or none.

    Returns:
        Session id and all events in order, once for every session whose rows continue one another (more often for
        others), in the order of the rows.
    """
    sessions: dict[str, list[Row]] = {}
    for row in rows:
        sessions.setdefault(row[0], []).append(row)
    return [(name, events) for name, own in sessions.items() for events in _merged(own)]


def _merged(rows: Sequence[Row]) -> list[list[Event]]:
    order = sorted(range(len(rows)), key=lambda row: (rows[row][1] + rows[row][2], -row))
    whole = [rows[row][1] + rows[row][2] for row in order]
    following = [*whole, []][1:]
    fresh = [row for row, mine, longer in zip(order, whole, following, strict=True) if longer[: len(mine)] != mine]

    fresh.sort(key=lambda row: rows[row][1])
    sessions: list[tuple[int, list[Event]]] = []
    left_out: list[tuple[int, Event]] = []  # place in the list, purchase
    for row, after in zip(fresh, [*fresh, None][1:], strict=True):
        _, events, target = rows[row]
        if after is not None and rows[after][1][: len(events)] == events:
            left_out += [(len(events), event) for event in target]
            continue
        sessions.append((row, _put_in(events, left_out) + target))
        left_out = []
    return [events for _, events in sorted(sessions)]


def _put_in(events: list[Event], left_out: list[tuple[int, Event]]) -> list[Event]:
    merged = list(events)
    for place, event in reversed(left_out):
        if event not in events[place : place + 3]:  # consecutive purchases may stand in another order
            merged.insert(place, event)
    return merged


def _read(
    path: Path, columns: Mapping[str, str], behavior: str | None, keep: Sequence[str]
) -> tuple[list[Row], pa.Table]:
    """The rows of a file, and their further columns."""
    found = column_names(path)
    wanted = {name: theirs for name, theirs in _THEIRS.items() if theirs in found} | dict(columns)
    picked = pick_columns(found, wanted, ("session_id", "item_ids", *keep), ("behaviors", "target"), path)
    table = read_table(path, picked)
    if not table.num_rows:
        raise HfGrError(f"{path} holds no sessions; check the file.")
    sessions = ids(table["session_id"], "session_id", path).to_pylist()
    if None in sessions:
        raise HfGrError(f"{path}: 'session_id' is empty in row {sessions.index(None)}; fill it or drop the row.")
    items = _words(table["item_ids"], "item_ids", path)
    behaviors = _words(table["behaviors"], "behaviors", path) if "behaviors" in picked else None
    targets = ids(table["target"], "target", path).to_pylist() if "target" in picked else [None] * len(items)
    if "target" in picked:
        behavior = _behavior_of_target(picked, behavior, path)
    elif behavior is not None:
        raise HfGrError(
            f"--target-behavior is {behavior!r}, but {path} has no target; map it: --column target=THEIRS."
        )
    rows: list[Row] = []
    for number, (name, own, last) in enumerate(zip(sessions, items, targets, strict=True)):
        did = [""] * len(own) if behaviors is None else behaviors[number]
        if not own or len(own) != len(did):
            raise HfGrError(
                f"{path}: session {name!r} has {len(own)} item(s) and {len(did)} behavior(s); give as many of "
                "both, at least one, parted by spaces or as a list."
            )
        rows.append((str(name), list(zip(own, did, strict=True)), [] if last is None else [(last, behavior or "")]))
    return rows, table.select(list(keep))


def _further(tables: Sequence[pa.Table], where: Path) -> pa.Table:
    """The further columns of all rows of all files, each in its own type."""
    try:
        table = pa.concat_tables(table.replace_schema_metadata() for table in tables)
    except pa.ArrowInvalid as error:
        raise HfGrError(f"columns of --keep differ in type between the files ({first_line(error)}).") from None
    return pa.table({name: typed(table[name], name, where) for name in table.column_names})


def _behavior_of_target(picked: Mapping[str, str], given: str | None, path: Path) -> str | None:
    """The behavior of the target, which nobody recorded but in the name of its column."""
    if given is not None or "behaviors" not in picked:
        return given
    if picked["target"] == _THEIRS["target"]:
        return "buy"
    raise HfGrError(
        f"{path} has behaviors, but does not say that of the target {picked['target']!r}; give it, such as "
        "--target-behavior buy."
    )


def _words(column: pa.ChunkedArray, name: str, path: Path) -> list[list[str]]:
    """A list of words for every row: of a list column, or of a text parted by spaces."""
    kind = column.type
    if is_text(kind):
        lists = [(text or "").split() for text in column.to_pylist()]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        words = ids(pc.list_flatten(column), name, path).to_pylist()
        ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy()).tolist()
        lists = [words[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    else:
        raise HfGrError(f"{path}: column {name!r} holds {kind}; give texts parted by spaces, or lists.")
    for row, own in enumerate(lists):
        if any(map(is_empty, own)):
            raise HfGrError(f"{path}: a list in {name!r} has an empty value in row {row}; drop it from the list.")
    return lists


def _check_unique(ids: list[str], path: Path, undone: bool) -> None:
    rows: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in rows and undone:
            raise HfGrError(
                f"{path}: session {name!r} has rows that do not continue one another; give each its own id."
            )
        if name in rows:
            raise HfGrError(
                f"{path}: session {name!r} stands in rows {rows[name]} and {row} (the first row is 0); if they are "
                "one session cut up, put it together with --undo-augmentation, else give each its own id."
            )
        rows[name] = row


def _events(ids: list[str], lists: list[list[Event]], further: pa.Table) -> daft.DataFrame:
    """Events of the sessions `ids`; `further` has a row for each of these, or no column."""
    counts = np.array([len(events) for events in lists])
    rows = pa.array(np.repeat(np.arange(len(ids)), counts))
    starts = np.cumsum(counts) - counts
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        ROW: pa.array(np.arange(counts.sum())),
        "user_id": pa.array(ids, pa.string()).take(rows),
        "item_id": pa.array([item for events in lists for item, _ in events], pa.string()),
        "timestamp": pa.array(np.arange(counts.sum()) - np.repeat(starts, counts)),
    }
    behaviors = [behavior for events in lists for _, behavior in events]
    if any(behaviors):
        columns["behavior"] = pa.array([behavior or None for behavior in behaviors], pa.string())
    columns |= {name: further[name].take(rows) for name in further.column_names}
    return daft.from_arrow(pa.table(columns))
