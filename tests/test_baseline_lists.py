"""Lists of another library: the split is ours to the event, files are read by the evaluation, errors take one line.

RecTools lives in an environment of its own, so a stand-in takes the place of its models here.
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tiny import tiny_items

from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.evaluation.predictions import read_predictions


FOLDER = Path(__file__).parents[1] / "benchmarks" / "baselines"


@pytest.fixture(scope="module")
def lists():
    spec = importlib.util.spec_from_file_location("baseline_lists", FOLDER / "lists.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def dataset(tmp_path):
    """Users in no order, equal times, a user of three events, one item that nobody takes."""
    random = np.random.default_rng(0)
    users = [name for name, count in (("zoe", 7), ("adam", 3), ("mia", 12), ("bo", 4)) for _ in range(count)]
    order = random.permutation(len(users))
    items = [f"i{item:03d}" for item in random.integers(0, 39, len(users))]
    events = {"user_id": [users[row] for row in order], "item_id": items}
    events["timestamp"] = random.integers(0, 3, len(users)).tolist()
    write_dataset(tmp_path / "dataset", pa.table(events), tiny_items(), source="Made for tests.")
    return InteractionDataset.load(tmp_path / "dataset")


def test_the_split_is_that_of_hf_gr(lists, dataset):
    events, split = lists.read_events(dataset.path), dataset.split()
    assert events.item_ids == dataset.item_ids
    ours = {
        "train": (split.train, None),
        "validation": (split.validation.histories, split.validation.targets),
        "test": (split.test.histories, split.test.targets),
    }
    for part, (histories, targets) in ours.items():
        known = events.known(part)
        assert known.user_ids == histories.user_ids.tolist()
        assert np.array_equal(known.ptr, histories.ptr) and np.array_equal(known.items, histories.items)
        if targets is not None:
            assert np.array_equal(events.targets(part), targets)
    assert np.array_equal(events.known("train").users, np.repeat(np.arange(4), split.train.lengths))


def test_users_with_fewer_than_three_events_teach_and_are_not_judged(lists, tmp_path):
    events = {"user_id": [*"ccaaabb"], "item_id": [f"i{row:03d}" for row in range(7)], "timestamp": [*range(7)]}
    write_dataset(tmp_path / "short", pa.table(events), tiny_items(), source="Made for tests.")
    read, split = lists.read_events(tmp_path / "short"), InteractionDataset.load(tmp_path / "short").split()
    assert read.known("train").items.tolist() == split.train.items.tolist() == [0, 1, 2, 5, 6]
    assert read.known("test").items.tolist() == [0, 1, 2, 3, 5, 6] and read.judged.tolist() == [1]
    for part, cases in (("validation", split.validation), ("test", split.test)):
        assert read.targets(part).tolist() == cases.targets.tolist()


def test_data_that_cannot_be_split_are_named(lists, tmp_path):
    events = {"user_id": ["b"] * 2, "item_id": ["i000"] * 2, "timestamp": [1, 2]}
    write_dataset(tmp_path / "short", pa.table(events), tiny_items(), source="Made for tests.")
    with pytest.raises(SystemExit, match=r"short: no user has 3 events, which leave-one-out needs"):
        lists.read_events(tmp_path / "short")
    with pytest.raises(SystemExit, match=r"nowhere/interactions.parquet is missing; write the folder with `hf-gr"):
        lists.read_events(tmp_path / "nowhere")


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_short_lists_are_filled_with_what_is_popular(lists, dataset, monkeypatch, exclude_seen):
    events = lists.read_events(dataset.path)
    monkeypatch.setattr(lists, "answers", lambda *given: np.full((4, 40), -1, np.int64))
    known = events.known("test")
    found = lists.lists_of(None, events, known, 40, exclude_seen)
    popular = np.argsort(-np.bincount(events.known("train").items, minlength=40), kind="stable")
    for user, row in enumerate(found):
        seen = known.items[known.ptr[user] : known.ptr[user + 1]] if exclude_seen else []
        expected = popular[~np.isin(popular, seen)]
        assert np.array_equal(row[: len(expected)], expected)
        assert (row[len(expected) :] == -1).all()


def test_the_evaluation_reads_what_is_written(lists, dataset, tmp_path):
    events, wanted = lists.read_events(dataset.path), np.array([[3, 1], [0, -1], [2, 39], [5, 4]])
    lists.write_lists(tmp_path / "new" / "lists.parquet", wanted, events)
    assert pq.read_schema(tmp_path / "new" / "lists.parquet").field("item_ids").type == pa.list_(pa.string())
    read = read_predictions(tmp_path / "new" / "lists.parquet", dataset, dataset.split().test)
    assert np.array_equal(read, wanted)


def test_ndcg_of_known_ranks(lists):
    found = np.array([[4, 2, 1], [2, 4, 1], [1, 2, 3]])
    assert lists.ndcg(found, np.array([4, 4, 4])) == pytest.approx((1 + 1 / np.log2(3)) / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--top-k", "0"], "--top-k is 0; give at least 1"),
        (["--out", "lists.csv"], "name a .parquet file"),
        (["--also", "lists.csv"], "--also is lists.csv; name a .parquet file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist; name a YAML file"),
        (["--model", "oracle"], "invalid choice: 'oracle'"),
    ],
)
def test_wrong_arguments_end_with_a_message(lists, capsys, changes, message):
    given = ["--dataset", "data", "--model", "ease", "--out", "lists.parquet", *changes]
    with pytest.raises(SystemExit):
        lists.arguments(given)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("best", [30, 300])
def test_of_several_values_the_validation_part_chooses(lists, dataset, monkeypatch, best):
    events = lists.read_events(dataset.path)
    targets = {part: np.full(4, -1) for part in ("validation", "test")}
    for part, rows in targets.items():
        rows[events.judged] = events.targets(part)

    class Model(SimpleNamespace):
        def fit(self, train):
            assert train == "train"
            return self

    def answers(model, events, known, top_k, exclude_seen):
        return targets["validation" if model.value == best else "test"][:, None]

    monkeypatch.setattr(lists, "rectools_dataset", lambda known: "train")
    monkeypatch.setattr(lists, "simple_model", lambda name, settings: Model(value=settings["regularization"]))
    monkeypatch.setattr(lists, "lists_of", answers)
    settings = {"regularization": [30, 100, 300]}
    if best == 30:
        settings["regularization"].reverse()
    assert lists.chosen_model("ease", settings, events, False).value == best
    assert lists.chosen_model("ease", {"regularization": 7}, events, False).value == 7


def test_settings_are_keys_and_values(lists, tmp_path):
    (tmp_path / "odd.yaml").write_text("- 1\n")
    with pytest.raises(SystemExit, match="holds no settings"):
        lists.settings_of(tmp_path / "odd.yaml")
    assert lists.settings_of(None) == {}


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_a_shipped_config_names_a_schedule(lists, name):
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert settings["n_factors"] % settings["n_heads"] == 0
    assert set(lists.SCHEDULE) - {"seconds"} <= settings.keys()  # none is stopped by the clock
    assert "seconds" not in settings
