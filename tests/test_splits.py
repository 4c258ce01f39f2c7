"""Every kind of split against pandas, and one line for what the data does not allow."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_items

from hf_gr.dataset import Histories, InteractionDataset, write_dataset
from hf_gr.errors import HfGrError
from hf_gr.splits import check_split, read_split, split_name
from hf_gr.tables import texts


HOURS = 3_600 * 10**6
START = int(np.datetime64("2014-01-01", "us").astype(int))
BASES = ["leave_one_out", "temporal", "temporal:0.5,0.25", "temporal:2014-01-02,2014-01-03T12:00", "session"]
BASES += ["column:part"]
TARGETS = ["", "@buy", "@view,buy"]


def dataset_of(frame: pd.DataFrame, time: str = "timestamp") -> InteractionDataset:
    """A dataset in memory of events in order (user, time, …); every event is of an item of its own."""
    users, lengths = np.unique(frame.user.to_numpy(str), return_counts=True)
    events = Histories(
        users.astype(object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.arange(len(frame)),
        frame.time.to_numpy(np.int64),
        behaviors=texts(pa.chunked_array([pa.array(frame.behavior, pa.string())])),
        sessions=texts(pa.chunked_array([pa.array(frame.session, pa.string())])),
        columns=pa.table({"part": pa.array(frame.part, pa.string())}),
    )
    return InteractionDataset(Path("memory"), tiny_items(max(len(frame), 1)), events, time)


@st.composite
def frames(draw) -> pd.DataFrame:
    """Events of a few users in time order with ties; each user's parts follow one another; sessions come back."""
    rows = []
    for user in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 9))
        times = sorted(draw(st.lists(st.integers(0, 20), min_size=size, max_size=size)))
        parts = sorted(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
        sessions = draw(st.lists(st.sampled_from("pqr"), min_size=size, max_size=size))
        if draw(st.booleans()):
            sessions.sort()
        behaviors = draw(st.lists(st.sampled_from(["view", "buy", None]), min_size=size, max_size=size))
        names = [("train", "validation", "test")[part] for part in parts]
        moments = [START + 6 * HOURS * time for time in times]
        rows += zip([f"u{user}"] * size, moments, sessions, behaviors, names, strict=True)
    return pd.DataFrame(rows, columns=["user", "time", "session", "behavior", "part"])


def reference(frame: pd.DataFrame, split: str) -> tuple[dict, list, list]:
    """Items of the training part by user, and (user, known items, target) of every case of validation and of test."""
    base, _, names = split.partition("@")
    frame = frame.assign(target=frame.behavior.isin(names.split(",")) if names else True)
    if base == "leave_one_out":
        part = pd.Series("train", frame.index)
        for _, group in frame.groupby("user"):
            targets = group.index[group.target]
            if len(targets) >= 2 and targets[-2] > group.index[0]:
                part[group.index[group.index >= targets[-2]]] = "validation"
                part[group.index[group.index >= targets[-1]]] = "test"
    elif base == "session":
        part = pd.Series("train", frame.index)
        for _, group in frame.groupby("user"):
            runs = (group.session != group.session.shift()).cumsum()
            if runs.max() >= 3:
                part[group.index[runs == runs.max() - 1]] = "validation"
                part[group.index[runs == runs.max()]] = "test"
    elif base == "column:part":
        part = frame.part
    else:
        bounds = (base.partition(":")[2] or "0.8,0.1").split(",")
        if bounds[0].startswith("2014"):
            first, second = (pd.Timestamp(bound, tz="UTC").value // 1000 for bound in bounds)
        else:
            times, shares = frame.time.sort_values().to_numpy(), [float(bound) for bound in bounds]
            first, second = times[int(shares[0] * len(times))], times[int(sum(shares) * len(times))]
        part = frame.time.map(lambda time: "train" if time < first else "validation" if time < second else "test")
    train = {user: group.index.tolist() for user, group in frame[part == "train"].groupby("user")}
    cases: dict[str, list] = {"validation": [], "test": []}
    for user, group in frame.groupby("user"):
        for row in group.index[1:]:
            if part[row] != "train" and frame.target[row]:
                cases[part[row]].append((user, list(range(group.index[0], row)), row))
    return train, cases["validation"], cases["test"]


def cases_of(cases) -> list:
    return [(u, known.tolist(), int(t)) for u, known, t in zip(cases.user_ids, cases, cases.targets, strict=True)]


@pytest.mark.parametrize("base", BASES)
@settings(max_examples=25, deadline=None)
@given(frame=frames(), targets=st.sampled_from(TARGETS))
def test_a_split_equals_its_definition(base, frame, targets):
    dataset, split = dataset_of(frame), base + targets
    known = set(frame.behavior.dropna())
    train, validation, test = reference(frame, split)
    if not (train and validation and test) or not set(targets[1:].split(",")) - {""} <= known:
        with pytest.raises(HfGrError, match=r"^memory[: ].*") as error:
            dataset.split(split)
        assert "\n" not in str(error.value)
        return
    found = dataset.split(split)
    assert dict(zip(found.train.user_ids, map(list, found.train), strict=True)) == train
    assert cases_of(found.validation) == validation and cases_of(found.test) == test


def test_the_reference_splits_something():
    """Else the test above could pass on refusals alone."""
    frame = pd.DataFrame({"user": ["a"] * 12, "time": [START + 6 * HOURS * row for row in range(12)]})
    frame["session"], frame["behavior"] = list("pppqqqpprrrr"), ["view", "buy"] * 6
    frame["part"] = ["train"] * 6 + ["validation"] * 3 + ["test"] * 3
    for base in BASES:
        for targets in TARGETS:
            train, validation, test = reference(frame, base + targets)
            assert train and validation and test, base + targets
            found = dataset_of(frame).split(base + targets)
            assert cases_of(found.test) == test and cases_of(found.validation) == validation
    assert [target for _, _, target in reference(frame, "leave_one_out@view")[2]] == [10]
    assert [target for _, _, target in reference(frame, "session@buy")[2]] == [9, 11]


@pytest.mark.parametrize("base", BASES)
@settings(max_examples=25, deadline=None)
@given(frame=frames(), targets=st.sampled_from(TARGETS))
def test_what_training_may_know_of_exposures_equals_its_definition(base, frame, targets):
    """Of no user anything at or after the first event held out, nor after the last that teaches; by one date for all
    where there is one. Asked of every user at every time, and of one user without events."""
    try:
        split = dataset_of(frame).split(base + targets)
    except HfGrError:
        return
    times = [START + 6 * HOURS * step for step in range(-1, 22)]
    train, _, _ = reference(frame, base + targets)
    taught = frame.index.isin([row for rows in train.values() for row in rows])
    expected = []
    for user in ("u0", "u1", "u2", "u3", "nobody"):
        own = frame.user == user
        for time in times:
            if base.startswith("temporal"):
                dates = base.startswith("temporal:2014")
                expected.append(time < (START + 24 * HOURS if dates else min(frame.time[~taught])))
            else:
                known, held_out = frame.time[own & taught].tolist(), frame.time[own & ~taught].tolist()
                expected.append(bool(known) and time <= max(known) and all(time < later for later in held_out))
    users = pa.chunked_array([pa.array(np.repeat(["u0", "u1", "u2", "u3", "nobody"], len(times)), pa.string())])
    assert split.teaches(users, np.tile(times, 5)).tolist() == expected


def test_the_training_part_of_exposures_keeps_their_columns_and_order(tmp_path):
    log = pa.table({"user_id": ["a"] * 4 + ["b"] * 2, "item_id": list("xyzxyz"), "timestamp": [1, 2, 3, 4, 2, 9]})
    items = pa.table({"item_id": list("xyz"), "title": list("xyz")})
    shown = {"user_id": list("abaaacb"), "item_id": list("xyzxyzx"), "timestamp": [2, 9, 1, 3, 4, 1, 10]}
    exposures = pa.table(shown | {"clicked": [True, False] * 3 + [True], "slot": range(7)})
    write_dataset(tmp_path / "with", log, items, exposures=exposures, source="")
    dataset = InteractionDataset.load(tmp_path / "with")
    for kind, rows in [("leave_one_out", [0, 1, 2]), ("temporal:0.5,0.3", [0, 2, 5])]:
        assert dataset.training_exposures(dataset.split(kind)).to_pylist() == exposures.take(rows).to_pylist()
    write_dataset(tmp_path / "without", log, items, source="")
    dataset = InteractionDataset.load(tmp_path / "without")
    assert dataset.training_exposures(dataset.split()) is None


FRAME = pd.DataFrame(
    {
        "user": ["a"] * 3 + ["b"] * 3,
        "time": [START + row * 24 * HOURS for row in range(6)],
        "session": ["p", "q", "r", "p", None, "q"],
        "behavior": ["view"] * 6,
        "part": ["train", "validation", "test", "train", "test", "validation"],
    }
)
BAD = [
    (
        "session",
        FRAME,
        r"'session_id' is empty in 1 event\(s\) \(first: of user 'b'\), but the session split needs it",
    ),
    (
        "session",
        FRAME.assign(session="p"),
        r"none of 2 user\(s\) has 3 sessions, but the session split needs one each",
    ),
    ("column:part", FRAME, r"an event of validation comes after one of test of user 'b': what is learned would be"),
    (
        "column:part",
        FRAME.assign(part="dev"),
        r"'part' says 'dev' of an event of user 'a' \(6 such event\(s\)\); write",
    ),
    ("column:part", FRAME.assign(part=None), r"column 'part' says None of an event of user 'a' \(6 such"),
    ("column:fold", FRAME, r"no column 'fold' to split by \(further columns of the events: part\); .* --keep fold"),
    (
        "column:part",
        FRAME.assign(part="test"),
        r"the column split leaves nothing for training; name other events",
    ),
    (
        "column:part",
        FRAME.assign(part="train"),
        r"leaves no validation event of a user with an earlier one; name other",
    ),
    ("leave_one_out@buy", FRAME, r"no event is of behavior 'buy'; the behaviors are: view"),
    (
        "leave_one_out@buy",
        FRAME.assign(behavior=["buy", "view", "buy"] * 2),
        r"none of 2 .* then two of behavior 'buy'",
    ),
    (
        "temporal:2013-01-01,2014-01-02",
        FRAME,
        r"the events are of 2014-01-01 to 2014-01-06; let validation and test of",
    ),
    (
        "temporal:2014-01-02,2014-02-01",
        FRAME,
        r"let validation and test of temporal:2014-01-02,2014-02-01 begin within",
    ),
]


@pytest.mark.parametrize(("split", "frame", "message"), BAD)
def test_what_the_data_does_not_allow_is_told(split, frame, message):
    with pytest.raises(HfGrError, match=message) as error:
        dataset_of(frame).split(split)
    assert str(error.value).startswith("memory") and "\n" not in str(error.value)


def test_missing_columns_are_told():
    events = dataset_of(FRAME).events
    bare = Histories(events.user_ids, events.ptr, events.items, events.timestamps)
    dataset = InteractionDataset(Path("memory"), tiny_items(6), bare, "timestamp")
    for split, message in [
        ("session", "memory has no column 'session_id', which the session split needs"),
        ("column:part", r"memory has no column 'part' to split by \(further columns of the events: none\)"),
        ("temporal@buy", "memory has no column 'behavior', so that no event is a 'buy'; leave the @ out"),
    ]:
        with pytest.raises(HfGrError, match=message):
            dataset.split(split)


def test_positions_have_no_dates():
    with pytest.raises(HfGrError, match="has only positions, no clock"):
        dataset_of(FRAME, "position").split("temporal:2014-01-02,2014-01-03")


def test_one_split_has_one_name_and_one_training_part():
    for text, name, training in [
        ("leave_one_out@buy", "leave_one_out@buy", "leave_one_out@buy"),
        ("session@ view,buy,view", "session@buy,view", "session"),
        ("temporal:.8,0.1@buy", "temporal@buy", "temporal"),
        ("temporal:2014-01-01T00:00, 2014-06-01", "temporal:2014-01-01,2014-06-01", "temporal:2014-01-01,2014-06-01"),
        ("temporal:2014-01-01,2014-01-01T06:30@a", "temporal:2014-01-01,2014-01-01T06:30:00@a", None),
        ("column:my part@buy", "column:my part@buy", "column:my part"),
        ("column:a:b", "column:a:b", "column:a:b"),
    ]:
        assert split_name(text) == split_name(name) == name
        assert read_split(text).training_name == (training or name.partition("@")[0])


UNKNOWN = [
    "session:3",
    "column",
    "column:",
    "leave_one_out@",
    "@buy",
    "temporal@a,",
    "temporal:2014-01-01",
    "session@",
]
UNKNOWN += ["temporal:2014-13-01,2015-01-01", "temporal:2014-01-01,0.5", "temporal:2014-01-01Z,2014-02-01Z", "days"]


@pytest.mark.parametrize("split", UNKNOWN)
def test_other_splits_are_unknown(split):
    with pytest.raises(HfGrError, match=r"unknown split '.*'; use 'leave_one_out', 'temporal',") as error:
        check_split(split)
    assert repr(split) in str(error.value)


def test_dates_ascend():
    with pytest.raises(HfGrError, match="validation begins on the first date, test on the second, later one"):
        check_split("temporal:2014-06-01,2014-01-01")
