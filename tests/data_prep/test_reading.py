"""What real files hold: times to the microsecond, odd ids, unquoted text, long cells; and what is said of the rest."""

import csv
import datetime as dt
import gzip
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import FilterOptions, prepare_table
from data_prep.delimited import Delimited, read_delimited, unquoted
from data_prep.times import read_times
from hf_gr.errors import HfGrError


def prepared(folder, log, items=None, name="log.csv", **options):
    """Interactions as tuples, from files of this text or of this table."""
    for file, content in ((name, log), ("items.csv", items)):
        if isinstance(content, str):
            (folder / file).write_bytes(content.encode())
        elif content is not None:
            pq.write_table(content, folder / file)
    prepare_table(folder / "out", folder / name, None if items is None else folder / "items.csv", **options)
    return [tuple(row.values()) for row in pq.read_table(folder / "out/interactions.parquet").to_pylist()]


def refusal(folder, log, items=None, name="log.csv", **options):
    with pytest.raises(HfGrError) as caught:
        prepared(folder, log, items, name, **options)
    assert "\n" not in str(caught.value) and not (folder / "out").exists()
    return str(caught.value)


def times(values, **options):
    column = values if isinstance(values, pa.Array) else pa.array(values)
    return read_times(pa.chunked_array([column]), "log.csv", **options)


HEAD = "user_id,item_id,timestamp\n"
CLICKS = {"third": (900,), "first": (100,), "second": (500,), "again": (1100, 1700)}
MILLISECONDS = "".join(f"u,{item},{1_700_000_000_000 + at}\n" for item, ats in CLICKS.items() for at in ats)


def test_events_of_one_second_keep_their_order_and_are_no_duplicates(tmp_path):
    rows = prepared(tmp_path, HEAD + MILLISECONDS)
    assert [(item, time % 10**7) for _, item, time in rows] == [
        ("first", 100_000), ("second", 500_000), ("third", 900_000), ("again", 1_100_000), ("again", 1_700_000)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "int64", pa.timestamp("ns"), pa.timestamp("ns", "Europe/Berlin")])
def test_what_differs_below_a_microsecond_is_ordered_and_kept(tmp_path, kind):
    raw = [1_700_000_000_000_000_700 + shift for shift in (90, 0, 40, 0, 900)]
    column = (
        pa.array([str(value) for value in raw])
        if kind == "text"
        else pa.array(raw).cast(kind if kind != "int64" else pa.int64())
    )
    table = pa.table({"user_id": ["u"] * 5, "item_id": list("caabd"), "timestamp": column})
    rows = prepared(tmp_path, table, name="log.parquet")
    assert [row[1] for row in rows] == ["a", "b", "a", "c", "d"]
    assert [row[2] - 1_700_000_000_000_000 for row in rows] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        (["1.5", "2.0000019"], "seconds", [1_500_000, 2_000_001]),
        ([1700000000.123456], "seconds", [1_700_000_000_123_456]),
        (["1.7e9"], "seconds", [1_700_000_000_000_000]),
        ([1.7e18], "nanoseconds", [1_700_000_000_000_000]),
        (pa.array([dt.date(2020, 1, 2)]), "dates", [1_577_923_200_000_000]),
        (["2020-02-29 24:00", "2019-02-29", "2020-13-01", "2020-1-1", "soon"], "", [None] * 5),
        (["2020-01-02T03:04", "1577934240"], "seconds and dates", [1_577_934_240_000_000] * 2),
        (pa.array([2**64 - 1, 1], pa.uint64()), "", [None, 1_000_000]),
    ],
)
def test_times_are_read_to_the_microsecond(values, unit, expected):
    found = times(values)
    assert [
        int(time) if valid else None for time, valid in zip(found.microseconds, found.valid, strict=True)
    ] == expected
    assert not unit or found.unit == unit


def test_one_far_time_does_not_change_the_unit_of_all(tmp_path):
    log = HEAD + "u,a,1700000000\nu,b,1700000500\nu,c,1700000900\nv,a,9999999999999\n"
    message = refusal(tmp_path, log)
    assert "'9999999999999', which is not in the years 1970 to 2100 (read as seconds), for user 'v'" in message
    assert "in row 4 (1 such row(s))" in message
    many = np.r_[np.full(500, 1_700_000_000), [9_999_999_999_999, 0]]
    assert times(many).unit == "seconds"
    with pytest.raises(HfGrError, match=r"times of seconds and of milliseconds stand in one column.*--time-unit"):
        times(np.r_[many, many * 1000])
    assert prepared(tmp_path, HEAD + "u,a,4200000000\n", any_year=True) == [("u", "a", 4_200_000_000_000_000)]
    (tmp_path / "out" / "interactions.parquet").unlink()


@pytest.mark.parametrize("value", ["-1", "4200000000", "1969-12-31", "2101-01-01T00:00:00Z"])
def test_dates_before_1970_and_after_2100_are_refused_unless_told(tmp_path, value):
    assert "not in the years 1970 to 2100" in refusal(tmp_path, HEAD + f"u,a,{value}\n")
    assert len(prepared(tmp_path, HEAD + f"u,a,{value}\n", any_year=True)) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["20200705", "20200706", "20210101"], "look like dates written as numbers .*write 2020-07-05"),
        ([45352.4167, 45353.5], "look like Excel's day numbers"),
    ],
)
def test_numbers_that_are_dates_are_refused(values, message):
    with pytest.raises(HfGrError, match=message):
        times(values)
    assert times(values, unit="s").unit == "seconds"


def test_unit_and_range_are_said(tmp_path, capsys):
    prepared(tmp_path, HEAD + "u,a,1700000000000\nu,b,1710000000000\n")
    assert "[prepare] times: milliseconds, 2023-11-14 to 2024-03-09\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [pa.duration("s"), pa.time32("s"), pa.list_(pa.int64()), pa.bool_()])
@pytest.mark.parametrize("column", ["user_id", "timestamp", "rating"])
def test_columns_of_other_types_are_refused_in_one_line(tmp_path, kind, column):
    value = (
        pa.array([[1]], kind)
        if pa.types.is_list(kind)
        else pa.array([True])
        if kind == pa.bool_()
        else pa.array([1], pa.int32() if kind == pa.time32("s") else pa.int64()).cast(kind)
    )
    table = pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": [1], "rating": [1.0]})
    table = table.set_column(table.column_names.index(column), column, value)
    named = str(kind).split("[")[0].split("<")[0]
    assert f"column '{column}' holds {named}" in refusal(tmp_path, table, name="log.parquet")


def test_position_orders_the_events_of_one_time(tmp_path, capsys):
    log = "user_id,item_id,timestamp,place\nu,third,2024-05-01,3\nu,second,2024-05-01,2\nu,first,2024-05-01,1\n"
    log += "u,zero,2024-04-30,9\n"
    assert [row[1] for row in prepared(tmp_path, log, columns={"position": "place"})] == [
        "zero",
        "first",
        "second",
        "third",
    ]
    assert [row[1] for row in prepared(tmp_path, log.replace("place", "position"))] == [
        "zero",
        "third",
        "second",
        "first",
    ]
    assert "column 'position' left out" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "first"), [("float64", 2**53), ("float32", 2**24), ("float16", 2**11)])
@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_float_ids_that_may_have_fallen_together_are_refused(tmp_path, dtype, first, column):
    table = pd.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [1]})
    for value, right in ((first - 1, True), (first, False), (-first, False)):
        log = pa.Table.from_pandas(table.assign(**{column: np.array([value], dtype)}), preserve_index=False)
        if right:
            assert str(first - 1) in prepared(tmp_path, log, name="log.parquet")[0]
            continue
        for file in (tmp_path / "out").glob("*"):
            file.unlink()
        (tmp_path / "out").rmdir() if (tmp_path / "out").exists() else None
        assert "may stand for several ids" in refusal(tmp_path, log, name="log.parquet")


def test_json_numbers_keep_their_digits(tmp_path):
    row = '{{"user_id": {}, "item_id": 18446744073709551617, "timestamp": 1}}\n'
    assert prepared(tmp_path, row.format("12.0"), name="log.jsonl")[0][:2] == ("12", "18446744073709551617")
    assert prepared(tmp_path, row.format('"012"'), name="log.jsonl")[0][0] == "012"
    for value, message in (
        ("9007199254741009.0", "may stand for several ids"),
        ("1.5", "'1.5', which is not a whole-number id"),
    ):
        with pytest.raises(HfGrError, match=message):
            prepared(tmp_path, row.format(value), name="log.jsonl")


def test_nan_and_infinity_of_json_are_nothing_and_no_number(tmp_path):
    row = '{{"user_id": "u", "item_id": "i", "timestamp": 1, "rating": {}}}\n'
    assert prepared(tmp_path, row.format("NaN"), name="log.jsonl")[0][3] is None
    with pytest.raises(HfGrError, match="'inf', which is not a number"):
        prepared(tmp_path, row.format("Infinity"), name="log.jsonl")


def test_views_of_text_are_text(tmp_path):
    columns = {
        name: pa.array([value]).cast(pa.string_view())
        for name, value in zip(("user_id", "item_id", "timestamp"), "ui7", strict=True)
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    prepare_table(tmp_path / "out", tmp_path / "log.parquet")


def test_ids_in_two_spellings_are_told(tmp_path, capsys):
    assert "column 'item_id' has ids '12' and '12.0' (1 pair(s))" in refusal(tmp_path, HEAD + "u,12,1\nu,12.0,2\n")
    prepared(tmp_path, HEAD + "u,12.0,1\nu,13.0,2\n")
    assert "2 ids end in '.0'" in capsys.readouterr().out
    for log, items, pair in (
        ("012", "12", "'012' is '12'"),
        ("12.0", "12", "'12.0' is '12'"),
        ("12", "0012.0", "'12' is '0012.0'"),
    ):
        with pytest.raises(
            HfGrError, match=rf"differ from those of items only by zeros in front.*{pair} among the items"
        ):
            prepared(tmp_path, HEAD + f"u,{log},1\n", f"item_id\n{items}\n")


@pytest.mark.parametrize("word", ["", "NA", "N/A", "NULL", "null", "nan", "NaN", "None", "\\N", "<NA>", "  "])
def test_words_for_nothing_are_no_ids(tmp_path, word, capsys):
    log = HEAD + f"{word},a,1\nu,{word},2\nu,a,{word}\nu,b,4\n"
    assert "column 'user_id' is empty" in refusal(tmp_path, log)
    assert "(1 such row(s)); fix or drop the row(s), or let --drop-empty" in refusal(tmp_path, log)
    assert prepared(tmp_path, log, drop_empty=True) == [("u", "b", 4_000_000)]
    assert (
        "drop empty: 4 -> 1 rows (1 without user_id, 1 without item_id, 1 without timestamp)"
        in capsys.readouterr().out
    )
    with pytest.raises(HfGrError, match="item_id of item 1 is"):
        prepared(tmp_path, HEAD + "u,a,1\n", f'item_id,title\n"{word}",x\na,y\n')


def test_blanks_around_ids_are_dropped_and_counted(tmp_path, capsys):
    log = HEAD + "u ,a,1\nu, a,2\n\u00a0u,a ,3\n"
    assert [row[:2] for row in prepared(tmp_path, log, "item_id,title\na  ,x\n")] == [("u", "a")] * 3
    out = capsys.readouterr().out
    assert "user_id: blanks around 2 ids dropped" in out and "item_id: blanks around 2 ids dropped" in out
    assert "items: blanks around 1 ids dropped" in out


def test_a_rating_may_be_missing_but_not_wrong(tmp_path):
    log = "user_id,item_id,timestamp,rating\nu,a,1,nan\nu,b,2,\nu,c,3,NA\nu,d,4,+4.5\n"
    assert [row[3] for row in prepared(tmp_path, log)] == [None, None, None, 4.5]
    table = pa.table({"user_id": ["u"] * 2, "item_id": ["a", "b"], "timestamp": [1, 2], "rating": [float("nan"), 3.0]})
    assert [row[3] for row in prepared(tmp_path, table, name="log.parquet")] == [None, 3.0]
    for wrong in ("inf", "1e300", "True", "4,5"):
        with pytest.raises(HfGrError, match=r"column 'rating' holds .* which is not a number"):
            prepared(tmp_path, f'user_id,item_id,timestamp,rating\nu,a,1,"{wrong}"\n')


def test_exact_duplicates_agree_in_everything(tmp_path):
    log = "user_id,item_id,timestamp,rating,review\n"
    log += "".join(f"u,a,1,{more}\n" for more in ("4,slow", "4,fine", "3,fine", "4,fine", ",", ","))
    assert [row[3:] for row in prepared(tmp_path, log)] == [(4, "slow"), (4, "fine"), (3, "fine"), (None, None)]


def test_unquoted_tsv_keeps_every_row_and_quotation_mark(tmp_path):
    lines = [
        'u1\t"Opening night\t1',
        "u1\tSecond\t2",
        'u2\tThird"\t3',
        'u2\t12" remix\t4',
        'u3\t"Odd" Bird\t5',
        'u3\t"Heroes"\t6',
    ]
    rows = prepared(tmp_path, "user_id\titem_id\ttimestamp\n" + "\n".join(lines) + "\n", name="log.tsv")
    assert [row[1] for row in rows] == [line.split("\t")[1] for line in lines]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("items", [["a\tb", "c"], ['5" nail', "c"], ["two\nlines", '"Heroes"'], ["plain", "c"]])
def test_quoted_tsv_is_read_as_such(tmp_path, quoting, items):
    table = pd.DataFrame({"user_id": "u", "item_id": items, "timestamp": [1, 2]})
    table.to_csv(tmp_path / "log.tsv", sep="\t", index=False, quoting=quoting)
    prepare_table(tmp_path / "out", tmp_path / "log.tsv")
    assert pq.read_table(tmp_path / "out/interactions.parquet")["item_id"].to_pylist() == items


def test_rows_of_another_width_and_open_quotes_are_refused(tmp_path):
    assert "row 3 has 4 cell(s) where there are 3 columns" in refusal(tmp_path, HEAD + "u,a,1\nu,b,2,3\n")
    assert "quotation mark that is not closed" in refusal(tmp_path, HEAD + 'u,a,"1\nu,b,2\n')
    assert "quotation mark that is not closed" in refusal(tmp_path, HEAD + 'u,"a,1\nu,b,2\n')
    assert r"writes quotation marks inside a cell as \"" in refusal(tmp_path, HEAD + 'u,"a \\"b\\" c",1\n')
    assert prepared(tmp_path, HEAD + 'u,"C:\\dir\\",1\nu,"x\\""y",2\n')[0][1] == "C:\\dir\\"
    tsv = '"user_id"\t"item_id"\t"timestamp"\n"u\\"\t"a"\t"1"\n'
    assert [row[0] for row in prepared(tmp_path, tsv, name="log.tsv")] == ["u\\"]


def test_a_first_line_of_data_is_no_header(tmp_path):
    rows = "1001,2001,9,pv,1511848894\n1001,2002,9,pv,1511848908\n"
    assert "seems to have no line of names: its first line is data (1001, 2001, 9, pv, 1511848894)" in refusal(
        tmp_path, rows
    )
    columns = {"user_id": "1001", "item_id": "2001", "timestamp": "1511848894"}
    assert "seems to have no line of names" in refusal(tmp_path, rows, columns=columns)
    assert "seems to have no line of names" in refusal(tmp_path, "ann,cup,2024-01-01\n")
    pandas = {"user_id": "0", "item_id": "1", "timestamp": "2"}  # the names that pandas gives
    assert len(prepared(tmp_path, "0,1,2\nu,a,1\n", columns=pandas)) == 1


def test_long_names_are_cut_and_repeated_ones_matter_only_where_wanted(tmp_path):
    message = refusal(tmp_path, "x" * 900 + ",item_id,timestamp\n")
    assert len(message) < 300 and "x" * 39 + "…" in message
    assert len(prepared(tmp_path, "user_id,item_id,timestamp,a,a\nu,i,1,2,3\n")) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", "user_id;item_id;timestamp\nu;a;1\n", "parted by semicolons, not by commas; write it with commas"),
        ("log.csv", "user_id\titem_id\ttimestamp\nu\ta\t1\n", "parted by tabs, not by commas; let its name end"),
        ("log.tsv", "user_id,item_id,timestamp\nu,a,1\n", "parted by commas, not by tabs; let its name end in .csv"),
        ("log.csv", "sep=,\nuser_id,item_id,timestamp\n", "begins with Excel's line 'sep='; delete that line"),
        ("log.zip", "PK", "is an archive"),
        ("log.tar.gz", "x", "is an archive"),
        ("log.dat", "u::i::1\n", "the name does not tell the format"),
        ("log.json", '[\n{"user_id": 1}\n]\n', "goes on over several lines"),
        ("log.json", '{"user_id":\n1}\n', "goes on over several lines"),
        ("log.json", '[{"user_id": 1}]\n', "line 1 is a JSON array"),
        ("log.json", "{'user_id': 1}\n", "line 1 is a Python literal"),
        ("log.json", '{"user_id": {"id": 1}, "item_id": "i", "timestamp": 1}\n', "'user_id' of object 1 is an object"),
        ("log.json", '{"user_id": 1, "item_id": 2, "timestamp": 3, "behavior": ["a"]}\n', "'behavior' of object 1"),
        ("log.json", '{"user_id": "\\ud800", "item_id": 2, "timestamp": 3}\n', "'user_id' holds text that is"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_truly(tmp_path, name, content, message):
    assert message in refusal(tmp_path, content, name=name)


def test_blanks_in_the_header_and_other_line_ends(tmp_path):
    assert prepared(tmp_path, "\ufeffuser_id, item_id ,timestamp\r\nu, a,1\r\n\r\nu,b,2") == [
        ("u", "a", 1000000),
        ("u", "b", 2000000),
    ]
    assert len(prepared(tmp_path, "user_id,item_id,timestamp\ru,a,1\ru,b,2\r")) == 2


def test_a_folder_is_refused_as_such(tmp_path):
    with pytest.raises(HfGrError, match="is a folder; name the file in it"):
        prepare_table(tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"columns": {"title": "name"}},
        {"item_columns": {"item_id": "x"}},
        {"category_separator": ","},
        {"flags": ["in_stock"]},
        {"options": FilterOptions(drop_unknown_items=True)},
        {"options": FilterOptions(keep_cold_items=True)},
    ],
)
def test_what_speaks_of_items_is_refused_without_a_table_of_them(tmp_path, options):
    assert "table of items" in refusal(tmp_path, HEAD + "u,a,1\n", **options)


@pytest.mark.parametrize("options", [{"time_unit": "s"}, {"any_year": True}])
def test_options_of_time_are_refused_where_they_say_nothing(tmp_path, options):
    assert "--time-unit" in refusal(tmp_path, "user_id,item_id,position\nu,a,1\n", **options)
    if "time_unit" in options:
        assert "leave it out" in refusal(tmp_path, HEAD + "u,a,2024-01-01\n", **options)


@pytest.mark.parametrize(
    ("categories", "expected"),
    [([1, 2], ["1"]), ([1.5, None], ["1.5"]), ([float("nan"), 2.0], None), ([["x", None], []], ["x"])],
)
def test_categories_of_other_types(tmp_path, categories, expected):
    pq.write_table(pa.table({"item_id": ["a", "b"], "categories": categories}), tmp_path / "items.parquet")
    (tmp_path / "log.csv").write_text(HEAD + "u,a,1\nu,b,2\n")
    prepare_table(tmp_path / "out", tmp_path / "log.csv", tmp_path / "items.parquet")
    assert (pq.read_table(tmp_path / "out/items.parquet")["categories"][0].as_py() or None) == expected


def test_lists_in_a_text_of_categories_are_said(tmp_path, capsys):
    prepared(
        tmp_path, HEAD + "u,a,1\nu,b,2\n", "item_id,categories\na,\"['Action', 'Comedy']\"\nb,\"Drama, Romance\"\n"
    )
    out = capsys.readouterr().out
    assert "warning: categories of 1 item(s)" in out and "lists written as text" in out


def test_objects_in_items_are_refused(tmp_path):
    (tmp_path / "log.csv").write_text(HEAD + "u,a,1\n")
    (tmp_path / "items.jsonl").write_text(json.dumps({"item_id": "a", "title": {"en": "x"}}) + "\n")
    with pytest.raises(HfGrError, match="'title' of item 'a' holds an object"):
        prepare_table(tmp_path / "out", tmp_path / "log.csv", tmp_path / "items.jsonl")


_LONG = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from data_prep.delimited import Delimited, read_delimited
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = read_delimited(Path(sys.argv[1]), 3, (0, 1, 2), Delimited(","))
assert table.num_rows == 3 and len(table["2"][1].as_py()) == 5_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_cell_of_five_megabytes_takes_megabytes(tmp_path, suffix):
    text = ('a,b,c\n1,2,3\n4,5,"' + "x\n" * 2_500_000 + '"\n6,7,8\n').encode()
    file = tmp_path / f"log.{suffix}"
    file.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    result = subprocess.run([sys.executable, "-c", _LONG, file], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 200  # MiB; Daft's reader takes 22 GiB


def test_a_row_longer_than_a_block_is_read_in_larger_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.delimited._BLOCK", 1 << 16)
    file = tmp_path / "log.csv"
    file.write_text("a,b\n" + "1,2\n" * 40_000 + '3,"' + "y" * 300_000 + '"\n4,5\n')
    table = read_delimited(file, 2, (1, 0, 1), Delimited(","))
    assert table.num_rows == 40_002 and table["0"] == table["2"] and len(table["0"][40_000].as_py()) == 300_000
    assert unquoted(file, 2, (0,), Delimited(",")).num_rows == 40_002
