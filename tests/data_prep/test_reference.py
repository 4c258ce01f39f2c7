"""Random tables through `prepare_table` equal an independent reference in pandas: ids, order, counts, texts.

An example is one file of eight random frames with users and items of their own, so 250 examples are 2,000 frames.
"""

import csv
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_gr.artifacts
from data_prep import FilterOptions, prepare_table
from hf_gr.errors import HfGrError


FRAMES = 8
NOTHING = (None, "", "NA", "NULL", " nan ", "None", "\\N", "N/A", "  ")
NAMES = (
    "0012",
    "12",
    "1e3",
    "True",
    "-5",
    "a_b",
    "x,y",
    'a"b',
    '"Odd" one',
    '"open',
    "two\nlines",
    "tab\tin",
    "é🦄",
    "7 ",
)
TITLES = ("Red cup", '5" nail, "gel"', '"Heroes"', "two\r\nlines", "tab\there", " Zoë's | crème ", "", "null", "[x]")
REVIEWS = ("good", 'so "so"', "two\nlines", "", "tab\there")
START = 1_600_000_000
PARTS = {"s": (0,), "ms": (0, 1, 999), "us": (0, 1, 999_999), "ns": (0, 1, 999, 1_000, 999_999_999)}
PER = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
RAW = ("user_id", "item_id", "time", "place", "rating", "behavior", "review")


@dataclass(frozen=True)
class Form:
    """How a table is written, and what is asked of `prepare_table`."""

    suffix: str
    ids: str
    time: str
    quoting: int
    position: bool
    items: bool
    empty: bool
    options: FilterOptions


def forms() -> st.SearchStrategy[Form]:
    options = st.builds(
        FilterOptions,
        min_rating=st.sampled_from([None, None, 3.0]),
        k_core=st.sampled_from([0, 0, 2]),
        min_user_events=st.sampled_from([0, 0, 2]),
        deduplicate=st.sampled_from(["exact", "exact", "first", "none"]),
        keep_cold_items=st.booleans(),
        drop_unknown_items=st.just(True),
    )
    return st.builds(
        Form,
        suffix=st.sampled_from(["csv", "csv", "csv.gz", "tsv", "tsv", "jsonl", "parquet"]),
        ids=st.sampled_from(["text", "text", "integers", "floats", "category"]),
        time=st.sampled_from([*PER, "iso", "zone", "minutes", "fraction", "arrow_us", "arrow_ns", "position"]),
        quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]),
        position=st.booleans(),
        items=st.booleans(),
        empty=st.booleans(),
        options=options,
    )


def fitting(form: Form) -> Form:
    """The form without what its file cannot say."""
    if form.suffix != "parquet" and form.time.startswith("arrow"):
        form = replace(form, time="us")
    if form.suffix != "parquet" and form.ids == "category":
        form = replace(form, ids="text")
    if form.suffix != "tsv" and form.quoting == csv.QUOTE_NONE:
        form = replace(form, quoting=csv.QUOTE_MINIMAL)
    if not form.items:
        form = replace(form, options=replace(form.options, keep_cold_items=False, drop_unknown_items=False))
    return replace(form, position=form.position or form.time == "position")


def frames(rng: np.random.Generator, form: Form) -> pd.DataFrame:
    """Rows of all frames, shuffled; `time` in nanoseconds."""
    rows = []
    for frame in range(FRAMES):
        users = [_name(rng, frame, form, user) for user in range(3)]
        items = [_name(rng, frame, form, 100 + item) for item in range(4)]
        for _ in range(rng.integers(1, 9)):
            nothing = form.empty and rng.random() < 0.15
            user = rng.choice(np.array(NOTHING, object)) if nothing else users[rng.integers(3)]
            unit = (
                form.time
                if form.time in PARTS
                else {"minutes": "s", "arrow_ns": "ns", "fraction": "s"}.get(form.time, "us")
            )
            part = rng.choice(PARTS[unit]) * 10**9 // PER[unit]
            minute = 60 if form.time == "minutes" else 1
            moment = (START // 60 * 60 + int(rng.integers(3)) * minute) * 10**9 + int(part)
            moment += int(rng.integers(4)) * 250_000_000 if form.time == "fraction" else 0
            rating = rng.choice(np.array([None, 1.0, 3.0, 4.5], object))
            behavior = rng.choice(np.array([None, "view", "buy"], object))
            review = rng.choice(np.array([None, *_writable(REVIEWS, form)], object))
            rows.append((user, items[rng.integers(4)], moment, int(rng.integers(3)), rating, behavior, review))
            if rng.random() < 0.3:
                rows.append(rows[-1])
    return pd.DataFrame(rows, columns=RAW, dtype=object).iloc[rng.permutation(len(rows))].reset_index(drop=True)


def _name(rng: np.random.Generator, frame: int, form: Form, number: int) -> str | int | float:
    if form.ids in ("integers", "floats"):
        return (int if form.ids == "integers" else float)(frame * 1000 + number)
    name = _writable(NAMES, form)[rng.integers(len(_writable(NAMES, form)))]
    if frame:
        name = f"{frame}:{name}"
    blanks = ("", "", "", " ")
    return f"{blanks[rng.integers(4)]}{number}{name}{blanks[rng.integers(4)]}"


def _writable(texts: tuple[str, ...], form: Form) -> list[str]:
    """Texts that a file without quotation marks can hold."""
    bare = form.suffix == "tsv" and form.quoting == csv.QUOTE_NONE
    return [text for text in texts if not (bare and set(text) & set("\t\n\r"))]


def written_time(moment: int, form: Form) -> object:
    if form.time in PER:
        return moment * PER[form.time] // 10**9
    stamp = pd.Timestamp(moment, unit="ns")
    if form.time in ("arrow_us", "arrow_ns"):
        return stamp
    if form.time == "zone":
        return (stamp + pd.Timedelta("5h30min")).isoformat() + "+05:30"
    if form.time == "minutes":
        return stamp.strftime("%Y-%m-%d %H:%M")
    if form.time == "fraction":
        return moment / 10**9
    return stamp.isoformat() + "Z"


def write(path: Path, table: pd.DataFrame, form: Form) -> None:
    if form.suffix == "parquet":
        kinds: dict[str, object] = {"integers": "Int64", "floats": "float64", "category": "category", "text": object}
        table = table.copy()
        for name in table.columns.intersection(["user_id", "item_id"]):
            column = table[name]
            if form.ids in ("integers", "floats"):
                column = column.where([isinstance(value, int | float) for value in column], None)
            table[name] = column.astype(kinds[form.ids])
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)
    elif form.suffix == "jsonl":
        lines = (json.dumps(row, ensure_ascii=bool(form.quoting)) + "\n" for row in table.to_dict("records"))
        path.write_text("".join(lines))
    else:
        escape = {"quotechar": None, "escapechar": None} if form.quoting == csv.QUOTE_NONE else {}
        table.to_csv(path, index=False, sep="\t" if form.suffix == "tsv" else ",", quoting=form.quoting, **escape)


def read_id(value: object, form: Form) -> str | None:
    """What an id has to be read as; `None` for nothing."""
    if isinstance(value, float) and form.suffix in ("parquet", "jsonl"):
        return str(int(value))
    return (
        None if value is None or str(value).strip() in {str(word).strip() for word in NOTHING} else str(value).strip()
    )


def expected(raw: pd.DataFrame, goods: pd.DataFrame | None, form: Form) -> tuple[list[tuple], list[tuple] | None]:
    table = raw.assign(
        user_id=[read_id(value, form) for value in raw.user_id],
        item_id=[read_id(value, form) for value in raw.item_id],
        review=[review or None for review in raw.review],
    )
    table = table[table.user_id.notna()]
    keys = [*["time"] * (form.time != "position"), *["place"] * form.position]
    table = table.sort_values(["user_id", *keys], kind="stable")
    if form.time == "position":
        table = table.assign(time=0)
    elif not form.position:
        table = table.assign(place=0)
    options = form.options
    if goods is not None:
        table = table[table.item_id.isin([read_id(value, form) for value in goods.item_id])]
    if options.min_rating is not None:
        table = table[[rating is not None and rating >= options.min_rating for rating in table.rating]]
    if options.deduplicate != "none":
        subset = list(RAW) if options.deduplicate == "exact" else ["user_id", "item_id"]
        table = table[~table.assign(rating=table.rating.astype(float)).duplicated(subset)]
    users = max(options.k_core, options.min_user_events)
    while len(table):
        enough = (table.groupby("user_id").user_id.transform("size") >= users) & (
            table.groupby("item_id").item_id.transform("size") >= options.k_core
        )
        if enough.all():
            break
        table = table[enough]
    times = table.place if form.time == "position" else [moment // 1000 for moment in table.time]
    parts = (table.user_id, table.item_id, times, table.rating, table.behavior, table.review)
    events = [tuple(None if pd.isna(value) else value for value in row) for row in zip(*parts, strict=True)]
    if goods is None:
        return events, [(item, item, []) for item in sorted(set(table.item_id))]
    kept = [
        (
            read_id(row.item_id, form),
            row.title.strip() or read_id(row.item_id, form),
            [part for part in row.categories.split("|") if part],
        )
        for row in goods.itertuples()
    ]
    return events, [row for row in kept if options.keep_cold_items or row[0] in set(table.item_id)]


def items_of(rng: np.random.Generator, raw: pd.DataFrame, form: Form) -> pd.DataFrame:
    """Items of the log but a few, one that nobody took, with texts; in a random order."""
    known: dict[str | None, object] = {read_id(value, form): value for value in raw.item_id}
    names = [value for value in known.values() if rng.random() < 0.9]
    names.append({"integers": 999_999, "floats": 999_999.0}.get(form.ids, "nobody's"))
    titles = rng.choice(np.array(_writable(TITLES, form), object), len(names))
    categories = rng.choice(np.array(["", "a", "a|b c"], object), len(names))
    table = pd.DataFrame({"item_id": pd.Series(names, dtype=object), "title": titles, "categories": categories})
    return table.iloc[rng.permutation(len(table))].reset_index(drop=True)


@settings(max_examples=250, deadline=None)
@given(forms(), st.integers(0, 2**32 - 1))
def test_random_tables_equal_the_reference(form: Form, seed: int) -> None:
    form = fitting(form)
    rng = np.random.default_rng(seed)
    raw = frames(rng, form)
    goods = items_of(rng, raw, form) if form.items else None
    log = raw.rename(columns={"place": "order"}).assign(timestamp=[written_time(moment, form) for moment in raw.time])
    log = log.drop(columns=["time", *["timestamp"] * (form.time == "position")])
    columns = {"position": "order"} if form.position else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / f"log.{form.suffix}", log, form)
        if goods is not None:
            write(folder / f"goods.{form.suffix}", goods, form)
        events, items = expected(raw, goods, form)
        try:
            prepare_table(
                folder / "out",
                folder / f"log.{form.suffix}",
                None if goods is None else folder / f"goods.{form.suffix}",
                columns=columns,
                drop_empty=True,
                options=form.options,
            )
        except HfGrError as error:
            assert not events, error
            return
        found = pq.read_table(folder / "out/interactions.parquet")
        table = pq.read_table(folder / "out/items.parquet")
    names = ("user_id", "item_id", "timestamp", "rating", "behavior", "review")
    rows = list(zip(*(found[name].to_pylist() for name in names), strict=True))
    assert rows == events, next((pair for pair in zip(rows, events, strict=False) if pair[0] != pair[1]), len(rows))
    texts = table["categories"].to_pylist() if "categories" in table.column_names else [[]] * len(table)
    rows = list(zip(table["item_id"].to_pylist(), table["title"].to_pylist(), texts, strict=True))
    assert rows == items, next((pair for pair in zip(rows, items, strict=False) if pair[0] != pair[1]), len(rows))


def setup_module() -> None:  # of each of 250 runs a third would be spent on looking up versions and the commit
    versions = hf_gr.artifacts.versions()
    setup_module.before = hf_gr.artifacts.versions  # type: ignore[attr-defined]
    hf_gr.artifacts.versions = lambda: versions


def teardown_module() -> None:
    hf_gr.artifacts.versions = setup_module.before  # type: ignore[attr-defined]
