"""The stage end to end: it learns, stops, is judged, and never sees test events."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file
from tiny import NUM_ITEMS, tiny_interactions, tiny_items
from tiny_runs import retrieve_configs

from hf_gr.artifacts import read_json
from hf_gr.cli import main
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.errors import HfGrError
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.retrieval import Retriever, retrieve


TINY = {"use_cpu": True, "disable_tqdm": True, "hidden_size": 32, "hidden_dropout": 0.1, "attention_dropout": 0.1}
TINY |= {"per_device_train_batch_size": 16, "warmup_steps": 0, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("retrieve") / "dataset"
    write_dataset(folder, tiny_interactions(), tiny_items(), source="Made for tests.")
    return folder


def settings(dataset: Path, output: Path, **changes: object) -> dict:
    return TINY | {"dataset": str(dataset), "output_dir": str(output), "num_train_epochs": 8} | changes


@pytest.mark.parametrize("changes", [{}, {"causal": True, "negatives": 0, "num_train_epochs": 30}, {"negatives": 8}])
def test_it_learns_the_walk_and_is_judged(dataset, tmp_path, changes, capsys):
    config = settings(dataset, tmp_path / "run", **changes)
    model = retrieve(*retrieve_configs(**config))
    assert model == tmp_path / "run" / "model" and "[retrieve] wrote" in capsys.readouterr().out
    files = {"model.safetensors", "config.json", "items.parquet", "training_log.json", "manifest.json"}
    assert files | {"training_data.json", "README.md"} == {file.name for file in model.iterdir()}
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    judged = evaluate(
        EvaluateConfig(str(dataset), str(tmp_path / "judged"), str(model), top_k=10, num_beams=10, baselines=False)
    )
    score = judged["systems"]["model"]["item"]["HR@10"]["value"]
    assert score > 0.7  # chance: .25
    test = InteractionDataset.load(dataset).split().test
    items = Retriever.from_pretrained(model).recommend(test.histories, top_k=10).items
    assert (items == test.targets[:, None]).any(axis=1).mean() == pytest.approx(score)
    assert retrieve(*retrieve_configs(**config)) == model and "up to date" in capsys.readouterr().out


def test_seen_items_are_left_out_where_that_is_asked(dataset, tmp_path):
    model = retrieve(*retrieve_configs(**settings(dataset, tmp_path / "run", num_train_epochs=2)))
    for seen in (False, True):
        given = {"top_k": NUM_ITEMS, "num_beams": NUM_ITEMS, "baselines": False, "exclude_seen": seen}
        judged = evaluate(EvaluateConfig(str(dataset), str(tmp_path / f"judged-{seen}"), str(model), **given))
        histories = InteractionDataset.load(dataset).split().test.histories
        kept = NUM_ITEMS - np.mean([len(np.unique(history)) for history in histories]) * seen
        assert judged["systems"]["model"]["mean_length"] == pytest.approx(kept)


def test_reflection_is_not_for_retrievers(dataset, tmp_path):
    model = retrieve(*retrieve_configs(**settings(dataset, tmp_path / "run", num_train_epochs=1)))
    with pytest.raises(HfGrError, match="dense retriever without paths"):
        evaluate(EvaluateConfig(str(dataset), str(tmp_path / "judged"), str(model), reflection=0.1))


def test_the_best_checkpoint_is_kept_and_training_stops(dataset, tmp_path):
    given = settings(dataset, tmp_path / "run", num_train_epochs=200, patience=2)
    model = retrieve(*retrieve_configs(**given))
    log = [entry for entry in read_json(model / "training_log.json") if "eval_NDCG@10" in entry]
    assert len(log) < 200
    best = max(range(len(log)), key=lambda place: log[place]["eval_NDCG@10"])
    assert best == len(log) - 3
    cases = InteractionDataset.load(dataset).split().validation
    items = Retriever.from_pretrained(model).recommend(cases.histories, top_k=10).items
    places = np.where(items == cases.targets[:, None], 1 / np.log2(np.arange(10) + 2), 0.0)
    assert places.sum(axis=1).mean() == pytest.approx(log[best]["eval_NDCG@10"], abs=1e-5)


def test_test_events_do_not_reach_the_weights(dataset, tmp_path):
    """Validation events decide when to stop; test events decide nothing. (tests/test_leakage.py rewrites both.)"""
    table = tiny_interactions()
    users, items = table["user_id"].to_pylist(), table["item_id"].to_pylist()
    last = {user: row for row, user in enumerate(users)}
    for row in last.values():
        items[row] = f"i{(int(items[row][1:]) + 7) % NUM_ITEMS:03d}"
    other = tmp_path / "dataset"
    rewritten = table.set_column(1, "item_id", pa.array(items))
    write_dataset(other, rewritten, tiny_items(), source="Made for tests.")
    found = []
    for name, folder in (("true", dataset), ("other", other)):
        model = retrieve(*retrieve_configs(**settings(folder, tmp_path / name, num_train_epochs=6)))
        found.append(load_file(model / "model.safetensors"))
    assert found[0].keys() == found[1].keys()
    assert all((found[0][name] == found[1][name]).all() for name in found[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"cutoff": 4}, "cutoff is 4; give an odd number from 1 to 51"),
        ({"num_attention_heads": 3}, "does not divide hidden_size"),
        ({"save_strategy": "no"}, "set them alike, or patience: 0"),
        ({"negatives": -1}, "negatives is -1"),
        ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(HfGrError, match=message):
        retrieve_configs(output_dir="unused", **changes)


def test_the_command_line_says_what_is_missing(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["retrieve", "--output_dir", str(tmp_path / "run")])
    assert "error: dataset is not set; give --dataset FOLDER" in capsys.readouterr().err
