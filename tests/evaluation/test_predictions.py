import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_gr.dataset import Cases, Histories, InteractionDataset
from hf_gr.errors import HfGrError
from hf_gr.evaluation.metrics import MISSING
from hf_gr.evaluation.predictions import case_numbers, read_predictions, without_history, write_predictions


@pytest.fixture
def dataset(dataset_folder) -> InteractionDataset:
    return InteractionDataset.load(dataset_folder)


@pytest.fixture
def cases(dataset) -> Cases:
    return dataset.split().test


def write_jsonl(file, rows):
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return file


def rows_for(cases):
    return [{"user_id": user, "item_ids": ["i003", "i001"]} for user in cases.histories.user_ids]


def test_lists_are_found_by_user_whatever_their_order(tmp_path, dataset, cases):
    rows = rows_for(cases)
    rows[4]["item_ids"] = ["i007", "nobody", "i002", None, "i000"]
    rows[5]["item_ids"] = []
    extra = {"user_id": "stranger", "item_ids": ["i009"]}
    lists = read_predictions(write_jsonl(tmp_path / "p.jsonl", [extra, *reversed(rows)]), dataset, cases)
    assert lists[4].tolist() == [7, -2, 2, -2, 0]  # an unknown id keeps its rank
    assert lists[5].tolist() == [-1] * 5
    assert (np.delete(lists, [4, 5], axis=0) == [3, 1, -1, -1, -1]).all()
    assert read_predictions(tmp_path / "p.jsonl", dataset, cases, top_k=2)[4].tolist() == [7, -2]


@given(st.data())
def test_what_is_written_is_read_back(tmp_path_factory, data):
    items = [f"i{n}" for n in range(9)]
    entry = st.integers(-2, 8).filter(lambda i: i != -1)
    lists = data.draw(st.lists(st.lists(entry, max_size=5), min_size=1, max_size=6))
    users = data.draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=len(lists), max_size=len(lists)))
    recommended = np.array([row + [-1] * (5 - len(row)) for row in lists])
    dataset, cases = fake(items, users)
    file = tmp_path_factory.mktemp("p") / "p.parquet"
    write_predictions(file, recommended, cases, items)
    assert read_predictions(file, dataset, cases, top_k=5).tolist() == recommended.tolist()
    by_order = file.with_name("by_order.parquet")  # without `case`, rows count in order of appearance
    pq.write_table(pq.read_table(file).drop_columns(["case", "target"]), by_order)
    assert read_predictions(by_order, dataset, cases, top_k=5).tolist() == recommended.tolist()


def fake(items, users):
    from hf_gr.dataset import Histories

    zeros = np.zeros(len(users), np.int64)
    table = pa.table({"item_id": items, "title": items})
    events = Histories(np.array(users, dtype=object), np.arange(len(users) + 1), zeros, zeros)
    return InteractionDataset("none", table, events, "position"), Cases(events, zeros)


@pytest.mark.parametrize(
    "written",
    [
        "2020-01-01",
        "2020-01-01T10:00:00",
        "2020-01-01 10:00:00Z",
        "0012",
        "12",
        "1e5",
        "true",
        "null",
        "日本",
        12,
        12.0,
    ],
)
def test_ids_in_jsonl_stay_as_they_are_written(tmp_path, written):
    item = written if isinstance(written, str) else "12"
    dataset, cases = fake(["other", item], [item, "ann"])
    rows = [{"user_id": "ann", "item_ids": [None, "other", written]}, {"user_id": written, "item_ids": [written]}]
    file = write_jsonl(tmp_path / "p.jsonl", rows)
    assert read_predictions(file, dataset, cases).tolist() == [[1, -1, -1], [-2, 0, 1]]


@pytest.mark.parametrize("value", [1.5, 2.0**53, float("nan")])
def test_numbers_that_are_no_ids_are_refused(tmp_path, value):
    file = write_jsonl(tmp_path / "p.jsonl", [{"user_id": "a", "item_ids": [value]}])
    with pytest.raises(HfGrError, match=r"'item_ids' holds .* no exact whole number; write ids as text"):
        read_predictions(file, *fake(["x"], ["a"]))


def test_whole_floats_of_parquet_are_ids_and_others_are_refused(tmp_path):
    """As pandas writes whole numbers with gaps: 12345678901.0 is the id `12345678901`, not `1.2345678901e+10`."""
    dataset, cases = fake(["12345678901", "7"], ["3"])
    file = tmp_path / "p.parquet"
    for ids, lists in ([7.0, None, 12345678901.0], [[1, -2, 0]]), ([7.0, 1.5], None), ([2.0**60], None):
        pq.write_table(pa.table({"user_id": [3.0], "item_ids": [ids]}), file)
        if lists is not None:
            assert read_predictions(file, dataset, cases).tolist() == lists
            continue
        with pytest.raises(HfGrError, match=r"column 'item_ids' is list<.*double>, not list<.*string>; write it as"):
            read_predictions(file, dataset, cases)


def test_cases_of_a_user_are_numbered_in_order():
    assert case_numbers(fake(["i"], ["a", "b", "a", "a", "b"])[1]).tolist() == [0, 0, 1, 2, 1]


def test_the_case_column_wins_over_the_order_of_rows(tmp_path):
    dataset, cases = fake(["x", "y"], ["a", "a"])
    rows = [{"user_id": "a", "case": 1, "item_ids": ["y"]}, {"user_id": "a", "case": 0, "item_ids": ["x"]}]
    assert read_predictions(write_jsonl(tmp_path / "p.jsonl", rows), dataset, cases).tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "no list for case 0 of user 'u059'"),
        (lambda rows: [*rows, rows[0]], "'u000' has more lists than cases"),
        (lambda rows: [{"user_id": row["user_id"]} for row in rows], "no column 'item_ids'"),
        (lambda rows: [{**row, "item_ids": "i001"} for row in rows], "'item_ids' is string"),
        (lambda rows: [{"user_id": "u1", "item_id": "i1"}], r"has one row an item; gather .*groupby\('user_id'"),
        (lambda rows: [{**row, "scores": [1.0, None]} for row in rows], r"a score of user 'u000' \(row 0\) is not"),
        (lambda rows: [{**row, "case": 0} for row in [*rows, rows[0]]], "two lists for case 0 of user 'u000'"),
    ],
)
def test_bad_files_are_refused(tmp_path, dataset, cases, change, message):
    file = write_jsonl(tmp_path / "p.jsonl", change(rows_for(cases)))
    with pytest.raises(HfGrError, match=message) as error:
        read_predictions(file, dataset, cases)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(tmp_path, dataset, cases, score):
    rows = rows_for(cases)
    table = pa.table({name: [row[name] for row in rows] for name in ("user_id", "item_ids")})
    scores = [[0.5, 0.1]] * len(rows)
    pq.write_table(table.append_column("scores", pa.array(scores)), tmp_path / "p.parquet")
    assert (read_predictions(tmp_path / "p.parquet", dataset, cases) == [3, 1]).all()
    scores[7] = [0.5, score]
    for kind in (pa.list_, pa.large_list):
        column = pa.array(scores, kind(pa.float64()))
        pq.write_table(table.append_column("scores", column), tmp_path / f"{kind.__name__}.parquet")
        with pytest.raises(HfGrError, match=r"a score of user 'u007' \(row 7\) is not finite"):
            read_predictions(tmp_path / f"{kind.__name__}.parquet", dataset, cases)


def test_the_pandas_line_of_a_message_makes_what_is_asked_for(tmp_path, dataset, cases):
    users = cases.histories.user_ids.tolist()
    frame = pa.table({"user_id": [u for u in users for _ in range(2)], "item_id": ["i003", "i001"] * len(users)})
    pq.write_table(frame, tmp_path / "long.parquet")
    with pytest.raises(HfGrError) as error:
        read_predictions(tmp_path / "long.parquet", dataset, cases)
    line = str(error.value).partition("in pandas: ")[2].rstrip(".")
    eval(line, {"frame": frame.to_pandas()}).to_parquet(tmp_path / "lists.parquet")
    assert (read_predictions(tmp_path / "lists.parquet", dataset, cases) == [3, 1]).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.parquet", "x"), ("p.jsonl", "{"), ("p.csv", "a,b"), ("p.jsonl", "")]
    + [("p.jsonl", text) for text in ("[" * 100_000, '{"user_id": "\\ud800", "item_ids": []}', "[]")]
    + [("p.jsonl", '{"user_id": "a", "item_ids": ["x"], "case": 99999999999999999999}')],
)
def test_unreadable_files_are_refused(tmp_path, dataset, cases, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(HfGrError, match=name) as error:
        read_predictions(tmp_path / name, dataset, cases)
    assert "\n" not in str(error.value)
    with pytest.raises(HfGrError, match="does not exist"):
        read_predictions(tmp_path / "absent.parquet", dataset, cases)


@given(
    st.lists(st.lists(st.integers(-2, 6), min_size=4, max_size=4), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=5, max_size=5),
)
def test_lists_without_their_histories(lists, histories):
    histories = histories[: len(lists)]
    ptr = np.cumsum([0, *map(len, histories)])
    items = np.array([item for history in histories for item in history], np.int64)
    users = np.array([str(row) for row in range(len(lists))])
    cases = Cases(Histories(users, ptr, items, np.arange(len(items))), np.zeros(len(lists), np.int64))
    found = without_history(np.array(lists), cases)
    for row, items, history in zip(found, lists, histories, strict=True):
        left = [item for item in items if item != MISSING and item not in history]
        assert row.tolist() == left + [MISSING] * (4 - len(left))
