import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import tiny_interactions, tiny_items

from hf_gr.artifacts import fingerprint, read_json
from hf_gr.dataset import FORMAT, Histories, InteractionDataset, popularity, write_dataset
from hf_gr.errors import HfGrError
from hf_gr.splits import check_split, split_name
from hf_gr.tables import numbered, row_of


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
    if draw(st.booleans()):
        columns["session_id"] = pa.array([draw(st.none() | IDS) for _ in events], pa.string())
    if draw(st.booleans()):
        columns["seconds"] = pa.array([draw(st.none() | st.integers(0, 2**15 - 1)) for _ in events], pa.int16())
        columns["tags"] = pa.array([draw(st.none() | st.lists(TITLES, max_size=2)) for _ in events])
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
    assert (events.sessions is None) == ("session_id" not in interactions.column_names)
    if events.sessions is not None:
        assert events.sessions.tolist() == [row["session_id"] for row in rows]
    assert (events.columns is None) == ("seconds" not in interactions.column_names)
    if events.columns is not None:
        assert events.columns.schema.field("seconds").type == pa.int16()
        assert events.columns.to_pylist() == [{name: row[name] for name in ("seconds", "tags")} for row in rows]


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
        sessions=np.array([f"s{row}" for row in range(len(stamps))], dtype=object),
        columns=pa.table({"dwell": pa.array(range(len(stamps)), pa.int32())}),
    )
    items = pa.table({"item_id": [f"i{row}" for row in range(len(stamps))], "title": [""] * len(stamps)})
    return InteractionDataset(Path("memory"), items, events, "timestamp")


def listed(histories: Histories) -> list[tuple]:
    """Histories as plain Python: (user, [(item, time, rating, behavior, session, dwell), …])."""
    ranges = list(pairwise(histories.ptr.tolist()))
    columns = [histories.items, histories.timestamps, histories.ratings, histories.behaviors, histories.sessions]
    columns.append(histories.columns["dwell"].to_numpy())
    events = list(zip(*(column.tolist() for column in columns), strict=True))
    assert [rows.tolist() for rows in histories] == [[event[0] for event in events[slice(*part)]] for part in ranges]
    return [(user, events[slice(*part)]) for user, part in zip(histories.user_ids, ranges, strict=True)]


@settings(max_examples=60, deadline=None)
@given(memory_datasets())
def test_leave_one_out_equals_the_definition(dataset):
    users = listed(dataset.events)
    judged = [(user, events) for user, events in users if len(events) >= 3]
    assume(judged)
    split = dataset.split()
    assert listed(split.train) == [(user, events[:-2] if len(events) >= 3 else events) for user, events in users]
    assert listed(split.validation.histories) == [(user, events[:-2]) for user, events in judged]
    assert split.validation.targets.tolist() == [events[-2][0] for _, events in judged]
    assert listed(split.test.histories) == [(user, events[:-1]) for user, events in judged]
    assert split.test.targets.tolist() == [events[-1][0] for _, events in judged]
    assert len(split.validation) == len(split.test) == len(judged)


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
    kind = "temporal" if ratios == (0.8, 0.1) else f"temporal:{ratios[0]},{ratios[1]}"
    if not (train and validation and test):
        with pytest.raises(
            HfGrError, match=r"the temporal split leaves (nothing for training|no \w+ event of a user)"
        ):
            dataset.split(kind)
        return
    split = dataset.split(kind)
    assert listed(split.train) == train
    for cases, expected in ((split.validation, validation), (split.test, test)):
        found = [(*history, target) for history, target in zip(listed(cases.histories), cases.targets, strict=True)]
        assert found == expected


def test_a_pile_of_events_at_one_time_is_told_and_the_remedy_is_true():
    """Nine in ten events carry the date of a migration."""
    dataset = memory_dataset([[5] * 9 + [6 + user] for user in range(10)])
    with pytest.raises(
        HfGrError, match=r"nothing for training, as the first 90\.0% of the events are at one time; .*"
    ):
        dataset.split("temporal")
    split = dataset.split("temporal:0.92,0.04")
    assert split.train.lengths.tolist() == [10, 10, *[9] * 8] and len(split.validation) + len(split.test) == 8


def test_a_temporal_part_without_cases_is_told():
    dataset = memory_dataset([[1, 2, 3, 4, 5, 6, 7, 8], [9], [10]])
    with pytest.raises(
        HfGrError, match=r"no validation event of a user with an earlier one; try other shares \(--split"
    ):
        dataset.split("temporal")
    assert dataset.split("temporal:0.5,0.2").validation.targets.tolist() == [5, 6]


def test_cases_are_views_of_one_history():
    """A user of 3,000 events costs 3,000, not four and a half million."""
    dataset = memory_dataset([list(range(3000))])
    split = dataset.split("temporal:0.1,0.4")
    for cases in (split.validation, split.test):
        assert cases.events is dataset.events and len(cases) in (1200, 1500)
        some = np.array([7, 0, 7])
        taken = cases.take(some)
        assert taken.targets.tolist() == cases.targets[some].tolist()
        for events in (1, 5, 10_000):
            for known, end in zip(taken.latest(events), taken.ends, strict=True):
                assert known.tolist() == list(range(max(0, end - events), end))
        assert [known.tolist() for known in taken] == [list(range(end)) for end in taken.ends]
        assert all(known.base is not None for known in taken)  # nothing is copied
        assert listed(taken.histories) == listed(dataset.events.cut(cases.users[some], cases.ends[some]))


def memory_dataset(times: list[list[int]]) -> InteractionDataset:
    """Users whose events have these times, every event of an item of its own."""
    lengths = [len(user) for user in times]
    stamps = np.array([time for user in times for time in user], np.int64)
    events = Histories(
        np.array([f"u{row}" for row in range(len(times))], dtype=object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.arange(len(stamps)),
        stamps,
        np.arange(len(stamps), dtype=np.float32),
        np.array([f"b{row}" for row in range(len(stamps))], dtype=object),
        sessions=np.array([f"s{row}" for row in range(len(stamps))], dtype=object),
        columns=pa.table({"dwell": pa.array(range(len(stamps)), pa.int32())}),
    )
    items = pa.table({"item_id": [f"i{row}" for row in range(len(stamps))], "title": [""] * len(stamps)})
    return InteractionDataset(Path("memory"), items, events, "timestamp")


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
    with pytest.raises(HfGrError, match=r"data has only positions, no clock: .* use the leave_one_out split"):
        dataset.split("temporal")
    assert len(dataset.split().test) == 60


def test_bad_splits_are_refused(dataset_folder):
    dataset = InteractionDataset.load(dataset_folder)
    for kind in (
        "random",
        "",
        "temporal:",
        "temporal:0.8",
        "temporal:a,b",
        "temporal:.1,.2,.3",
        "leave_one_out:.5,.1",
    ):
        for refuses in (dataset.split, check_split):
            with pytest.raises(HfGrError, match=rf"unknown split '{kind}'; use 'leave_one_out', 'temporal', '"):
                refuses(kind)
    for shares in ("0,.1", "0.9,0.1", "0.5,0.6", "0.5,0", "nan,0.1"):
        with pytest.raises(HfGrError, match="must be positive and leave a share for the test"):
            dataset.split(f"temporal:{shares}")


def test_one_split_has_one_name():
    for kind in ("temporal", "temporal:0.8,0.1", "temporal:.80, 1e-1"):
        assert split_name(kind) == "temporal"
    assert split_name("temporal:.7,.150") == "temporal:0.7,0.15"
    assert split_name("temporal:0.8,0.15") == "temporal:0.8,0.15"
    assert split_name("leave_one_out") == "leave_one_out"
    with pytest.raises(HfGrError, match="unknown split 'random'"):
        split_name("random")


def test_a_log_in_which_nobody_has_three_events_is_refused():
    dataset = InteractionDataset(Path("memory"), tiny_items(), histories_of([[4, 5], [6]]), "timestamp")
    with pytest.raises(HfGrError, match=r"memory: none of 2 user\(s\) has 3 events, but leave-one-out needs one each"):
        dataset.split()


def test_datasets_library_reads_both_configs(dataset_folder, tmp_path):
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    interactions = load_dataset(str(dataset_folder), **options)  # the default config
    assert interactions.to_list() == tiny_interactions().to_pylist()
    items = load_dataset(str(dataset_folder), "items", **options)
    assert items.to_list() == tiny_items().to_pylist()


def people() -> tuple[pa.Table, pa.Table]:
    """Users and exposures beside [`GOOD`]: one user and one exposed stranger without an event."""
    users = pa.table({"user_id": [7, 1], "tags": [["a"], None]})
    shown = {"user_id": ["a", "stranger", "b"], "item_id": ["i001", "i000", "i001"], "timestamp": [3, 1, 2]}
    return users, pa.table(shown | {"clicked": [1, 0, 1], "slot": pa.array([1, None, 3], pa.int8())})


def test_users_and_exposures_go_with_the_folder(tmp_path):
    users, exposures = people()
    counts = write_dataset(tmp_path / "with", GOOD, tiny_items(2), users, exposures.to_pandas(), source="")
    assert {name: counts[name] for name in list(counts)[6:]} == {
        "described_users": 2,
        "undescribed_users": 2,
        "exposures": 3,
        "clicks": 2,
        "users_without_events": 3,
    }
    data = InteractionDataset.load(tmp_path / "with")
    assert data.users.to_pylist() == [{"user_id": "7", "tags": ["a"]}, {"user_id": "1", "tags": None}]
    expected = [row | {"clicked": row["clicked"] == 1} for row in exposures.to_pylist()]
    assert [row | {"slot": row["slot"] and int(row["slot"])} for row in data.exposures.to_pylist()] == expected
    assert data.exposures.schema.field("clicked").type == pa.bool_()
    write_dataset(tmp_path / "without", GOOD, tiny_items(2), source="")
    bare = InteractionDataset.load(tmp_path / "without")
    assert bare.users is None and bare.exposures is None
    assert fingerprint(tmp_path / "with") != fingerprint(tmp_path / "without")
    for name in ("users", "exposures"):
        options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
        assert len(load_dataset(str(tmp_path / "with"), name, **options)) == (3 if name == "exposures" else 2)


def test_bad_users_and_exposures_get_one_line(tmp_path):
    users, shown = people()
    unknown = r"exposures.*1 exposure\(s\) name an item that is not .*first: item 'i009' of user 'b'\); add it"
    bad = [
        (replaced(users, "user_id", [7, 7]), shown, r"users.*user_id '7' stands in rows 0 and 1 .*one row for a user"),
        (replaced(users, "user_id", [7, None]), shown, r"users.*'user_id' is empty in row 1"),
        (users.drop_columns(["user_id"]), shown, r"users.* has no column 'user_id' \(it has: tags\)"),
        (users, replaced(shown, "item_id", ["i000", "i001", "i009"]), unknown),
        (users, replaced(shown, "clicked", [0, 1, 2]), r"exposures.*'clicked' holds 2; give true or false, or 1 or 0"),
        (users, replaced(shown, "clicked", ["y", "n", "n"]), r"exposures.*'clicked' holds 'y'; give true or false"),
        (users, shown.drop_columns(["clicked"]), r"exposures.* has no column 'clicked'"),
        (users, replaced(shown, "timestamp", [1, None, 2]), r"exposures.*'timestamp' is empty in row 1"),
    ]
    for number, (some, seen, message) in enumerate(bad):
        with pytest.raises(HfGrError, match=message):
            write_dataset(tmp_path / "bad", GOOD, tiny_items(2), some, seen, source="")
        folder = tmp_path / str(number)
        write_dataset(folder, GOOD, tiny_items(2), users, shown, source="")
        data = InteractionDataset.load(folder)
        said = pq.read_schema(folder / "exposures.parquet").metadata
        pq.write_table(some, folder / "users.parquet")
        pq.write_table(seen.replace_schema_metadata(said), folder / "exposures.parquet")
        with pytest.raises(HfGrError, match=message):  # when first asked for
            _ = data.users, data.exposures
    pq.write_table(shown, folder / "exposures.parquet")
    with pytest.raises(HfGrError, match=r"exposures\.parquet does not say that its times are as those of the inter"):
        _ = InteractionDataset.load(folder).exposures


def test_the_card_says_where_the_data_is_from(tmp_path):
    write_dataset(tmp_path / "data", tiny_interactions(), tiny_items(), source="From a drawer.", license="cc0-1.0")
    card = (tmp_path / "data" / "README.md").read_text()
    counts = {"users": 60, "items": 40, "interactions": tiny_interactions().num_rows}
    for part in (
        "From a drawer.",
        "license: cc0-1.0",
        "in UTC, from 1970-01-01 to 1970-01-01",
        *(f"| {name} | {count} |" for name, count in counts.items()),
    ):
        assert part in card


def test_aligned_counts_in_rows_of_the_catalog(dataset_folder):
    dataset = InteractionDataset.load(dataset_folder)
    assert dataset.aligned(list(dataset.item_ids)) is dataset
    other = ["new", *reversed(dataset.item_ids)]
    aligned = dataset.aligned(other)
    assert [other[row] for row in aligned.events.items] == [dataset.item_ids[row] for row in dataset.events.items]
    assert np.array_equal(aligned.events.ptr, dataset.events.ptr)
    taken = dataset.item_ids[dataset.events.items[3]]
    with pytest.raises(HfGrError, match=f"item '{taken}' is not in the catalog of 39 items .*hf-gr quantize"):
        dataset.aligned([item for item in dataset.item_ids if item != taken])


def test_an_item_that_nobody_took_may_be_missing_from_the_catalog():
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
        r"items.*item_id 'i001' stands in rows 1 and 2 \(the first row is 0\); keep one row for an item",
    ),
    "repeated items": (
        GOOD,
        replaced(tiny_items(5), "item_id", ["i000", "i001", "i000", "i001", "i000"]),
        r"'i000' stands in rows 0 and 2 \(the first row is 0; 1 more id\(s\) are repeated\); keep one",
    ),
    "large float ids": (
        replaced(GOOD, "user_id", [1.0, 2.0**53, 3.0]),
        None,
        r"interactions.*'user_id' is 9007199254740992\.0 in row 1, a double that is no whole .* strings or integers",
    ),
    "large float32 ids": (
        replaced(GOOD, "user_id", [2.0**24, 2.0, 3.0], pa.float32()),
        None,
        r"interactions.*'user_id' is 16777216\.0 in row 0, a float that is no whole number or too large",
    ),
    "halves for ids": (replaced(GOOD, "user_id", [1.0, 2.0, 2.5]), None, r"'user_id' is 2\.5 in row 2, a double"),
    "no number for an id": (replaced(GOOD, "user_id", [1.0, float("nan"), 2.0]), None, "'user_id' is nan in row 1"),
    "dates for ids": (
        replaced(GOOD, "user_id", [1, 2, 3], pa.timestamp("s")),
        None,
        r"interactions.*column 'user_id' holds timestamp\[m?s\], but ids are strings or whole numbers; convert it",
    ),
    "large float item ids": (GOOD, replaced(tiny_items(2), "item_id", [0.0, 1e17]), r"'item_id' is 1e\+17 in row 1"),
    "text for categories": (
        GOOD,
        replaced(tiny_items(2), "categories", [None, "tools|a"]),
        r"items.*column 'categories' holds string \(first: 'tools\|a'\); give .* such as \['tools', 'a'\]",
    ),
    "a null among the categories": (
        GOOD,
        replaced(tiny_items(2), "categories", [None, ["tools", None]]),
        r"items.*a category of item 'i001' is empty \(null\); drop it",
    ),
    "lists of lists for categories": (
        GOOD,
        replaced(tiny_items(2), "categories", [[], [["tools"]]]),
        r"items.*column 'categories' cannot be read as list<item: string>",
    ),
    "halves for sessions": (
        GOOD.append_column("session_id", pa.array([1.0, None, 2.5])),
        None,
        r"'session_id' is 2\.5 in row 1, a double",
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
    said = interactions.replace_schema_metadata({"hf_gr.time": "microseconds"})
    pq.write_table(said, tmp_path / "interactions.parquet")
    pq.write_table(items, tmp_path / "items.parquet")
    with pytest.raises(HfGrError, match=message) as read:
        InteractionDataset.load(tmp_path)
    assert str(tmp_path) in str(read.value) and ".parquet" in str(read.value)
    assert "\n" not in str(written.value) + str(read.value)


def test_columns_of_one_name_are_refused(tmp_path):
    twice = GOOD.append_column("dwell", pa.array([1, 2, 3])).append_column("dwell", pa.array([1, 2, 3]))
    with pytest.raises(HfGrError, match="interactions have 2 columns 'dwell'; keep one"):
        write_dataset(tmp_path / "data", twice, tiny_items(2), source="")


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


def test_what_the_times_are_stands_in_the_file_and_not_on_the_card(tmp_path):
    prints = []
    for time in ("timestamp", "position"):
        folder = tmp_path / time
        write_dataset(folder, tiny_interactions(), tiny_items(), source="", time=time)
        prints.append(fingerprint(folder))
        for card in ("time: position", "time: timestamp", "no card", None):
            (folder / "README.md").unlink(missing_ok=True)
            if card is not None:
                (folder / "README.md").write_text(f"---\n{card}\n---\n")
            assert InteractionDataset.load(folder).time == time
    assert prints[0] != prints[1]


def old_folder(folder: Path, times: list[int], card: str | None) -> Path:
    """As folders were written before: nothing in the schema, seconds or positions, said on the card alone."""
    folder.mkdir()
    pq.write_table(
        pa.table({"user_id": ["u"] * 3, "item_id": ["i000", "i001", "i002"], "timestamp": times}),
        folder / "interactions.parquet",
    )
    pq.write_table(tiny_items(3), folder / "items.parquet")
    if card is not None:
        (folder / "README.md").write_text(f"---\ntime: {card}\n---\n")
    return folder


def test_folders_of_before_are_read_rightly_or_refused(tmp_path):
    seconds = InteractionDataset.load(old_folder(tmp_path / "seconds", [-1, 0, 881250949], "timestamp"))
    assert seconds.time == "timestamp"
    assert seconds.events.timestamps.tolist() == [-(10**6), 0, 881250949 * 10**6]
    positions = InteractionDataset.load(old_folder(tmp_path / "positions", [0, 1, 2], "position"))
    assert positions.time == "position" and positions.events.timestamps.tolist() == [0, 1, 2]
    for card in (None, "clock"):
        with pytest.raises(HfGrError, match=r"parquet does not say whether `timestamp` holds times or positions"):
            InteractionDataset.load(old_folder(tmp_path / str(card), [0, 1, 2], card))
    with pytest.raises(HfGrError, match=r"'timestamp' cannot be read as seconds .*; prepare it again"):
        InteractionDataset.load(old_folder(tmp_path / "far", [0, 1, 2**60], "timestamp"))
    folder = old_folder(tmp_path / "foreign", [0, 1, 2], "timestamp")
    table = pq.read_table(folder / "interactions.parquet").replace_schema_metadata({"hf_gr.time": "weeks"})
    pq.write_table(table, folder / "interactions.parquet")
    with pytest.raises(HfGrError, match="says that its times are 'weeks', which is unknown here; prepare it again"):
        InteractionDataset.load(folder)


def test_the_format_stands_in_the_file_and_a_newer_one_is_refused(dataset_folder):
    file = dataset_folder / "interactions.parquet"
    table = pq.read_table(file)
    assert table.schema.metadata[b"hf_gr.format"] == str(FORMAT).encode()
    for version, fine in [("1", True), (str(FORMAT), True), (str(FORMAT + 1), False), ("10", False), ("x", False)]:
        pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"hf_gr.format": version}), file)
        if fine:
            assert InteractionDataset.load(dataset_folder).events.items.size == table.num_rows
            continue
        with pytest.raises(
            HfGrError, match=rf"parquet is of dataset format {version}, .* up to {FORMAT}; update"
        ) as e:
            InteractionDataset.load(dataset_folder)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.timestamp("s"), [-1_000_000, 1_577_934_245_000_000]),
        (pa.timestamp("ms"), [-999_000, 1_577_934_245_123_000]),
        (pa.timestamp("us", "Europe/Berlin"), [-998_999, 1_577_934_245_123_456]),
        (pa.timestamp("ns", "UTC"), [-998_999, 1_577_934_245_123_456]),  # cut downwards, on both sides of 1970
        (pa.date32(), [-86_400_000_000, 1_577_923_200_000_000]),
        (pa.date64(), [-86_400_000_000, 1_577_923_200_000_000]),
    ],
)
def test_dates_and_times_of_any_unit_become_microseconds(tmp_path, kind, expected):
    moments = pa.array([-998_998_001, 1_577_934_245_123_456_789])
    if pa.types.is_date(kind):
        column = pc.floor_temporal(moments.cast(pa.timestamp("ns")), unit="day").cast(kind)
    else:
        per = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[kind.unit]
        column = pa.array([moment.as_py() // per for moment in moments]).cast(kind)
    table = pa.table({"user_id": ["u"] * 2, "item_id": ["i000", "i001"], "timestamp": column})
    write_dataset(tmp_path / "data", table, tiny_items(2), source="")
    assert InteractionDataset.load(tmp_path / "data").events.timestamps.tolist() == expected
    assert pq.read_schema(tmp_path / "data" / "interactions.parquet").field("timestamp").type == pa.int64()
    with pytest.raises(HfGrError, match=r"column 'timestamp' holds .*, not positions; leave out time='position'"):
        write_dataset(tmp_path / "positions", table, tiny_items(2), source="", time="position")


def test_bad_times_are_told(tmp_path):
    with pytest.raises(HfGrError, match="time is 'clock'; use 'timestamp' or 'position'"):
        write_dataset(tmp_path / "data", tiny_interactions(), tiny_items(), source="", time="clock")
    far = replaced(GOOD, "timestamp", [1, 2, 2**62], pa.timestamp("s"))
    with pytest.raises(HfGrError, match="column 'timestamp' does not fit into microseconds"):
        write_dataset(tmp_path / "data", far, tiny_items(2), source="")


def test_data_frames_are_taken(tmp_path):
    events = pd.DataFrame({"user_id": [7, 7], "item_id": [1.0, 2.0], "timestamp": pd.to_datetime(["2020-01-02"] * 2)})
    items = pd.DataFrame({"item_id": [2, 1], "title": ["b", "a"], "categories": [["x"], None]}, index=["p", "q"])
    write_dataset(tmp_path / "data", events, items, source="")
    dataset = InteractionDataset.load(tmp_path / "data")
    assert list(dataset.events.user_ids) == ["7"] and dataset.item_ids == ["2", "1"]
    assert dataset.events.items.tolist() == [1, 0] and dataset.categories == [["x"], []]
    assert dataset.events.timestamps.tolist() == [1_577_923_200_000_000] * 2
    assert dataset.items.column_names == ["item_id", "title", "categories"]
    for bad, what in (([1, 2], "interactions"), ("file.csv", "interactions")):
        with pytest.raises(HfGrError, match=rf"{what} are no table \(.*\); give a pyarrow\.Table or a DataFrame"):
            write_dataset(tmp_path / "data", bad, items, source="")


def test_columns_that_are_not_ours_stay(tmp_path):
    table = tiny_interactions().append_column("dwell", pa.array(np.arange(tiny_interactions().num_rows)))
    write_dataset(tmp_path / "data", table, tiny_items().append_column("in_stock", pa.array([True] * 40)), source="")
    assert pq.read_table(tmp_path / "data" / "interactions.parquet")["dwell"].to_pylist() == [*range(len(table))]
    assert InteractionDataset.load(tmp_path / "data").items["in_stock"].to_pylist() == [True] * 40


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        (pa.array([7, 7, None]), ["7", "7", None]),
        (pa.array([7.0, None, 8.0]), ["7", None, "8"]),  # as pandas writes whole numbers with gaps
        (pa.array(["07", "7", None]).dictionary_encode(), ["07", "7", None]),
        (pa.nulls(3), [None, None, None]),
    ],
)
def test_session_ids_are_texts_and_may_be_missing(tmp_path, sessions, expected):
    write_dataset(tmp_path / "data", GOOD.append_column("session_id", sessions), tiny_items(2), source="")
    assert pq.read_table(tmp_path / "data" / "interactions.parquet")["session_id"].to_pylist() == expected
    assert InteractionDataset.load(tmp_path / "data").events.sessions.tolist() == expected


def test_ties_and_short_users_are_counted(tmp_path):
    """Users a, b, c; of a the last two are at one time, of b the first two; c has a single event at b's last time."""
    rows = [("a", 1), ("b", 5), ("a", 2), ("b", 5), ("a", 2), ("b", 9), ("c", 9)]
    table = pa.table({"user_id": [u for u, _ in rows], "item_id": ["i000"] * 7, "timestamp": [t for _, t in rows]})
    counts = write_dataset(tmp_path / "data", table, tiny_items(2), source="")
    assert counts == {
        "users": 3,
        "items": 2,
        "interactions": 7,
        "same_time_events": 2,
        "same_time_users": 1,
        "short_users": 1,
    }
    assert read_json(tmp_path / "data" / "manifest.json")["counts"] == counts
    card = (tmp_path / "data" / "README.md").read_text()
    for line in (
        "| events at the time of the user's previous one | 2 |",
        "| users whose last two events are at one time | 1 |",
        "| users with fewer than 3 events (leave-one-out does not judge them) | 1 |",
    ):
        assert line in card


def test_more_text_of_ids_than_one_chunk_may_hold():
    """2.2 GiB of ids as Arrow counts them, 22 chunks of the same 100 MiB in memory."""
    chunk = pa.array([f"{row:05d}" * 4_000 for row in range(5_243)])
    column = pa.chunked_array([chunk] * 22)
    assert column.nbytes > 2**31
    numbers, values = numbered(column)
    assert values.to_pylist() == chunk.to_pylist()
    assert np.array_equal(numbers, np.tile(np.arange(len(chunk)), 22))
    assert np.array_equal(row_of(column.slice(0, 6_000), pa.chunked_array([chunk[::-1]])), 5_242 - numbers[:6_000])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_frame_equals_an_independent_reference(data):
    """Ids of several types, times of several types and units with many ties, users of one event: pandas agrees."""
    size = data.draw(st.integers(1, 30))
    ids = data.draw(
        st.sampled_from([["0012", "12", " 12"], ["1", "2", "3"], ["9007199254740993", "9007199254740992"]])
    )
    kind = data.draw(st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]))
    users = pa.array(data.draw(st.lists(st.sampled_from(ids), min_size=size, max_size=size))).cast(kind)
    numbers = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    kinds = [pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.decimal128(20, 0), pa.string()]
    items = pa.array(numbers).cast(data.draw(st.sampled_from(kinds)))
    moments = data.draw(st.lists(st.integers(-3, 3) | st.integers(0, 2**50), min_size=size, max_size=size))
    times = pa.array(moments).cast(
        data.draw(st.sampled_from([pa.int64(), pa.timestamp("us"), pa.timestamp("us", "UTC")]))
    )
    chunks = [0, *sorted(data.draw(st.lists(st.integers(0, size), max_size=3))), size]
    table = pa.concat_tables(
        pa.table({"user_id": users, "item_id": items, "timestamp": times}).slice(a, b - a) for a, b in pairwise(chunks)
    )
    known = pa.table({"item_id": pa.array(range(5)), "title": ["t"] * 5})
    with tempfile.TemporaryDirectory() as folder:
        counts = write_dataset(Path(folder) / "data", table, known, source="")
        dataset = InteractionDataset.load(Path(folder) / "data")

    frame = pd.DataFrame({"user": users.to_pylist(), "item": numbers, "time": moments})
    frame = frame.sort_values("time", kind="stable")
    per_user = dict(iter(frame.groupby("user", sort=False)))
    gaps = frame.groupby("user").time.diff()
    assert counts["same_time_events"] == int((gaps == 0).sum())
    assert counts["same_time_users"] == sum(
        len(part) > 1 and part.time.diff().iloc[-1] == 0 for part in per_user.values()
    )
    assert counts["short_users"] == sum(len(part) < 3 for part in per_user.values())
    read = {user: list(zip(i, t, strict=True)) for user, i, t in events_of(dataset.events)}
    assert read == {user: list(zip(part.item, part.time, strict=True)) for user, part in per_user.items()}
    judged = {user: part for user, part in per_user.items() if len(part) >= 3}
    if not judged:
        with pytest.raises(HfGrError, match=r"none of \d+ user\(s\) has 3 events, but leave-one-out needs one each"):
            dataset.split()
        return
    split = dataset.split()
    taught = {user: i for user, i, _ in events_of(split.train)}
    assert taught == {user: part.item.tolist()[: -2 if user in judged else None] for user, part in per_user.items()}
    for cases, back in ((split.validation, 2), (split.test, 1)):
        found = zip(events_of(cases.histories), cases.targets.tolist(), strict=True)
        assert {user: (i, target) for (user, i, _), target in found} == {
            user: (part.item.tolist()[:-back], part.item.tolist()[-back]) for user, part in judged.items()
        }


def events_of(histories: Histories) -> list[tuple[str, list[int], list[int]]]:
    return [
        (user, histories.items[start:end].tolist(), histories.timestamps[start:end].tolist())
        for user, (start, end) in zip(histories.user_ids, pairwise(histories.ptr.tolist()), strict=True)
    ]


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
