"""What rows hold: histories of before, draws as popular as what was taken by then, exposures by their part."""

import numpy as np
import pyarrow as pa
import pytest
from tiny import NUM_ITEMS, tiny_interactions, tiny_items

from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.errors import HfGrError
from hf_gr.ranking import RowSettings, click_rows
from hf_gr.ranking.rows import draw_negatives


HOUR = 3_600 * 10**6


def clocked_interactions(seed: int = 0) -> pa.Table:
    """Users start at different hours, and some items come late."""
    table = tiny_interactions(seed=seed)
    users = np.array(table["user_id"].to_pylist())
    start = {user: 3 * place for place, user in enumerate(np.unique(users))}
    hours = np.array([start[user] for user in users]) + table["timestamp"].to_numpy()
    return table.set_column(2, "timestamp", pa.array(hours * HOUR))


def exposures_of(table: pa.Table, seed: int = 0) -> pa.Table:
    """Beside every event an exposure that is clicked, just before it, and two that are not."""
    random = np.random.default_rng(seed)
    rows = [
        (user, item if place == 0 else f"i{random.integers(NUM_ITEMS):03d}", time - 1, place == 0)
        for user, item, time in zip(*(table[name].to_pylist() for name in table.column_names[:3]), strict=True)
        for place in range(3)
    ]
    columns = map(list, zip(*rows, strict=True))
    return pa.table(dict(zip(["user_id", "item_id", "timestamp", "clicked"], columns, strict=True)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> InteractionDataset:
    folder = tmp_path_factory.mktemp("rows") / "dataset"
    table = clocked_interactions()
    write_dataset(folder, table, tiny_items(), exposures=exposures_of(table), source="Made for tests.")
    return InteractionDataset.load(folder)


@pytest.mark.parametrize("split_name", ["leave_one_out", "temporal"])
@pytest.mark.parametrize("labels", ["drawn", "ratings", "exposures"])
def test_a_history_holds_what_was_taken_before(dataset, labels, split_name):
    split = dataset.split(split_name)
    parts, _ = click_rows(dataset, split, split_name, RowSettings(labels, max_history=4))
    events = dataset.events
    for rows in parts.values():
        batch = rows.batch(np.arange(len(rows)))
        for row in range(0, len(rows), 7):
            user = int(rows.users[row])
            mine = slice(events.ptr[user], events.ptr[user + 1])
            before = events.timestamps[mine] < rows.times[row]
            liked = events.ratings[mine] > (3.0 if labels == "ratings" else 0.0)
            expected = events.items[mine][before & liked][-4:]
            found = batch["history"][row]
            assert found[found >= 0].tolist() == expected.tolist()
            assert (found[len(expected) :] == -1).all()


def test_ratings_are_labels_and_every_event_is_a_row(dataset):
    split = dataset.split("temporal")
    parts, _ = click_rows(dataset, split, "temporal", RowSettings("ratings", above=3.0))
    assert len(parts["train"]) == len(split.train.items) and len(parts["test"]) == len(split.test)
    assert parts["train"].labels.sum() == (split.train.ratings > 3.0).sum()


@pytest.mark.parametrize("clock", [True, False])
def test_no_item_is_drawn_before_it_was_seen_nor_one_that_was_taken(dataset, clock):
    events = dataset.events
    rows, among = np.arange(len(events.items)), np.arange(len(events.items))
    whose, items = draw_negatives(events, rows, among, 5, clock, seed=0)
    seen = np.full(NUM_ITEMS, np.iinfo(np.int64).max)
    np.minimum.at(seen, events.items, events.timestamps)
    early = seen[items] > events.timestamps[rows[whose]]
    assert not early.any() if clock else early.any()
    for place, item in zip(whose[::11], items[::11], strict=True):
        owner = events.owners[place]
        assert item not in events.items[events.ptr[owner] : place + 1]
    assert len(items) > 4.5 * len(rows)


def test_training_draws_training_events_alone(dataset):
    split = dataset.split("temporal")
    parts, _ = click_rows(dataset, split, "temporal", RowSettings("drawn", negatives=3))
    first = {}
    for item, time in zip(split.train.items, split.train.timestamps, strict=True):
        first[item] = min(time, first.get(item, time))
    train = parts["train"]
    drawn = train.labels == 0
    assert drawn.sum() > 2.5 * (~drawn).sum()
    assert all(first[item] <= time for item, time in zip(train.items[drawn], train.times[drawn], strict=True))


def test_draws_are_as_popular_as_events_so_far(tmp_path):
    """One user asks late in the log of others, who took item 0 sixty times, item 1 thirty and item 2 ten."""
    users = [f"u{place}" for place in range(100)] + ["late"]
    items = ["i000"] * 60 + ["i001"] * 30 + ["i002"] * 10 + ["i003"]
    later = [("other", "i004", 10**9)] * 50  # popular, but after the row
    rows = [*zip(users, items, range(100 + 1), strict=True), *later]
    names = ["user_id", "item_id", "timestamp"]
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    write_dataset(tmp_path / "dataset", table, tiny_items(), source="Made for tests.")
    events = InteractionDataset.load(tmp_path / "dataset").events
    asked = np.flatnonzero(events.user_ids[events.owners] == "late")
    _, drawn = draw_negatives(events, asked, np.arange(len(events.items)), 20_000, True, seed=0)
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    assert shares == pytest.approx([0.6, 0.3, 0.1, 0, 0], abs=0.015)


@pytest.mark.parametrize("split_name", ["leave_one_out", "temporal"])
def test_every_exposure_is_in_one_part_in_order_of_time(dataset, split_name):
    split = dataset.split(split_name)
    parts, _ = click_rows(dataset, split, split_name, RowSettings("exposures"))
    assert sum(map(len, parts.values())) == dataset.exposures.num_rows
    assert len(parts["train"]) == dataset.training_exposures(split).num_rows
    for user in range(0, len(dataset.events), 5):
        last = -1
        for name in ("train", "validation", "test"):
            times = parts[name].times[parts[name].users == user]
            assert not len(times) or times.min() > last
            last = max(last, times.max(initial=-1))
    if split_name == "temporal":
        assert parts["validation"].times.max() < parts["test"].times.min()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "drawn", "user_columns": ("age",)}, "has no users.parquet"),
        ({"labels": "drawn", "event_columns": ("place",)}, "the events have no column 'place'"),
        ({"labels": "exposures", "event_columns": ("clicked",)}, "no column 'clicked' to read"),
    ],
)
def test_columns_that_are_not_there_are_refused(dataset, settings, message):
    with pytest.raises(HfGrError, match=message):
        click_rows(dataset, dataset.split(), "leave_one_out", RowSettings(**settings))
