"""Tables of every format: round trips with awkward ids, times, and one line for every bad input."""

import csv
import datetime as dt
import gzip
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import FilterOptions, prepare_table
from data_prep.values import BLANKS, NULL_WORDS
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError


SHARED = Path(__file__).parents[3] / "shared" / "data"
# Everything UTF-8 can say in one cell: commas, quotes, line breaks, leading zeros, emoji.
text = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=8)
plain = text.map(lambda value: value.strip(BLANKS)).filter(lambda value: value not in NULL_WORDS and ".0" not in value)
ids = st.one_of(plain, st.sampled_from(["0012", "12", "1.0", "01", 'a"b', "x,y", "é\n🦄", "True", "1e3"]))
AWKWARD = [("0012", '5" nail, "gel"'), ("12", "Zoë's | crème"), ("1e3", "two\nlines"), ("N\\A", "null")]


def write_text(path: Path, content: str) -> Path:
    raw = content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_table(path: Path, rows: list[dict]) -> Path:
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if kind in ("csv", "tsv"):
        with tempfile.TemporaryFile("w+", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
            handle.seek(0)
            return write_text(path, handle.read())
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def load(out: Path) -> tuple[InteractionDataset, list[tuple]]:
    data = InteractionDataset.load(out)
    users = [
        user for user, length in zip(data.events.user_ids, data.events.lengths, strict=True) for _ in range(length)
    ]
    names = [data.item_ids[row] for row in data.events.items]
    seconds = (
        (data.events.timestamps / 10**6).tolist() if data.time == "timestamp" else data.events.timestamps.tolist()
    )
    return data, list(zip(users, names, seconds, strict=True))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(ids, ids, st.integers(0, 2**31)), min_size=1, max_size=12), st.data())
def test_csv_round_trip_keeps_ids_titles_and_order(events, data):
    known = sorted({item for _, item, _ in events})
    titles = {item: data.draw(text) for item in known}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        log = write_table(
            path / "log.csv", [dict(zip(("user_id", "item_id", "timestamp"), e, strict=True)) for e in events]
        )
        goods = write_table(path / "goods.csv", [{"item_id": item, "title": titles[item]} for item in known])
        prepare_table(path / "out", log, goods, options=FilterOptions(deduplicate="none"), time_unit="s")
        dataset, found = load(path / "out")
    assert found == sorted(events, key=lambda e: (e[0].encode(), e[2]))
    assert dict(zip(dataset.item_ids, dataset.titles, strict=True)) == {i: titles[i].strip() or i for i in known}


@pytest.mark.parametrize(
    "suffix", ["csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz", "json", "ndjson", "parquet"]
)
def test_every_format_reads_the_same(tmp_path, suffix):
    log = [{"uid": "007", "item_id": item, "when": 10 - n, "score": 4.5} for n, (item, _) in enumerate(AWKWARD)]
    goods = [{"item_id": item, "name": title, "categories": "a|b"} for item, title in AWKWARD]
    prepare_table(
        tmp_path / "out",
        write_table(tmp_path / f"log.{suffix}", log),
        write_table(tmp_path / f"goods.{suffix}", goods),
        columns={"user_id": "uid", "timestamp": "when", "rating": "score", "title": "name"},
    )
    data, found = load(tmp_path / "out")
    assert found == [("007", item, 10 - n) for n, (item, _) in reversed(list(enumerate(AWKWARD)))]
    assert list(zip(data.item_ids, data.titles, strict=True)) == AWKWARD
    assert data.categories == [["a", "b"]] * 4
    assert data.events.ratings.tolist() == [4.5] * 4
    assert data.time == "timestamp"


def test_integer_ids_with_gaps_do_not_become_floats(tmp_path):
    table = pa.table({"user_id": pa.array([1.0, 2.0]), "item_id": pa.array([7, 8]), "timestamp": pa.array([1, 2])})
    pq.write_table(table, tmp_path / "log.parquet")
    pq.write_table(pa.table({"item_id": pa.array([7.0, 8.0])}), tmp_path / "items.parquet")
    prepare_table(tmp_path / "out", tmp_path / "log.parquet", tmp_path / "items.parquet")
    assert load(tmp_path / "out")[1] == [("1", "7", 1), ("2", "8", 2)]


def test_position_items_from_ids_and_unlisted_columns(tmp_path):
    log = write_text(tmp_path / "log[1] é.csv", "\ufeffuser_id,item_id,position,summary\r\nu,02,1,x\r\nu,1,0,y\r\n")
    prepare_table(tmp_path / "out", log)
    data, found = load(tmp_path / "out")
    assert found == [("u", "1", 0), ("u", "02", 1)]
    assert (data.time, data.titles) == ("position", ["02", "1"])


MOMENT = 1577934245  # 2020-01-02 03:04:05 UTC


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("2020-01-02T03:04:05Z", "auto", MOMENT),
        ("2020-01-02 03:04:05.75", "auto", MOMENT + 0.75),
        ("2020-01-02T05:04:05+02:00", "auto", MOMENT),
        ("2020-01-02", "auto", MOMENT - 11045),
        ("2020-01-02 03:04", "auto", MOMENT - 5),
        ("2020-01-02T03:04Z", "auto", MOMENT - 5),
        ("2020-01-01T22:04:05.25-0500", "auto", MOMENT + 0.25),
        ('"2020-01-02 03:04:05,5 UTC"', "auto", MOMENT + 0.5),
        (f"{MOMENT}", "auto", MOMENT),
        (f"{MOMENT}.9", "auto", MOMENT + 0.9),
        (f"{MOMENT}123", "auto", MOMENT + 0.123),
        (f"{MOMENT}123456", "auto", MOMENT + 0.123456),
        (f"{MOMENT}123456789", "auto", MOMENT + 0.123456),
        ("5000", "ms", 5),
        ("5000", "auto", 5000),
    ],
)
def test_times(tmp_path, value, unit, expected):
    log = write_text(tmp_path / "log.csv", f"user_id,item_id,timestamp\nu,i,{value}\n")
    prepare_table(tmp_path / "out", log, time_unit=unit)
    assert load(tmp_path / "out")[1] == [("u", "i", expected)]


@pytest.mark.parametrize(
    "kind", [pa.timestamp("ms"), pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("s"), pa.date32()]
)
def test_parquet_dates(tmp_path, kind):
    day = dt.datetime(2020, 1, 2, tzinfo=dt.UTC)
    column = pa.array([int(day.timestamp())]).cast(pa.timestamp("s")).cast(kind)
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": column}), tmp_path / "log.parquet")
    prepare_table(tmp_path / "out", tmp_path / "log.parquet")
    assert load(tmp_path / "out")[1] == [("u", "i", int(day.timestamp()))]


GOOD = "user_id,item_id,timestamp\nu,i,1\n"
ITEMS = "item_id,title\ni,x\n"


@pytest.mark.parametrize(
    ("log", "items", "message"),
    [
        ("", ITEMS, r"log\.csv is empty"),
        ("user_id,item_id,timestamp\n", ITEMS, r"log\.csv holds no interactions"),
        (
            "user,item_id,timestamp\nu,i,1\n",
            ITEMS,
            r"log\.csv has no column 'user_id' \(it has: user, item_id.*--column user_id=",
        ),
        ("user_id,item_id\nu,i\n", ITEMS, r"log\.csv has neither a column 'timestamp' nor 'position'"),
        ("user_id,user_id,item_id,timestamp\n", ITEMS, r"log\.csv has more than one column 'user_id'"),
        (
            GOOD + "v,i,soon\n",
            ITEMS,
            r"log\.csv: column 'timestamp' holds 'soon'.*user 'v', item 'i' in row 2 \(1 such",
        ),
        (GOOD + "v,i,nan\n", ITEMS, r"column 'timestamp' is empty for user 'v'"),
        (GOOD + "v,i,\n", ITEMS, r"log\.csv: column 'timestamp' is empty for user 'v'"),
        (GOOD + ",i,3\n", ITEMS, r"log\.csv: column 'user_id' is empty .*item 'i'"),
        ("user_id,item_id,position\nu,i,1.5\n", ITEMS, r"column 'position' holds '1\.5', which is not a whole number"),
        (
            "user_id,item_id,timestamp,rating\nu,i,1,good\n",
            ITEMS,
            r"column 'rating' holds 'good', which is not a number",
        ),
        (GOOD + "v,i\n", ITEMS, r"log\.csv cannot be read: row 3 has 2 cell\(s\) where there are 3 columns"),
        (GOOD + "v,j,2\n", ITEMS, r"log\.csv: 1 interaction.*item 'j' of user 'v'.*--drop-unknown-items"),
        (GOOD, "", r"items\.csv is empty"),
        (GOOD, "item_id,title\n", r"items\.csv holds no items"),
        (GOOD, "id,title\ni,x\n", r"items\.csv has no column 'item_id'"),
        (GOOD, ITEMS + "i,y\n", r"items\.csv: item_id 'i' stands in rows 1 and 2"),
        (GOOD, ITEMS + ",y\n", r"items\.csv: item_id of item 2 is ''"),
    ],
)
def test_bad_tables_get_one_line(tmp_path, capfd, log, items, message):
    with pytest.raises(HfGrError, match=message) as caught:
        prepare_table(
            tmp_path / "out", write_text(tmp_path / "log.csv", log), write_text(tmp_path / "items.csv", items)
        )
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        (
            "log.csv",
            (GOOD + "u,i,2\n" * 20000 + "café,i,1\n").encode("latin-1"),
            r"log\.csv: column 1 holds text that is not UTF-8",
        ),
        ("log.csv.gz", b"user_id,item_id,timestamp\n", r"log\.csv\.gz cannot be read"),
        ("log.csv.gz", gzip.compress(GOOD.encode() * 50, mtime=0)[:-12], r"log\.csv\.gz cannot be read"),
        ("log.jsonl", b'{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id"', r"log\.jsonl line 2 is not JSON"),
        ("log.jsonl", b"[1]\n", r"log\.jsonl line 1 is a JSON array, not a JSON object"),
        ("log.parquet", b"PAR?" * 9, r"log\.parquet is not a Parquet file"),
        ("log.xlsx", b"x", r"log\.xlsx: the name does not tell the format"),
    ],
)
def test_damaged_files(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(HfGrError, match=message) as caught:
        prepare_table(tmp_path / "out", tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_and_foreign_map(tmp_path):
    with pytest.raises(HfGrError, match=r"nowhere\.csv is not a file"):
        prepare_table(tmp_path / "out", tmp_path / "nowhere.csv")
    log = write_text(tmp_path / "log.csv", GOOD)
    with pytest.raises(HfGrError, match="names 'uid'"):
        prepare_table(tmp_path / "out", log, columns={"uid": "user_id"})
    with pytest.raises(HfGrError, match=r"log\.csv has no column 'stars'"):
        prepare_table(tmp_path / "out", log, columns={"rating": "stars"})


def test_second_run_is_skipped_until_something_changes_and_a_failed_one_harms_nothing(tmp_path, capsys):
    log = write_text(tmp_path / "log.csv", GOOD)
    prepare_table(tmp_path / "out", log)
    assert "wrote" in capsys.readouterr().out
    prepare_table(tmp_path / "out", log)
    assert "up to date" in capsys.readouterr().out
    write_text(log, GOOD + "v,i,2\n")
    prepare_table(tmp_path / "out", log)
    assert "wrote" in capsys.readouterr().out
    assert len(load(tmp_path / "out")[1]) == 2
    with pytest.raises(HfGrError):
        prepare_table(tmp_path / "out", write_text(log, GOOD + "v\n"))
    assert len(load(tmp_path / "out")[1]) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
def test_beauty_has_the_published_counts(tmp_path):
    folder = SHARED / "amazon14_beauty"
    prepare_table(tmp_path / "out", folder / "interactions.csv.gz", folder / "items.jsonl.gz")
    data = InteractionDataset.load(tmp_path / "out")
    assert (len(data.events), data.num_items, len(data.events.items)) == (22363, 12101, 198502)
    assert data.time == "position"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_flags_of_items_become_boolean_columns(tmp_path, kind):
    events = [{"user_id": "u", "item_id": item, "timestamp": str(day)} for day, item in enumerate("abcd")]
    stock = [True, False, True, None] if kind == "parquet" else ["true", "0", "Yes", ""]
    rows = [{"item_id": item, "in_stock": flag} for item, flag in zip("abcd", stock, strict=True)]
    interactions, items = (
        write_table(tmp_path / f"{name}.{kind}", table) for name, table in (("e", events), ("i", rows))
    )
    prepare_table(tmp_path / "out", interactions, items, flags=["in_stock"])
    table = InteractionDataset.load(tmp_path / "out").items
    assert table["in_stock"].to_pylist() == [True, False, True, False]
    with pytest.raises(HfGrError, match="no column 'sale'"):
        prepare_table(tmp_path / "other", interactions, items, flags=["sale"])
    prepare_table(tmp_path / "mapped", interactions, items, flags=["sale"], columns={"sale": "in_stock"})
    assert InteractionDataset.load(tmp_path / "mapped").items["sale"].to_pylist() == [True, False, True, False]
    with pytest.raises(HfGrError, match="there is no table of items"):
        prepare_table(tmp_path / "other", interactions, flags=["in_stock"])
    rows[2]["in_stock"] = "maybe" if kind != "parquet" else None
    if kind != "parquet":
        write_table(items, rows)
        with pytest.raises(HfGrError, match="in_stock of item 'c' is 'maybe'; a flag is true or false"):
            prepare_table(tmp_path / "other", interactions, items, flags=["in_stock"])


def test_reviews_come_along(tmp_path):
    lines = ["who,what,when,said", *(f'u,{item},{time},"good, {item}"' for time, item in enumerate("abc")), "u,d,9,"]
    (tmp_path / "logs.csv").write_text("\n".join(lines) + "\n")
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when", "review": "said"}
    prepare_table(tmp_path / "out", tmp_path / "logs.csv", columns=columns)
    events = InteractionDataset.load(tmp_path / "out").events
    assert events.reviews[:3].tolist() == ["good, a", "good, b", "good, c"]
    assert not events.reviews[3]


KEPT = {
    "dwell": (["12", "", "-7"], pa.int64(), [12, None, -7]),
    "price": (["1.50", "3", "NA"], pa.float64(), [1.5, 3.0, None]),
    "mobile": (["true", "False", ""], pa.bool_(), [True, False, None]),
    "code": (["007", "7", ""], pa.large_string(), ["007", "7", None]),
    "long": (["12345678901234567890", "1", "2"], pa.large_string(), ["12345678901234567890", "1", "2"]),
    "device": (["phone", "NA", " x"], pa.large_string(), ["phone", "NA", " x"]),
}


def test_further_columns_are_kept_in_their_own_type(tmp_path):
    base = {"uid": ["a", "a", "b"], "item_id": ["x", "y", "x"], "timestamp": ["1", "2", "3"], "visit": ["1", "", "2"]}
    columns = base | {name: texts for name, (texts, _, _) in KEPT.items()}
    log = write_table(tmp_path / "log.csv", pa.table(columns).to_pylist())
    names = {"user_id": "uid", "session_id": "visit", "way": "device"}
    keep = ["way" if name == "device" else name for name in KEPT]
    prepare_table(tmp_path / "out", log, columns=names, keep=keep, time_unit="s")
    events = InteractionDataset.load(tmp_path / "out").events
    assert events.sessions.tolist() == ["1", None, "2"]
    assert events.columns.column_names == keep
    for column, (_, kind, values) in zip(events.columns.columns, KEPT.values(), strict=True):
        assert (column.type, column.to_pylist()) == (kind, values)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_further_columns_of_other_files(tmp_path, kind):
    rows = [{"user_id": "a", "item_id": "x", "timestamp": 1, "price": 2.0, "n": 1, "ok": True, "session_id": 5}]
    rows.append({"user_id": "a", "item_id": "y", "timestamp": 2, "price": 0.5, "n": None, "ok": None, "session_id": 6})
    log = write_table(tmp_path / f"log.{kind}", rows)
    prepare_table(tmp_path / "out", log, keep=["price", "n", "ok"], time_unit="s")
    events = InteractionDataset.load(tmp_path / "out").events
    assert events.sessions.tolist() == ["5", "6"]
    assert events.columns.schema.types == [pa.float64(), pa.int64(), pa.bool_()]
    assert events.columns.to_pylist() == [{"price": 2.0, "n": 1, "ok": True}, {"price": 0.5, "n": None, "ok": None}]


def test_events_that_differ_in_a_kept_column_or_session_are_two(tmp_path):
    rows = [
        {"user_id": "a", "item_id": "x", "timestamp": 1, "session_id": s, "place": p} for s, p in ("11", "12", "21")
    ]
    for keep, columns, count in ((["place"], {}, 3), ([], {}, 2), ([], {"session_id": "place"}, 2)):
        log = write_table(tmp_path / "log.csv", [*rows, rows[0]])
        prepare_table(tmp_path / "out", log, keep=keep, columns=columns, time_unit="s")
        assert len(InteractionDataset.load(tmp_path / "out").events.items) == count


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["rating"], r"--keep names 'rating', which is kept anyway; leave that --keep out"),
        (["dwell", "dwell"], r"--keep names 'dwell', which is kept anyway; leave"),
        (["title"], r"'title', which is a column of the items; give it another name: --keep NEW --column NEW=title"),
        (["_row"], r"'_row', which is a name of helpers; give it"),
        (["dwell"], r"log.parquet has no column 'dwell' \(it has: user_id, item_id, timestamp, tags\); map it"),
        (["tags"], r"log.parquet: column 'tags' holds list<.*>; only plain values are kept: write it as text"),
    ],
)
def test_what_cannot_be_kept_is_told(tmp_path, keep, message):
    log = write_table(tmp_path / "log.parquet", [{"user_id": "a", "item_id": "x", "timestamp": 1, "tags": ["a"]}])
    with pytest.raises(HfGrError, match=message):
        prepare_table(tmp_path / "out", log, keep=keep, time_unit="s")
