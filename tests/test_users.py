"""Files of users: whatever ids look like, they come out as they went in."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog

from hf_gr.catalog import SidCatalog
from hf_gr.cli import _ids, _lines
from hf_gr.errors import HfGrError
from hf_gr.users import cell_ids, read_users


CATALOG = tiny_catalog()
ODD = [
    *("2020-01-01", "2020-01-01T10:00:00", "0012", "12", "-1023", "1e5", "12.0", "NaN", "null", "true", "None"),
    *(
        "item 1",
        "item 1,item 2",
        "a|b",
        "it's",
        'a"b',
        "[x]",
        "['a', 'b']",
        '["a"]',
        " a ",
        "Ähre",
        "日本",
        "😀",
        "\\n",
    ),
    *("a\nb", "a\r\nb", "a\u2028b", "#", "=1+1", "{}", "nan"),
]
# No surrogates, which are no text, and no NUL, which CSV has no room for.
IDS = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


def catalog_of(ids: list[str]) -> SidCatalog:
    items = CATALOG.items.slice(0, len(ids)).set_column(0, "item_id", [ids])
    return replace(CATALOG, codes=CATALOG.codes[: len(ids)], items=items)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("users")


def written(folder: Path, user_id: str, history: list[str]) -> list[Path]:
    """The same user in every format, lists in CSV as JSON and as pandas writes them."""
    frame = pd.DataFrame({"user_id": [user_id], "history": [history]})
    files = [folder / name for name in ("users.jsonl", "users.parquet", "text.parquet", "pandas.csv", "json.csv")]
    files[0].write_text(json.dumps({"user_id": user_id, "history": history}, ensure_ascii=False) + "\n", "utf-8")
    pq.write_table(pa.table({"user_id": [user_id], "history": [history]}), files[1])
    pq.write_table(pa.table({"user_id": [user_id], "history": [json.dumps(history)]}), files[2])
    # a \r that the end of a row does not hold stays unquoted before Python 3.13: no reader can tell it from one
    frame.to_csv(files[3], index=False, lineterminator="\r\n" if "\r" in user_id else "\n")
    with files[4].open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["user_id", "history"], [user_id, json.dumps(history)]])
    return files


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(user_id=IDS, ids=st.lists(IDS, min_size=1, max_size=6, unique=True), repeat=st.booleans())
@example(user_id="2020-01-01", ids=ODD, repeat=True)
@example(user_id="0\r", ids=ODD, repeat=False)
@example(user_id="\r", ids=["a\rb"], repeat=False)
def test_ids_come_out_as_they_went_in(folder, user_id, ids, repeat):
    history = ids * 2 if repeat else ids
    for file in written(folder, user_id, history):
        assert list(read_users(file, catalog_of(ids), "none")) == [(user_id, {"history": history})], file.name
    assert _ids(json.dumps(history)) == history


@settings(max_examples=100, deadline=None)
@given(IDS)
def test_a_cell_that_is_an_id_is_that_id(item_id):
    assert cell_ids(item_id, {item_id}) == [item_id]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        IDS.filter(lambda x: "\n" not in x and x.strip() and not x.endswith("\r") and x[0] != "\ufeff"), min_size=1
    )
)
def test_a_line_is_an_id(folder, ids):
    for end in ("\n", "\r\n"):
        (folder / "ids.txt").write_bytes((end.join(ids) + end).encode())
        assert _lines(folder / "ids.txt") == ids


@pytest.mark.parametrize(
    ("cell", "ids"),
    [
        ("i1 i2", ["i1", "i2"]),
        ("i1,i2", ["i1", "i2"]),
        ("i1, i2,", ["i1", "i2"]),
        ("i1|i2", ["i1", "i2"]),
        ("item 1,item 2", ["item 1", "item 2"]),
        ("a,b|c d", ["a,b", "c d"]),
        ("['i1', 'i2']", ["i1", "i2"]),
        ('["i1", "i2"]', ["i1", "i2"]),
        ("[007, 1.50]", None),  # no JSON: a number does not begin with 0
        ("[7, 1.50]", ["7", "1.50"]),
        ("[]", []),
        ("", []),
        ("['i1' 'i2']", None),  # NumPy's print, of which Python makes one string
        ("['i1'\n 'i2']", None),
        ("['i1', nan]", None),
        ("['i1', 'i2'", None),
        ("['i1' for _ in ()]", None),
        ("[" * 5000, None),
    ],
)
def test_cells_of_text(cell, ids):
    if ids is None:
        with pytest.raises(HfGrError, match=r'begins as a list and cannot be read as one; write \["one", "two"\]'):
            cell_ids(cell)
    else:
        assert cell_ids(cell) == ids


def test_every_column_of_text_is_read(folder):
    file = folder / "all.csv"
    file.write_text(
        "user_id,history,exclude,allow,exclude_seen,category,query,ratings,behaviors,age\n"
        "ann,i001|i002,i003,\"['i004', 'i005']\",True,even,'red [shoes]',5 4.5,view|buy,30\n"
        'bob,,,,,"[""even"", ""odd""]",,,,\n'
        "cy,['i001'] 2,,,0,[even,,[1],,\n"
    )
    ann, bob, cy = read_users(file, CATALOG, "none")
    assert ann[1] == {
        "history": ["i001", "i002"],
        "exclude": ["i003"],
        "allow": ["i004", "i005"],
        "exclude_seen": True,
        "category": "even",
        "query": "'red [shoes]'",
        "ratings": [5.0, 4.5],
        "behaviors": ["view", "buy"],
    }
    assert bob == ("bob", {"history": [], "category": ["even", "odd"], "query": ""})
    assert cy[0] == "cy" and isinstance(cy[1], HfGrError)  # that cell is this user's alone
