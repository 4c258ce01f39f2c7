"""Cutting sessions up as the source does, and putting them together again."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import prepare_sessions
from data_prep.sessions import merge_prefixes
from hf_gr.cli import main
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError


SHARED = Path(__file__).parents[3] / "shared" / "data" / "retailrocket_multibehavior"
HEADER = "session_id,item_ids,behaviors,bought_item_id\n"


def cut(sessions):
    """One row for each purchase: what came before, and the purchase; the id is the session's."""
    return [
        (name, session[:n], [event])
        for name, session in sessions.items()
        for n, event in enumerate(session)
        if event[1] == "buy" and n
    ]


events = st.tuples(st.sampled_from("abc"), st.sampled_from(["view", "buy"]))


@given(st.lists(st.lists(events, min_size=1, max_size=6), max_size=5), st.randoms())
def test_cut_sessions_come_back_whole_and_apart(lists, random):
    """However alike they are: sessions of different ids never touch."""
    sessions = {f"s{n}": [*events, ("last", "buy")] for n, events in enumerate(lists)}
    rows = cut(sessions) * 3
    random.shuffle(rows)
    assert dict(merge_prefixes(rows)) == sessions and len(merge_prefixes(rows)) == len(sessions)


def test_a_purchase_that_the_longer_row_leaves_out_is_put_in():
    seen = [(item, "view") for item in "abc"]
    rows = [
        ("1", seen, [("b", "buy")]),
        ("1", seen, [("c", "buy")]),
        ("1", [*seen, ("c", "buy"), ("d", "cart")], [("d", "buy")]),
    ]
    merged = [*seen, ("b", "buy"), ("c", "buy"), ("d", "cart"), ("d", "buy")]
    assert merge_prefixes(rows) == [("1", merged)]


def read(folder: Path) -> dict[str, list]:
    """Every session's items, with their behaviors where there are any."""
    data = InteractionDataset.load(folder)
    names = [data.item_ids[row] for row in data.events.items]
    did = data.events.behaviors
    whole = names if did is None else list(zip(names, did, strict=True))
    ends = data.events.ptr
    return {user: whole[a:b] for user, a, b in zip(data.events.user_ids, ends[:-1], ends[1:], strict=True)}


def test_folder_of_two_files(tmp_path):
    (tmp_path / "train.csv").write_text(HEADER + "1,7 007,view cart,007\n1,7 007 007 8,view cart buy view,8\n")
    (tmp_path / "test.csv").write_text(HEADER + "1,7,view,9\n")
    prepare_sessions(tmp_path / "out", [tmp_path / "train.csv", tmp_path / "test.csv"], undo_augmentation=True)
    assert read(tmp_path / "out") == {
        "test-1": [("7", "view"), ("9", "buy")],
        "train-1": [("7", "view"), ("007", "cart"), ("007", "buy"), ("8", "view"), ("8", "buy")],
    }
    data = InteractionDataset.load(tmp_path / "out")
    assert data.events.timestamps.tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert data.time == "position"


def test_lists_alone_under_other_names_are_kept_apart(tmp_path):
    (tmp_path / "log.csv").write_text("sid,basket\n1,a b\n2,a b c\n3,a b c\n")
    columns = {"session_id": "sid", "item_ids": "basket"}
    for undo in (False, True):
        prepare_sessions(tmp_path / "out", tmp_path / "log.csv", columns=columns, undo_augmentation=undo)
        assert read(tmp_path / "out") == {"1": ["a", "b"], "2": ["a", "b", "c"], "3": ["a", "b", "c"]}


def test_one_visitors_purchase_never_stands_in_the_history_of_another(tmp_path):
    (tmp_path / "log.csv").write_text("session_id,item_ids,bought_item_id\nann,1 2 3,9\nbob,1 2 3 4 5,6\ncid,7 8,\n")
    for undo in (False, True):
        prepare_sessions(tmp_path / "out", tmp_path / "log.csv", undo_augmentation=undo)
        assert read(tmp_path / "out") == {"ann": [*"1239"], "bob": [*"123456"], "cid": ["7", "8"]}


def test_rows_that_continue_one_another_are_merged_when_asked_and_no_behavior_is_made_up(tmp_path):
    log = tmp_path / "bench.tsv"
    log.write_text("session_id\titem_ids\ttarget\n1\t1 2\t3\n1\t1\t2\n1\t1 2 3\t4\n2\t1\t2\n")
    columns = {"target": "target"}
    with pytest.raises(
        HfGrError, match=r"'1' stands in rows 0 and 1 .*put it together with --undo-augmentation, else"
    ):
        prepare_sessions(tmp_path / "out", log, columns=columns)
    prepare_sessions(tmp_path / "out", log, columns=columns, undo_augmentation=True)
    assert read(tmp_path / "out") == {"1": [*"1234"], "2": ["1", "2"]}


def test_the_behavior_of_a_target_is_said_or_asked_for(tmp_path):
    (tmp_path / "log.csv").write_text("session_id,item_ids,behaviors,next\n1,a b,view cart,c\n2,a,view,\n")
    columns = {"target": "next"}
    with pytest.raises(HfGrError, match=r"does not say that of the target 'next'; give it, such as --target-behavior"):
        prepare_sessions(tmp_path / "out", tmp_path / "log.csv", columns=columns)
    prepare_sessions(tmp_path / "out", tmp_path / "log.csv", columns=columns, target_behavior="buy")
    assert read(tmp_path / "out") == {"1": [("a", "view"), ("b", "cart"), ("c", "buy")], "2": [("a", "view")]}
    (tmp_path / "none.csv").write_text("session_id,item_ids\n1,a b\n")
    with pytest.raises(HfGrError, match=r"--target-behavior is 'buy', but .*none\.csv has no target; map it"):
        prepare_sessions(tmp_path / "out", tmp_path / "none.csv", target_behavior="buy")


@pytest.mark.parametrize("ids", [pa.int32(), pa.string(), pa.float64()])
def test_list_columns_of_parquet(tmp_path, ids):
    table = pa.table(
        {
            "session_id": [1, 2],
            "item_ids": pa.array([[5, 6, 7], [8]]).cast(pa.list_(ids)),
            "behaviors": [["view", "view", "add to cart"], ["view"]],
            "target": pa.array([9, None]).cast(ids),
        }
    )
    pq.write_table(table, tmp_path / "lists.parquet")
    columns = {"target": "target"}
    prepare_sessions(tmp_path / "out", tmp_path / "lists.parquet", columns=columns, target_behavior="buy")
    assert read(tmp_path / "out") == {
        "1": [("5", "view"), ("6", "view"), ("7", "add to cart"), ("9", "buy")],
        "2": [("8", "view")],
    }
    for name, values, message in (
        ("item_ids", [[5, None], [6]], "a list in 'item_ids' has an empty value in row 0; drop it from the list"),
        ("item_ids", [5, 6], r"column 'item_ids' holds int64; give texts parted by spaces, or lists"),
        (
            "item_ids",
            [[2.0**53, 5.0], [6.0]],
            "9007199254740992 may stand for several ids",
        ),
        ("session_id", [1, None], "'session_id' is empty in row 1; fill it or drop the row"),
        ("session_id", [1.0, None], "'session_id' is empty in row 1"),
    ):
        bad = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(bad, tmp_path / "bad.parquet")
        with pytest.raises(HfGrError, match=message):
            prepare_sessions(tmp_path / "out", tmp_path / "bad.parquet", columns=columns, target_behavior="buy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,a b,view,a\n", r"log\.csv: session '1' has 2 item\(s\) and 1 behavior"),
        ("1,,,a\n", r"log\.csv: session '1' has 0 item\(s\)"),
        ("", r"log\.csv holds no sessions"),
        ("NULL,a,view,b\n", r"log\.csv: 'session_id' is empty in row 0; fill it or drop the row"),
        ("1,a NULL,view view,b\n", r"log\.csv: a list in 'item_ids' has an empty value in row 0; drop it"),
        (",a,view,b\n", r"log\.csv: 'session_id' is empty in row 0; fill it or drop the row"),
        ("1,a,view,b\n1,c,view,d\n", r"log\.csv: session '1' has rows that do not continue one another; give each"),
    ],
)
def test_bad_rows(tmp_path, content, message):
    (tmp_path / "log.csv").write_text(HEADER + content)
    with pytest.raises(HfGrError, match=message):
        prepare_sessions(tmp_path / "out", tmp_path / "log.csv", undo_augmentation=True)


def test_files_of_one_name_and_columns_of_items_without_items_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "a" / "log.csv", tmp_path / "log.tsv"):
        path.write_text(HEADER + "1,a,view,b\n")
    with pytest.raises(
        HfGrError, match="two files are called 'log', which is to tell their sessions apart; rename one"
    ):
        prepare_sessions(tmp_path / "out", [tmp_path / "a" / "log.csv", tmp_path / "log.tsv"])
    (tmp_path / "log-1.csv").write_text(HEADER + "2,a,view,b\n")
    (tmp_path / "a" / "log.csv").write_text(HEADER + "1-2,a,view,b\n")
    with pytest.raises(HfGrError, match="sessions of two files would both be called 'log-1-2'; rename one"):
        prepare_sessions(tmp_path / "out", [tmp_path / "a" / "log.csv", tmp_path / "log-1.csv"])
    with pytest.raises(HfGrError, match="but there is no table of items; give --items FILE"):
        prepare_sessions(tmp_path / "out", tmp_path / "a" / "log.csv", item_columns={"title": "name"})


def test_remedies_are_options_of_the_command(tmp_path, capsys):
    (tmp_path / "log.csv").write_text(HEADER + "1,a b,view view,c\n")
    (tmp_path / "items.csv").write_text("id,title\na,A\nb,B\n")
    given = ["prepare", "sessions", str(tmp_path / "log.csv"), "--items", str(tmp_path / "items.csv")]
    given += ["--out", str(tmp_path / "out")]
    for more, remedy in (([], "item_id=THEIR_NAME"), (["--item-column", "item_id=id"], "drop.unknown.items")):
        given += more
        with pytest.raises(SystemExit):
            main(given)
        assert re.search(remedy, capsys.readouterr().err)
    main([*given, "--drop-unknown-items"])
    assert read(tmp_path / "out") == {"1": [("a", "view"), ("b", "view")]}


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
def test_retailrocket_test_part(tmp_path):
    """Its session ids count the rows: every row is a session, asked or not."""
    for undo in (False, True):
        prepare_sessions(tmp_path / "out", SHARED / "test.csv.gz", undo_augmentation=undo)
        data = InteractionDataset.load(tmp_path / "out")
        assert len(data.events) == 2000 and data.events.lengths.sum() == 8413 + 2000
        assert set(data.events.behaviors) == {"view", "cart", "buy"}


def test_further_columns_of_a_row_stand_at_each_of_its_events(tmp_path):
    (tmp_path / "a.csv").write_text("session_id,item_ids,bought_item_id,hour,way\n1,x y,z,7,web\n2,x,,,app\n")
    (tmp_path / "b.csv").write_text("session_id,item_ids,bought_item_id,hour,way\n1,y x,,8,\n")
    given = {"keep": ["hour", "device"], "columns": {"device": "way"}}
    prepare_sessions(tmp_path / "out", [tmp_path / "a.csv", tmp_path / "b.csv"], **given)
    events = InteractionDataset.load(tmp_path / "out").events
    assert events.user_ids.tolist() == ["a-1", "a-2", "b-1"] and events.lengths.tolist() == [3, 1, 2]
    assert events.columns.to_pydict() == {"hour": [7, 7, 7, None, 8, 8], "device": ["web"] * 3 + ["app", None, None]}
    for keep, message in [
        (["behaviors"], "--keep names 'behaviors', which is kept anyway; leave that --keep out"),
        (["hours"], r"a\.csv has no column 'hours'"),
    ]:
        with pytest.raises(HfGrError, match=message):
            prepare_sessions(tmp_path / "bad", tmp_path / "a.csv", keep=keep)
    with pytest.raises(HfGrError, match="--keep keeps a value of every row, and --undo-augmentation joins rows"):
        prepare_sessions(tmp_path / "bad", tmp_path / "a.csv", keep=["hour"], undo_augmentation=True)
