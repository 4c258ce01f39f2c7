"""The stage end to end: it learns, goes on after a kill, is judged, and scores by hand, by pipeline and second."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file
from tiny import NUM_ITEMS, tiny_interactions, tiny_items
from tiny_runs import TinyData, rank_configs, tiny_data
from transformers import TrainerCallback, pipeline

from hf_gr.artifacts import read_json
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import write_dataset
from hf_gr.errors import HfGrError
from hf_gr.ranking import Ranker, rank
from hf_gr.ranking.run import ClickTrainer


TINY = {"use_cpu": True, "disable_tqdm": True, "hidden_size": 16, "deep_sizes": [16], "dropout": 0.1}
TINY |= {"per_device_train_batch_size": 64, "learning_rate": 1e-2}
HOUR = 3_600 * 10**6


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("rank"))


@pytest.fixture(scope="module")
def trained(data) -> Path:
    """A model of ids and semantic IDs that has learned the walk."""
    output = data.dataset.with_name("run")
    given = {"dataset": str(data.dataset), "catalog": str(data.catalog), "output_dir": str(output)}
    return rank(*rank_configs(**TINY, **given, labels="drawn", num_train_epochs=20, eval_steps=0.25))


def toy_log(folder: Path, *, users: bool = False) -> Path:
    """Odd items are clicked in the morning, even ones in the evening; or by the old, and by the young."""
    random = np.random.default_rng(0)
    rows, events = [], []
    for time in range(800):
        user, item, hour = f"u{random.integers(40):02d}", int(random.integers(8)), int(random.choice([8, 20]))
        first = int(user[1:]) % 2 == 0 if users else hour == 8
        moment = (time * 24 + hour) * HOUR
        rows.append((user, f"i{item:03d}", moment, first == (item % 2 == 1)))
        events.append((f"u{time % 40:02d}", f"i{time % 8:03d}", moment))
    shown = pa.table(
        dict(zip(["user_id", "item_id", "timestamp", "clicked"], map(list, zip(*rows, strict=True)), strict=True))
    )
    taken = pa.table(dict(zip(["user_id", "item_id", "timestamp"], map(list, zip(*events, strict=True)), strict=True)))
    people = {"user_id": [f"u{user:02d}" for user in range(40)], "age": ["old", "young"] * 20}
    told = {"users": pa.table(people)} if users else {}
    write_dataset(folder, taken, tiny_items(), exposures=shown, source="Made for tests.", **told)
    return folder


def test_it_learns_the_walk_and_is_judged(trained, data, capsys):
    files = {"model.safetensors", "config.json", "items.parquet", "training_log.json", "manifest.json", "ranking.json"}
    files |= {"catalog.json", "catalog.safetensors", "training_data.json", "README.md"}
    assert files == {file.name for file in trained.iterdir()}
    judged = read_json(trained.parent / "evaluation" / "metrics.json")
    assert judged["all"]["AUC"]["value"] > 0.8 and judged["all"]["GAUC"]["value"] > 0.8
    assert judged["baselines"]["popularity"]["AUC"] < 0.65
    assert judged["all"]["rows"] == sum(part["rows"] for part in judged["by_popularity"].values())
    assert "by_age" in judged and judged["settings"]["labels"] == "drawn"
    page = (trained.parent / "evaluation" / "report.html").read_text()
    assert "<svg" in page and "Reliability" in page and "fewer than" not in page.split("<h2>")[1]
    given = {"dataset": str(data.dataset), "catalog": str(data.catalog), "output_dir": str(trained.parent)}
    rank(*rank_configs(**TINY, **given, labels="drawn", num_train_epochs=20, eval_steps=0.25))
    assert "up to date" in capsys.readouterr().out
    assert SidCatalog.load(trained).item_ids == Ranker.from_pretrained(trained).item_ids


def test_candidates_come_back_in_order(trained):
    ranker, history = Ranker.from_pretrained(trained), ["i010", "i011", "unheard of", "i012"]
    candidates = ["i030", "i013", "i002"]
    scores = ranker.score(history, candidates)
    assert scores.argmax() == 1 and ((scores > 0) & (scores < 1)).all()
    assert np.allclose([ranker.score(history, [item])[0] for item in candidates], scores, atol=1e-6)
    ranker.batch_size = 2
    assert np.allclose(ranker.score(history, candidates), scores, atol=1e-6)
    served = pipeline("click-ranking", model=str(trained), device="cpu")
    answers = served({"history": history, "candidates": candidates})
    assert [answer["item_id"] for answer in answers] == [candidates[place] for place in np.argsort(-scores)]
    assert answers[0].keys() == {"item_id", "title", "score"} and answers[0]["title"] == "Title 13"
    assert served([{"history": history, "candidates": candidates}] * 2) == [answers, answers]
    generated = [{"item_id": item, "score": -place, "sid": [place]} for place, item in enumerate(candidates)]
    second = ranker.rerank(history, generated)
    assert [answer["item_id"] for answer in second] == [answer["item_id"] for answer in answers]
    assert second[0] == generated[1] | {"click": pytest.approx(float(scores[1]))}
    assert ranker.score([], candidates).shape == (3,) and ranker.score(history, []).shape == (0,)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"history": ["i001"]}, "give .*candidates"),
        ({"history": [], "candidates": ["nothing"]}, "candidate 'nothing' is none of the 40 items"),
        ({"history": "i001", "candidates": ["i001"]}, "history is 'i001'; give a list"),
        ({"history": [], "candidates": ["i001"], "top": 3}, "no key 'top'"),
        (
            {"history": [], "candidates": ["i001"], "user": {"age": 3}},
            "user holds 'age', but this model reads nothing",
        ),
    ],
)
def test_wrong_requests_are_refused(trained, request_, message):
    with pytest.raises(HfGrError, match=message):
        pipeline("click-ranking", model=str(trained), device="cpu")(request_)


class Killed(BaseException):
    pass


def test_a_killed_run_ends_with_the_very_same_weights(data, tmp_path, capsys):
    given = {"dataset": str(data.dataset), "catalog": str(data.catalog), "labels": "drawn", "max_steps": 30}
    for strategy in ("eval", "save"):
        given |= {f"{strategy}_strategy": "steps", f"{strategy}_steps": 8}
    whole = rank(*rank_configs(**TINY, **given, output_dir=str(tmp_path / "whole")))

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 13:
                raise Killed

    class Doomed(ClickTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Kill())

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("hf_gr.ranking.run.ClickTrainer", Doomed)
        rank(*rank_configs(**TINY, **given, output_dir=str(tmp_path / "killed")))
    assert not (tmp_path / "killed" / "model").exists()
    capsys.readouterr()
    resumed = rank(*rank_configs(**TINY, **given, output_dir=str(tmp_path / "killed")))
    assert "checkpoint-8" in capsys.readouterr().out
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    one, other = (read_json(folder.parent / "evaluation" / "metrics.json")["all"] for folder in (whole, resumed))
    assert one == other


def auc_of(dataset: Path, output: Path, **changes: object) -> float:
    given = (
        TINY
        | {
            "split": "temporal",
            "item_as": "id",
            "num_train_epochs": 12,
            "patience": 0,
            "eval_strategy": "no",
            "save_strategy": "no",
        }
        | changes
    )
    model = rank(*rank_configs(dataset=str(dataset), output_dir=str(output), **given))
    return read_json(model.parent / "evaluation" / "metrics.json")["all"]["AUC"]["value"]


def test_the_hour_of_the_day_is_learned(tmp_path):
    log = toy_log(tmp_path / "log")
    assert auc_of(log, tmp_path / "without") < 0.65
    assert auc_of(log, tmp_path / "with", clock=True) > 0.95
    ranker = Ranker.from_pretrained(tmp_path / "with" / "model")
    morning, evening = (ranker.score([], ["i001", "i002"], request={"timestamp": hour * HOUR}) for hour in (8, 20))
    assert morning[0] > 0.8 > 0.2 > morning[1] and evening[1] > 0.8 > 0.2 > evening[0]
    with pytest.raises(HfGrError, match="request lacks 'timestamp'"):
        ranker.score([], ["i001"])


def test_a_column_of_users_is_learned(tmp_path):
    log = toy_log(tmp_path / "log", users=True)
    assert auc_of(log, tmp_path / "run", user_columns=["age"], gates=True) > 0.95
    ranker = Ranker.from_pretrained(tmp_path / "run" / "model")
    old, young = (ranker.score([], ["i001", "i002"], user={"age": age}) for age in ("old", "young"))
    assert old[0] > old[1] and young[0] < young[1]
    assert ranker.score([], ["i001"], user={"age": "unheard of"}) == ranker.score([], ["i001"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "dataset is not set"),
        ({"dataset": "x"}, "item_as is both and catalog None"),
        ({"dataset": "x", "catalog": "y", "item_as": "id"}, "item_as: id reads none"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(HfGrError, match=message):
        rank(*rank_configs(output_dir="unused", **changes))


def test_the_log_has_to_have_what_is_asked(data, tmp_path):
    given = {"dataset": str(data.dataset), "output_dir": str(tmp_path / "run"), "item_as": "id"}
    with pytest.raises(HfGrError, match=r"has no exposures\.parquet; set labels: drawn"):
        rank(*rank_configs(**TINY, **given, labels="exposures"))
    table = tiny_interactions()
    position = table.select(["user_id", "item_id", "timestamp"])
    write_dataset(tmp_path / "order", position, tiny_items(NUM_ITEMS), source="Made for tests.", time="position")
    with pytest.raises(HfGrError, match="only positions, so there is no hour"):
        rank(*rank_configs(**TINY, **given | {"dataset": str(tmp_path / "order")}, clock=True))
