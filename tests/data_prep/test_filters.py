"""Filters against brute force."""

from collections import Counter

import daft
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.files import ROW
from data_prep.filters import FilterOptions, filter_events, k_core
from data_prep.items import items_table
from hf_gr.errors import HfGrError


Event = tuple[str, str, int]
events_of = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("vwxyz"), st.integers(0, 3)), max_size=40)


def frame(events: list[Event], **columns: list) -> daft.DataFrame:
    users, items, times = zip(*events, strict=True) if events else ((), (), ())
    table = {
        ROW: pa.array(range(len(events)), pa.int64()),
        "user_id": pa.array(users, pa.string()),
        "item_id": pa.array(items, pa.string()),
        "timestamp": pa.array(times, pa.int64()),
    }
    whole = pa.table(table | columns)
    return daft.from_arrow(whole.take(pa.array(range(len(events))[::-1], pa.int64())))  # only _row tells the order


def rows(table: pa.Table) -> list[Event]:
    return list(zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "timestamp")), strict=True))


def peel(events: list[Event], users: int, items: int) -> list[Event]:
    """One offending interaction at a time, the slowest k-core there is."""
    kept = list(events)
    while True:
        by_user, by_item = Counter(e[0] for e in kept), Counter(e[1] for e in kept)
        bad = next((e for e in kept if by_user[e[0]] < users or by_item[e[1]] < items), None)
        if bad is None:
            return kept
        kept.remove(bad)


@settings(max_examples=25, deadline=None)
@given(events_of, st.integers(0, 4), st.integers(0, 4))
def test_k_core_equals_peeling_one_event_at_a_time(events, users, items):
    found = k_core(frame(events), users=users, items=items).sort(ROW).to_arrow()
    assert rows(found) == peel(events, users, items)


@settings(max_examples=20, deadline=None)
@given(events_of.filter(bool), st.sampled_from(["exact", "first", "none"]))
def test_deduplicate_and_stable_order_equal_a_loop(events, kind):
    seen, expected = set(), []
    for event in sorted(events, key=lambda e: (e[0], e[2])):  # Python's sort is stable
        key = {"exact": event, "first": event[:2], "none": object()}[kind]
        if key not in seen:
            seen.add(key)
            expected.append(event)
    found, _ = filter_events(frame(events), None, FilterOptions(deduplicate=kind), "log.csv")
    assert rows(found) == expected


def test_exact_duplicates_differ_by_behavior():
    events = frame([("u", "i", 1)] * 3, behavior=pa.array(["view", "buy", "view"]))
    found, _ = filter_events(events, None, FilterOptions(), "log.csv")
    assert found["behavior"].to_pylist() == ["view", "buy"]


def test_min_rating_drops_low_and_missing_ratings():
    events = frame([("u", "a", 1), ("u", "b", 2), ("u", "c", 3)], rating=pa.array([3.5, None, 4.0], pa.float32()))
    found, items = filter_events(events, None, FilterOptions(min_rating=4), "log.csv")
    assert rows(found) == [("u", "c", 3)]
    assert items["item_id"].to_pylist() == ["c"]


def test_min_user_events_leaves_rare_items():
    events = [("u", "a", 1), ("u", "b", 2), ("v", "a", 1)]
    found, _ = filter_events(frame(events), None, FilterOptions(min_user_events=2), "log.csv")
    assert rows(found) == events[:2]


@pytest.mark.parametrize(("keep", "expected"), [(False, ["b", "a"]), (True, ["b", "cold", "a"])])
def test_cold_items(keep, expected, capsys):
    items = items_table([{"item_id": name} for name in ("b", "cold", "a")], "items.csv")
    _, kept = filter_events(
        frame([("u", "a", 1), ("u", "b", 2)]), items, FilterOptions(keep_cold_items=keep), "log.csv"
    )
    assert kept["item_id"].to_pylist() == expected
    assert ("3 -> 2 items in the table" in capsys.readouterr().out) is not keep


def test_unknown_items_are_refused_or_dropped(capsys):
    items = items_table([{"item_id": "a"}], "items.csv")
    events = frame([("u", "a", 1), ("u", "b", 2), ("v", "c", 3)])
    with pytest.raises(HfGrError, match=r"log\.csv: 2 interaction.*'b' of user 'u'.*--drop-unknown-items"):
        filter_events(events, items, FilterOptions(), "log.csv")
    found, _ = filter_events(events, items, FilterOptions(drop_unknown_items=True), "log.csv")
    assert rows(found) == [("u", "a", 1)]
    assert "known items: 2 -> 1 users, 3 -> 1 items, 3 -> 1 interactions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FilterOptions(k_core=9), r"log\.csv: no interactions are left after the step 'k-core.*lower --k-core 9"),
        (FilterOptions(min_rating=3), r"log\.csv has no column 'rating'"),
    ],
)
def test_impossible_filters(options, message):
    with pytest.raises(HfGrError, match=message):
        filter_events(frame([("u", "a", 1)]), None, options, "log.csv")


@pytest.mark.parametrize("bad", [{"deduplicate": "all"}, {"k_core": -1}])
def test_bad_options(bad):
    with pytest.raises(HfGrError):
        FilterOptions(**bad)
