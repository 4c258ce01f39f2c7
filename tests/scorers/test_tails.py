"""Events taken into a memory bit by bit, against one that was made of all of them."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.dataset import Histories
from hf_gr.errors import HfGrError
from hf_gr.scorers import Memory, MemoryConfig, Tails


EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 20)), max_size=40)


def histories_of(events):
    """Of (user, item, time), in order of time; ties as they come."""
    users = sorted({user for user, _, _ in events})
    ordered = [event for one in users for event in sorted((e for e in events if e[0] == one), key=lambda e: e[2])]
    lengths = [sum(event[0] == user for event in events) for user in users]
    columns = np.array(ordered, np.int64).reshape(-1, 3)
    ids = np.array([f"u{user}" for user in users], object)
    return Histories(ids, np.cumsum([0, *lengths]), columns[:, 1].copy(), columns[:, 2].copy())


def state(memory):
    events = memory.tails.events
    return (
        memory.follows.toarray().tolist(),
        memory.events.tolist(),
        {
            user: (events.items[start:end].tolist(), events.timestamps[start:end].tolist())
            for user, start, end in zip(events.user_ids, events.ptr, events.ptr[1:], strict=False)
        },
    )


def made_of(events, config, num_items=8):
    return Memory.of(histories_of(events), num_items, config)


@settings(deadline=None, max_examples=60)
@given(EVENTS, st.lists(st.integers(0, 21), max_size=3), st.integers(1, 4))
def test_a_log_in_parts_is_the_whole_log(events, cuts, window):
    config = MemoryConfig(window=window)
    events = sorted(dict.fromkeys(events), key=lambda event: event[2])
    parts = np.searchsorted([time for _, _, time in events], sorted(cuts))
    memory = made_of([], config)
    for part in np.split(np.array(events, dtype=object).reshape(-1, 3), parts):
        memory, left_out = memory.remember(histories_of([tuple(event) for event in part]), 8)
        assert left_out == 0
    assert state(memory) == state(made_of(events, config))


@settings(deadline=None, max_examples=60)
@given(EVENTS, st.integers(1, 4))
def test_a_log_that_comes_again_counts_once(events, window):
    config, events = MemoryConfig(window=window), list(dict.fromkeys(events))
    memory = made_of(events, config)
    latest = {user: max(time for one, _, time in events if one == user) for user, _, _ in events}
    again = [event for event in events if sum(e[0] == event[0] and e[2] == latest[e[0]] for e in events) <= window]
    grown, left_out = memory.remember(histories_of(again), 8)
    assert left_out == len(again)
    assert state(grown) == state(memory)


def test_positions_of_another_log_are_later():
    config = MemoryConfig(window=2)
    first, second = histories_of([(0, 1, 0), (0, 2, 1)]), histories_of([(0, 3, 0), (0, 3, 1)])
    memory, left_out = Memory.of(first, 8, config, "position").remember(second, 8)
    assert left_out == 0
    assert memory.events.tolist() == [0, 1, 1, 2, 0, 0, 0, 0]
    assert memory.follows[[2], [3]] > memory.follows[[1], [3]] > 0
    assert memory.tails.events.items.tolist() == [3, 3]


def test_new_items_and_users_find_room():
    memory, _ = made_of([(0, 1, 0)], MemoryConfig(window=2)).remember(histories_of([(0, 9, 5), (7, 8, 1)]), 10)
    assert memory.num_items == 10
    assert memory.follows[[1], [9]] > 0
    assert memory.tails.events.user_ids.tolist() == ["u0", "u7"]


def test_a_new_user_may_come_in_several_histories():
    new = Histories(np.array(["v", "v"], object), np.array([0, 1, 2]), np.array([1, 2]), np.array([5, 6]))
    memory, _ = made_of([], MemoryConfig(window=2)).remember(new, 8)
    assert memory.tails.events.user_ids.tolist() == ["v"]
    assert memory.follows[[1], [2]] > 0


@settings(deadline=None, max_examples=30)
@given(EVENTS, st.sampled_from(["timestamp", "position"]))
def test_files_hold_all_of_them(tmp_path_factory, events, time):
    folder, tails = tmp_path_factory.mktemp("tails"), Tails(histories_of(events), 3, time)
    tails.save(folder)
    again = Tails.load(folder)
    memory = Memory.of(histories_of([]), 8)
    assert state(replace(memory, tails=again)) == state(replace(memory, tails=tails))
    assert (again.window, again.time) == (3, time)


def test_another_file_is_refused_in_one_line(tmp_path):
    file = tmp_path / "tails.parquet"
    with pytest.raises(HfGrError, match="does not hold the last events"):
        Tails.load(tmp_path)
    file.write_bytes(b"nonsense")
    with pytest.raises(HfGrError, match="does not hold the last events"):
        Tails.load(tmp_path)
    Tails(histories_of([(0, 1, 2)]), 3).save(tmp_path)
    table = pq.read_table(file)
    for changed in (table.drop_columns(["items"]), table.replace_schema_metadata(None)):
        pq.write_table(changed, file)
        with pytest.raises(HfGrError, match="does not hold the last events") as error:
            Tails.load(tmp_path)
        assert "\n" not in str(error.value)
