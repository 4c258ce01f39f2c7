"""What benchmarks/baselines/lists.py reads and writes is what hf_gr splits and judges; RecTools itself is played."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import yaml
from tiny import tiny_interactions, tiny_items

from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.evaluation.baselines import Popularity
from hf_gr.evaluation.predictions import read_predictions


FOLDER = Path(__file__).parent.parent / "benchmarks" / "baselines"
PARTS = ["validation", "test"]


@pytest.fixture
def lists(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("lists")


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Rows in no order, and users with many events of one time."""
    table = tiny_interactions()
    times = pa.array(table["timestamp"].to_numpy() // 3)
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = table.set_column(2, "timestamp", times).take(order)
    write_dataset(tmp_path / "dataset", shuffled, tiny_items(), source="Made for tests.")
    return tmp_path / "dataset"


def by_user(events: pa.Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for user, item in zip(events["user_id"].to_pylist(), events["item_id"].to_pylist(), strict=True):
        found.setdefault(user, []).append(item)
    return found


def as_ids(histories, ids: list[str]) -> dict[str, list[str]]:
    return {user: [ids[item] for item in history] for user, history in zip(histories.user_ids, histories, strict=True)}


@pytest.mark.parametrize("part", PARTS)
def test_the_split_is_that_of_hf_gr(lists, dataset, part):
    ours = InteractionDataset.load(dataset)
    split, events = ours.split(), lists.read_events(dataset)
    cases = vars(split)[part]
    assert by_user(lists.training_events(events)) == as_ids(split.train, ours.item_ids)
    assert by_user(lists.known_events(events, part)) == as_ids(cases.histories, ours.item_ids)
    wanted = lists.targets(events, part)
    assert wanted["user_id"].to_pylist() == cases.histories.user_ids.tolist()
    assert wanted["item_id"].to_pylist() == [ours.item_ids[item] for item in cases.targets]


def test_a_short_history_is_refused_as_hf_gr_refuses_it(lists, tmp_path):
    table = pa.table({"user_id": ["a", "a", "a", "b", "b"], "item_id": ["i000"] * 5, "timestamp": [1, 2, 3, 4, 5]})
    write_dataset(tmp_path / "short", table, tiny_items(), source="Made for tests.")
    with pytest.raises(lists.Refused, match=r"1 user\(s\) have fewer than 3 events \(first: 'b'\)"):
        lists.read_events(tmp_path / "short")


class PlayedModel:
    """Recommends the most popular items, in the columns of RecTools."""

    require_recommend_context = False

    def fit(self, events: pa.Table) -> None:
        names, counts = np.unique(events["item_id"].to_pylist(), return_counts=True)
        self.order = names[np.lexsort((names, -counts))].tolist()

    def recommend(self, users, known, k, filter_viewed, on_unsupported_targets):
        seen = by_user(known)
        rows = [
            (user, item, rank)
            for user in users
            for rank, item in enumerate([i for i in self.order if not filter_viewed or i not in seen[user]][:k], 1)
        ]
        table = dict(zip(("user_id", "item_id", "rank"), map(list, zip(*rows, strict=True)), strict=True))
        return PlayedFrame(table)


class PlayedFrame(dict):
    def sort_values(self, _: list[str]) -> "PlayedFrame":
        return self


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seen", ["true", "false"])
def test_lists_are_read_by_the_evaluation(lists, dataset, tmp_path, monkeypatch, part, seen, capsys):
    monkeypatch.setattr(lists, "rectools_dataset", lambda events, item_ids: events)
    monkeypatch.setattr(lists, "make_model", lambda name, settings, seed: PlayedModel())
    out = tmp_path / "found" / "lists.parquet"
    words = f"--dataset {dataset} --model popularity --part {part} --top-k 10 --exclude-seen {seen} --out {out}"
    lists.main(words.split())
    assert f"60 lists of popularity, {part} part" in capsys.readouterr().out
    ours = InteractionDataset.load(dataset)
    split = ours.split()
    cases = vars(split)[part]
    found = read_predictions(out, ours, cases)
    expected = Popularity(split.train, ours.num_items, exclude_seen=seen == "true").recommend(cases.histories, 10)
    assert np.array_equal(found, expected)


def test_lists_of_both_kinds_come_of_one_training(lists, dataset, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(lists, "rectools_dataset", lambda events, item_ids: events)
    monkeypatch.setattr(lists, "make_model", lambda *_: made.append(PlayedModel()) or made[-1])
    words = f"--dataset {dataset} --model ease --top-k 10 --exclude-seen both --out {tmp_path}/lists.parquet"
    lists.main(words.split())
    ours = InteractionDataset.load(dataset)
    cases = ours.split().test
    seen = [set(history) for history in cases.histories]
    for name, clean in (("lists", False), ("lists-unseen", True)):
        found = read_predictions(tmp_path / f"{name}.parquet", ours, cases)
        assert clean == all(not known & set(row) for known, row in zip(seen, found, strict=True))
    assert len(made) == 1


def test_validation_decides_when_a_neural_model_stops(lists, dataset, monkeypatch, capsys):
    gains = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    state = {"weight": SimpleNamespace(clone=lambda: len(fitted))}
    fitted: list[int] = []
    loaded: list[dict] = []
    network = SimpleNamespace(state_dict=lambda: state, load_state_dict=loaded.append)
    model = SimpleNamespace(fit_partial=lambda *_, **__: fitted.append(1), torch_model=network)
    monkeypatch.setattr(lists, "measured", lambda *_: (0.0, next(gains)))
    settings = {"epochs": 50, "patience": 2}
    lists.train(model, "sasrec", None, lists.read_events(dataset), settings, seed=0)
    assert len(fitted) == 4 and loaded == [{"weight": 2}]
    assert "epoch 4: validation" in capsys.readouterr().out


def test_measures_by_hand(lists, monkeypatch):
    found = {"a": ["x", "y"], "b": ["z"], "c": []}
    monkeypatch.setattr(lists, "recommended", lambda *_: found)
    hits, gain = lists.measured(None, None, {"a": "y", "b": "z", "c": "x"})
    assert hits == pytest.approx(2 / 3) and gain == pytest.approx((1 / np.log2(3) + 1) / 3)


@pytest.mark.parametrize("name", ["sasrec", "hstu"])
def test_settings_files_are_read(lists, name):
    found = lists.read_settings(FOLDER / f"{name}.yaml")
    assert {"n_factors", "n_blocks", "n_heads", "dropout_rate", "session_max_len", "lr", "epochs"} <= found.keys()
    assert found["n_factors"] % found["n_heads"] == 0 and found == yaml.safe_load(
        (FOLDER / f"{name}.yaml").read_text()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset {0}/none --model ease --out {0}/x.parquet", "is missing; name a dataset folder"),
        ("--dataset {0} --model ease --top-k 0 --out {0}/x.parquet", "--top-k is 0"),
        ("--dataset {0} --model ease --config {0}/none.yaml --out {0}/x.parquet", "does not exist; name a YAML"),
    ],
)
def test_bad_input_is_one_line(lists, tmp_path, words, message):
    with pytest.raises(lists.Refused, match=message):
        lists.main(words.format(tmp_path).split())


def test_it_does_not_import_hf_gr_or_rectools_by_itself(lists):
    source = (FOLDER / "lists.py").read_text()
    assert "import hf_gr" not in source and "from hf_gr" not in source and "rectools" not in sys.modules
