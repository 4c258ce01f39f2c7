"""Cutting sessions up as the source does, and putting them together again."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import prepare_sessions
from data_prep.sessions import merge_prefixes
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError


SHARED = Path(__file__).parents[3] / "shared" / "data" / "retailrocket_multibehavior"
HEADER = "session_id,item_ids,behaviors,bought_item_id\n"


def cut(sessions):
    """One row for each purchase: what came before, and the purchase; ids count the rows."""
    rows = [
        (session[:n], [event]) for session in sessions for n, event in enumerate(session) if event[1] == "buy" and n
    ]
    return [(str(number), *row) for number, row in enumerate(rows)]


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["view", "buy"])), max_size=6), max_size=5),
    st.randoms(),
)
def test_cut_sessions_come_back_whole(tails, random):
    # Each starts with an item of its own, so that no session is the beginning of another, and ends with a purchase.
    sessions = [[(f"own{n}", "view"), *tail, ("last", "buy")] for n, tail in enumerate(tails)]
    rows = cut(sessions) * 3
    random.shuffle(rows)
    assert sorted(events for _, events in merge_prefixes(rows)) == sorted(sessions)


def test_a_purchase_that_the_longer_row_leaves_out_is_put_in():
    seen = [(item, "view") for item in "abc"]
    rows = [
        ("1", seen, [("b", "buy")]),
        ("2", seen, [("c", "buy")]),
        ("3", [*seen, ("c", "buy"), ("d", "cart")], [("d", "buy")]),
    ]
    merged = [*seen, ("b", "buy"), ("c", "buy"), ("d", "cart"), ("d", "buy")]
    assert merge_prefixes(rows) == [("3", merged)]


def test_short_lists_without_evidence_stay_apart():
    rows = [("1", [("a", "cart")], [("x", "buy")]), ("2", [("a", "cart"), ("b", "view")], [("b", "buy")])]
    assert [name for name, _ in merge_prefixes(rows)] == ["1", "2"]


def test_folder_of_two_files(tmp_path):
    (tmp_path / "train.csv").write_text(HEADER + "1,7 007,view cart,007\n2,7 007 007 8,view cart buy view,8\n")
    (tmp_path / "test.csv").write_text(HEADER + "1,7,view,9\n")
    prepare_sessions(tmp_path / "out", [tmp_path / "train.csv", tmp_path / "test.csv"])
    data = InteractionDataset.load(tmp_path / "out")
    assert data.events.user_ids.tolist() == ["test-1", "train-2"]
    assert [data.item_ids[row] for row in data.events.items] == ["7", "9", "7", "007", "007", "8", "8"]
    assert data.events.behaviors.tolist() == ["view", "buy", "view", "cart", "buy", "view", "buy"]
    assert data.events.timestamps.tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert data.time == "position"


def test_lists_alone_under_other_names_and_kept_apart(tmp_path):
    (tmp_path / "log.csv").write_text("sid,basket\n1,a b\n2,a b c\n")
    columns = {"session_id": "sid", "item_ids": "basket"}
    prepare_sessions(tmp_path / "out", tmp_path / "log.csv", columns=columns, undo_augmentation=False)
    data = InteractionDataset.load(tmp_path / "out")
    assert (data.events.lengths.tolist(), data.events.behaviors) == ([2, 3], None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,a b,view,a\n", r"log\.csv: session '1' has 2 item\(s\) and 1 behaviour"),
        ("1,,,a\n", r"log\.csv: session '1' has 0 item\(s\)"),
        ("", r"log\.csv holds no sessions"),
        ("1,a,view,b\n1,c,view,d\n", r"log\.csv: session '1' has rows that do not continue one another"),
    ],
)
def test_bad_rows(tmp_path, content, message):
    (tmp_path / "log.csv").write_text(HEADER + content)
    with pytest.raises(HfGrError, match=message):
        prepare_sessions(tmp_path / "out", tmp_path / "log.csv")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
def test_retailrocket_test_part(tmp_path):
    prepare_sessions(tmp_path / "out", SHARED / "test.csv.gz")
    data = InteractionDataset.load(tmp_path / "out")
    assert 1900 < len(data.events) <= 2000
    assert data.events.lengths.sum() > 8413  # the lists of all rows; every session adds its purchase
    assert set(data.events.behaviors) == {"view", "cart", "buy"}
