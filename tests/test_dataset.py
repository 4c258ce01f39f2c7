import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import tiny_interactions, tiny_items

from hf_gr.dataset import Histories, InteractionDataset, popularity, write_dataset
from hf_gr.errors import HfGrError


IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
TITLES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def tables(draw) -> tuple[pa.Table, pa.Table]:
    """Interactions and items with any ids, times with many ties, and optional columns."""
    item_ids = draw(st.lists(IDS, min_size=1, max_size=6, unique=True))
    items = {"item_id": item_ids, "title": [draw(TITLES) for _ in item_ids]}
    if draw(st.booleans()):
        items["categories"] = [draw(st.none() | st.lists(TITLES, max_size=2)) for _ in item_ids]
    users = draw(st.lists(IDS, min_size=1, max_size=4, unique=True))
    event = st.tuples(st.sampled_from(users), st.sampled_from(item_ids), st.integers(-3, 3) | st.integers(0, 2**40))
    events = draw(st.lists(event, min_size=1, max_size=25))
    columns = dict(zip(["user_id", "item_id", "timestamp"], map(list, zip(*events, strict=True)), strict=True))
    if draw(st.booleans()):
        columns["rating"] = pa.array([draw(st.sampled_from([1.0, 4.5, None])) for _ in events], pa.float32())
    if draw(st.booleans()):
        columns["behavior"] = pa.array([draw(st.sampled_from(["view", "buy", None])) for _ in events], pa.string())
    schema = pa.schema([(name, pa.list_(pa.string()) if name == "categories" else pa.string()) for name in items])
    return pa.table(columns), pa.table(items, schema)


def by_user(events: list[dict]) -> dict[str, list[dict]]:
    """Reference: every user's events in stable time order."""
    users: dict[str, list[dict]] = {}
    for event in events:
        users.setdefault(event["user_id"], []).append(event)
    return {user: sorted(rows, key=lambda row: row["timestamp"]) for user, rows in users.items()}


@settings(max_examples=40, deadline=None)
@given(tables())
def test_what_is_written_is_read(both):
    interactions, items = both
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data", interactions, items, source="Made for tests.")
        dataset = InteractionDataset.load(Path(folder) / "data")
    assert dataset.time == "timestamp"
    assert dataset.items.to_pylist() == items.to_pylist()
    assert dataset.item_ids == items["item_id"].to_pylist() and dataset.titles == items["title"].to_pylist()
    assert dataset.categories == [row.get("categories") or [] for row in items.to_pylist()]
    expected = by_user(interactions.to_pylist())
    events = dataset.events
    assert list(events.user_ids) == list(expected)
    assert events.lengths.tolist() == [len(rows) for rows in expected.values()]
    rows = [row for rows in expected.values() for row in rows]
    assert [dataset.item_ids[item] for item in events.items] == [row["item_id"] for row in rows]
    assert events.timestamps.tolist() == [row["timestamp"] for row in rows]
    assert (events.ratings is None) == ("rating" not in interactions.column_names)
    if events.ratings is not None:
        assert [None if np.isnan(x) else x for x in events.ratings.tolist()] == [row["rating"] for row in rows]
    assert (events.behaviors is None) == ("behavior" not in interactions.column_names)
    if events.behaviors is not None:
        assert events.behaviors.tolist() == [row["behavior"] for row in rows]


def test_ties_keep_the_order_of_the_file(tmp_path):
    order = np.random.default_rng(0).permutation(200)
    table = pa.table({"user_id": ["u"] * 200, "item_id": [f"i{i}" for i in order], "timestamp": [7] * 200})
    items = pa.table({"item_id": [f"i{i}" for i in range(200)], "title": [""] * 200})
    write_dataset(tmp_path / "data", table, items, source="")
    assert InteractionDataset.load(tmp_path / "data").events.items.tolist() == order.tolist()


@st.composite
def memory_datasets(draw, min_events: int = 1) -> InteractionDataset:
    """Events of a few users in time order, straight into memory."""
    times = st.lists(st.integers(0, 20), min_size=min_events, max_size=9).map(sorted)
    users = draw(st.lists(times, min_size=1, max_size=6))
    stamps = np.array([time for user in users for time in user], np.int64)
    lengths = [len(user) for user in users]
    events = Histories(
        np.array([f"u{row}" for row in range(len(users))], dtype=object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array(draw(st.permutations(range(len(stamps)))), np.int64),  # an item an event: nothing can be mistaken
        stamps,
        np.arange(len(stamps), dtype=np.float32),
        np.array([f"b{row}" for row in range(len(stamps))], dtype=object),
    )
    items = pa.table({"item_id": [f"i{row}" for row in range(len(stamps))], "title": [""] * len(stamps)})
    return InteractionDataset(Path("memory"), items, events, "timestamp")


def listed(histories: Histories) -> list[tuple]:
    """Histories as plain Python: (user, [(item, time, rating, behaviour), …])."""
    ranges = list(pairwise(histories.ptr.tolist()))
    columns = [histories.items, histories.timestamps, histories.ratings, histories.behaviors]
    events = list(zip(*(column.tolist() for column in columns), strict=True))
    assert [rows.tolist() for rows in histories] == [[event[0] for event in events[slice(*part)]] for part in ranges]
    return [(user, events[slice(*part)]) for user, part in zip(histories.user_ids, ranges, strict=True)]


@settings(max_examples=60, deadline=None)
@given(memory_datasets(min_events=3))
def test_leave_one_out_equals_the_definition(dataset):
    split, users = dataset.split(), listed(dataset.events)
    assert listed(split.train) == [(user, events[:-2]) for user, events in users]
    assert listed(split.validation.histories) == [(user, events[:-2]) for user, events in users]
    assert split.validation.targets.tolist() == [events[-2][0] for _, events in users]
    assert listed(split.test.histories) == [(user, events[:-1]) for user, events in users]
    assert split.test.targets.tolist() == [events[-1][0] for _, events in users]
    assert len(split.validation) == len(split.test) == len(split.train) == len(users)


def temporal_reference(users: list[tuple], ratios: tuple[float, float]) -> tuple[list, list, list]:
    times = sorted(event[1] for _, events in users for event in events)
    first, second = times[int(ratios[0] * len(times))], times[int(sum(ratios) * len(times))]
    train = [(user, [event for event in events if event[1] < first]) for user, events in users]
    validation, test = [], []
    for user, events in users:
        for row, event in enumerate(events):
            if row > 0 and event[1] >= first:
                (validation if event[1] < second else test).append((user, events[:row], event[0]))
    return [(user, events) for user, events in train if events], validation, test


@settings(max_examples=100, deadline=None)
@given(memory_datasets(), st.sampled_from([(0.8, 0.1), (0.5, 0.25), (0.3, 0.3)]))
def test_temporal_split_equals_the_definition(dataset, ratios):
    train, validation, test = temporal_reference(listed(dataset.events), ratios)
    if not validation or not test:
        with pytest.raises(HfGrError, match="leaves a part without cases; change the ratios"):
            dataset.split("temporal", ratios)
        return
    split = dataset.split("temporal", ratios)
    assert listed(split.train) == train
    for cases, expected in ((split.validation, validation), (split.test, test)):
        found = [(*history, target) for history, target in zip(listed(cases.histories), cases.targets, strict=True)]
        assert found == expected


def test_popularity_counts_training_events():
    dataset = InteractionDataset(Path("memory"), tiny_items(5), histories_of([[1, 1, 3], [3, 1]]), "timestamp")
    assert popularity(dataset.events, 5).tolist() == [0, 3, 0, 2, 0]


def histories_of(rows: list[list[int]]) -> Histories:
    items = np.array([item for row in rows for item in row], np.int64)
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    users = np.array([f"u{row}" for row in range(len(rows))], dtype=object)
    return Histories(users, ptr, items, np.arange(len(items)))


def test_positions_refuse_a_temporal_split(tmp_path):
    write_dataset(tmp_path / "data", tiny_interactions(), tiny_items(), source="", time="position")
    dataset = InteractionDataset.load(tmp_path / "data")
    assert dataset.time == "position"
    with pytest.raises(HfGrError, match=r"data has only positions, no clock .* use the leave_one_out split"):
        dataset.split("temporal")
    assert len(dataset.split().test) == 60


def test_bad_splits_are_refused(dataset_folder):
    dataset = InteractionDataset.load(dataset_folder)
    with pytest.raises(HfGrError, match="unknown split 'random'; use 'leave_one_out' or 'temporal'"):
        dataset.split("random")
    for ratios in ((0.0, 0.1), (0.9, 0.1), (0.5, 0.6), (0.5, 0.0)):
        with pytest.raises(HfGrError, match="must be positive and leave a share for the test"):
            dataset.split("temporal", ratios)


def test_users_with_few_events_are_counted_and_the_first_is_named():
    dataset = InteractionDataset(Path("memory"), tiny_items(), histories_of([[1, 2, 3], [4, 5], [6]]), "timestamp")
    with pytest.raises(HfGrError, match=r"2 user\(s\) have fewer than 3 events \(first: 'u1' with 2\).*--min-user"):
        dataset.split()


def test_datasets_library_reads_both_configs(dataset_folder, tmp_path):
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    interactions = load_dataset(str(dataset_folder), **options)  # the default config
    assert interactions.to_list() == tiny_interactions().to_pylist()
    items = load_dataset(str(dataset_folder), "items", **options)
    assert items.to_list() == tiny_items().to_pylist()


def test_the_card_says_where_the_data_is_from(tmp_path):
    write_dataset(tmp_path / "data", tiny_interactions(), tiny_items(), source="From a drawer.", license="cc0-1.0")
    card = (tmp_path / "data" / "README.md").read_text()
    counts = {"users": 60, "items": 40, "interactions": tiny_interactions().num_rows}
    for part in ("From a drawer.", "license: cc0-1.0", *(f"| {name} | {count} |" for name, count in counts.items())):
        assert part in card


def test_aligned_counts_in_rows_of_the_catalogue(dataset_folder):
    dataset = InteractionDataset.load(dataset_folder)
    assert dataset.aligned(list(dataset.item_ids)) is dataset
    other = ["new", *reversed(dataset.item_ids)]
    aligned = dataset.aligned(other)
    assert [other[row] for row in aligned.events.items] == [dataset.item_ids[row] for row in dataset.events.items]
    assert np.array_equal(aligned.events.ptr, dataset.events.ptr)
    taken = dataset.item_ids[dataset.events.items[3]]
    with pytest.raises(HfGrError, match=f"item '{taken}' is not in the catalogue of 39 items .*hf-gr quantize"):
        dataset.aligned([item for item in dataset.item_ids if item != taken])


def test_an_item_that_nobody_took_may_be_missing_from_the_catalogue():
    dataset = InteractionDataset(Path("memory"), tiny_items(3), histories_of([[0, 2]]), "timestamp")
    assert dataset.aligned(["i002", "i000"]).events.items.tolist() == [1, 0]


def replaced(table: pa.Table, name: str, values: list, kind: pa.DataType | None = None) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


GOOD = pa.table({"user_id": ["a", "a", "b"], "item_id": ["i000", "i001", "i000"], "timestamp": [1, 2, 3]})
BAD = {
    "no column": (GOOD.drop_columns(["timestamp"]), None, r"interactions.* has no column 'timestamp' \(it has: user"),
    "no title": (GOOD, tiny_items(2).drop_columns(["title"]), r"items.* has no column 'title' .* column map"),
    "unknown item": (
        replaced(GOOD, "item_id", ["i000", "i999", "i998"]),
        None,
        r"interactions.*2 interaction\(s\) name an item .*first: item 'i999' of user 'a'\); add it to the items",
    ),
    "repeated item": (
        GOOD,
        replaced(tiny_items(3), "item_id", ["i000", "i001", "i001"]),
        r"items.*item_id 'i001' occurs 2 times \(1 ids are repeated\); keep one row per item",
    ),
    "null user": (replaced(GOOD, "user_id", ["a", None, "b"]), None, "interactions.*'user_id' is empty in row 1"),
    "null item": (replaced(GOOD, "item_id", ["i000", "i001", None]), None, "actions.*'item_id' is empty in row 2"),
    "null item id": (GOOD, replaced(tiny_items(2), "item_id", [None, "i001"]), "items.*'item_id' is empty in row 0"),
    "no events": (GOOD.slice(0, 0), None, "interactions.* holds no interactions; check the source, or loosen"),
    "no items": (GOOD, tiny_items(2).slice(0, 0), "items.* holds no items; check the source"),
    "words for times": (
        replaced(GOOD, "timestamp", ["yesterday", "2", "3"]),
        None,
        r"interactions.*column 'timestamp' cannot be read as int64 \(.*yesterday.*\)",
    ),
    "lists for titles": (
        GOOD,
        replaced(tiny_items(2), "title", [["a"], ["b"]]),
        "items.*column 'title' cannot be read as string",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_get_one_line_when_read_and_when_written(case, tmp_path):
    interactions, items, message = BAD[case]
    items = tiny_items(2) if items is None else items
    with pytest.raises(HfGrError, match=message) as written:
        write_dataset(tmp_path / "data", interactions, items, source="")
    assert not (tmp_path / "data").exists()
    pq.write_table(interactions, tmp_path / "interactions.parquet")
    pq.write_table(items, tmp_path / "items.parquet")
    with pytest.raises(HfGrError, match=message) as read:
        InteractionDataset.load(tmp_path)
    assert str(tmp_path) in str(read.value) and ".parquet" in str(read.value)
    assert "\n" not in str(written.value) + str(read.value)


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet"])
def test_bad_files_get_one_line(name, dataset_folder):
    for content in (b"", b"user_id,item_id\n" * 10):
        (dataset_folder / name).write_bytes(content)
        with pytest.raises(HfGrError, match=f"{name} is not a Parquet file .*prepare the data again") as error:
            InteractionDataset.load(dataset_folder)
        assert "\n" not in str(error.value)
    (dataset_folder / name).unlink()
    with pytest.raises(HfGrError, match=f"{name} is missing; write the dataset folder with `hf-gr prepare`"):
        InteractionDataset.load(dataset_folder)


def test_a_bad_time_on_the_card_is_named(dataset_folder):
    card = dataset_folder / "README.md"
    card.write_text(card.read_text().replace("time: timestamp", "time: clock"))
    with pytest.raises(HfGrError, match=r"README\.md: time is 'clock'; write 'timestamp' or 'position'"):
        InteractionDataset.load(dataset_folder)
    card.unlink()
    assert InteractionDataset.load(dataset_folder).time == "timestamp"


def test_a_failed_write_leaves_the_old_dataset(dataset_folder, monkeypatch):
    before = InteractionDataset.load(dataset_folder)
    original = pq.write_table

    def full_at_the_second(table: pa.Table, file: Path) -> None:
        if file.name == "items.parquet":
            raise OSError(28, "No space left on device", str(file))
        original(table, file)

    monkeypatch.setattr(pq, "write_table", full_at_the_second)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(dataset_folder, tiny_interactions(seed=1), tiny_items(), source="")
    monkeypatch.undo()
    assert np.array_equal(InteractionDataset.load(dataset_folder).events.items, before.events.items)
    assert [p.name for p in dataset_folder.parent.iterdir()] == [dataset_folder.name]


@settings(max_examples=30, deadline=None)
@given(memory_datasets(min_events=1), st.data())
def test_cut_takes_beginnings(dataset, data):
    events = listed(dataset.events)
    users = data.draw(st.lists(st.integers(0, len(events) - 1), max_size=6))
    assume(users)
    ends = [data.draw(st.integers(0, len(events[user][1]))) for user in users]
    cut = dataset.events.cut(np.array(users), np.array(ends))
    assert listed(cut) == [(events[user][0], events[user][1][:end]) for user, end in zip(users, ends, strict=True)]
