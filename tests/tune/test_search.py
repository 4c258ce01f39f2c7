"""A search gives every method the same chance, goes on where it was ended, and says what ended each training."""

import json
import math
import sys

import numpy as np
import pytest
import yaml
from tiny_runs import tiny_data

from hf_gr.arguments import parse_config
from hf_gr.cli import main
from hf_gr.errors import HfGrError
from hf_gr.sft import SFT_CONFIGS
from hf_gr.tune import SPACES, STAGES, Space, tune
from hf_gr.tune.space import Range, changed


STAND_IN = """
import json, sys, time
from pathlib import Path
words = sys.argv[1:]
told = {word: value for word, value in zip(words, words[1:]) if word.startswith("--")}
with open(LOG, "a") as log:
    log.write(f"{words[0]} {told['--output_dir']}\\n")
if words[0] == "evaluate":
    output = Path(told["--output_dir"])
    rate = json.loads((Path(told["--model"]) / "settings.json").read_text())["--learning_rate"]
    figures = {name: {"value": 0.1 - abs(float(rate) - 0.003)} for name in ("HR@10", "HR@50", "NDCG@10")}
    assert told["--part"] == "validation" and told["--max_users"] == "50"
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.json").write_text(json.dumps({"systems": {"model": {"item": figures}}}))
else:
    output = Path(told["--output_dir"]) / "model"
    output.mkdir(parents=True, exist_ok=True)
    if float(told["--learning_rate"]) > 0.9:
        print("error: the loss is no longer finite.")
        sys.exit(2)
    (output / "settings.json").write_text(json.dumps(told))
    ended = {"0.1": [{"cpu_minutes_stop": 5.0, "epoch": 1.0}], "0.2": [{"epoch": 1.5}]}
    (output / "training_log.json").write_text(json.dumps(ended.get(told.get("--hidden_dropout"), [{"epoch": 4.0}])))
(output / "manifest.json").write_text("{}")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    log, script = tmp_path / "ran.txt", tmp_path / "stage.py"
    script.write_text(f"LOG = {str(log)!r}\n{STAND_IN}")
    log.touch()
    monkeypatch.setattr("hf_gr.tune.search.PROGRAM", [sys.executable, str(script)])
    return log


@pytest.fixture
def files(tmp_path):
    base, space = tmp_path / "base.yaml", tmp_path / "space.yaml"
    recipe = {"dataset": "shop/dataset", "catalog": "shop/catalog", "output_dir": "shop/sft", "num_train_epochs": 4}
    recipe |= {"model": {"architecture": "qwen3", "layers": 2, "width": 64}, "learning_rate": 0.01, "bf16": False}
    base.write_text(yaml.safe_dump(recipe, sort_keys=False))
    options = {"learning_rate": {"low": 1e-3, "high": 9e-3, "log": True}, "model.width": [32, 64]}
    space.write_text(yaml.safe_dump(options | {"hidden_dropout": [0.1, 0.2, 0.3]}))
    return base, space


def test_the_best_trial_is_found_and_becomes_a_recipe(files, stand_in, tmp_path):
    base, space = files
    best = tune("sft", str(base), space, tmp_path / "out", trials=8, users=50, jobs=2)
    told = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert [trial["number"] for trial in told] == list(range(8)) and told[0]["settings"] == {}
    rates = [trial["settings"].get("learning_rate", 0.01) for trial in told]
    assert best.number == int(np.argmin(np.abs(np.array(rates) - 0.003)))
    ends = {0.1: "cap", 0.2: "patience", 0.3: "epochs", None: "epochs"}
    assert all(trial["stopped"] == ends[trial["settings"].get("hidden_dropout")] for trial in told)
    recipe = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert recipe["learning_rate"] == best.settings["learning_rate"] and recipe["output_dir"] == "shop/sft"
    assert recipe["model"] == {"architecture": "qwen3", "layers": 2, "width": best.settings["model.width"]}
    assert "cpu_minutes" not in recipe and "memory" not in recipe
    parse_config(SFT_CONFIGS, ["--config", str(tmp_path / "out" / "best.yaml")])


def test_a_search_goes_on_and_jobs_change_nothing(files, stand_in, tmp_path):
    base, space = files
    tune("sft", str(base), space, tmp_path / "one", trials=3, users=50)
    assert len(stand_in.read_text().splitlines()) == 6
    tune("sft", str(base), space, tmp_path / "one", trials=5, users=50)
    assert len(stand_in.read_text().splitlines()) == 10  # two more, a training and a judgement each
    tune("sft", str(base), space, tmp_path / "two", trials=5, users=50, jobs=3)
    one, two = (json.loads((tmp_path / name / "trials.json").read_text()) for name in ("one", "two"))
    assert [(t["settings"], t["metrics"]) for t in one] == [(t["settings"], t["metrics"]) for t in two]


def test_a_trial_that_fails_is_told_and_the_search_goes_on(files, stand_in, tmp_path):
    base, space = files
    space.write_text(yaml.safe_dump({"learning_rate": [0.95]}))
    best = tune("sft", str(base), space, tmp_path / "out", trials=2, users=50)
    told = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert best.number == 0 and told[1]["state"] == "failed" and "no longer finite" in told[1]["reason"]
    base.write_text(base.read_text().replace("learning_rate: 0.01", "learning_rate: 0.99"))
    with pytest.raises(HfGrError, match="all 2 trials failed"):
        tune("sft", str(base), space, tmp_path / "other", trials=2, users=50)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rat": [1]}, "trial 1 cannot be run: .*learning_rat"),
        ({"learning_rate": [1]} | {"hidden_dropout": [7]}, "trial 1 cannot be run: hidden_dropout"),
        ({"learning_rate": {"low": 1, "high": 1}}, "give a list of values, or a range"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "above 0 if log"),
        ({"learning_rate": 3}, "give a list of values, or a range"),
        ({"dataset.width": [3]}, "is 'shop/dataset' and no mapping"),
        ({}, "holds no options"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_runs(files, stand_in, tmp_path, space, message):
    base, file = files
    file.write_text(yaml.safe_dump(space))
    with pytest.raises(HfGrError, match=message) as error:
        tune("sft", str(base), file, tmp_path / "out", trials=2, users=50)
    assert "\n" not in str(error.value) and not stand_in.read_text() and not (tmp_path / "out").exists()


def test_a_file_that_is_not_ours_stays(files, stand_in, tmp_path):
    base, space = files
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best.yaml").write_text("mine: true\n")
    with pytest.raises(HfGrError, match=r"best.yaml"):
        tune("sft", str(base), space, tmp_path / "out", trials=1, users=50)
    assert (tmp_path / "out" / "best.yaml").read_text() == "mine: true\n" and not stand_in.read_text()


def test_the_command_shows_trials_and_takes_options_for_all(files, stand_in, tmp_path, capsys, monkeypatch):
    base, space = files
    monkeypatch.setenv("COLUMNS", "200")
    words = ["tune", "sft", str(base), "--space", str(space), "--trials", "3", "--out", str(tmp_path / "out")]
    main([*words, "--dry_run"])
    assert "the recipe as it is" in capsys.readouterr().out and not stand_in.read_text()
    main([*words, "--users", "50", "--seed", "1", "--max_history", "7"])
    settings = json.loads((tmp_path / "out" / "trial-001" / "sft" / "model" / "settings.json").read_text())
    assert settings["--max_history"] == "7" and settings["--memory"] == "false" and settings["--cpu_minutes"] == "30.0"
    with pytest.raises(SystemExit):
        main([*words, "--sideways", "7"])
    with pytest.raises(SystemExit):
        main(["tune", "grpo", str(base)])
    assert "give one of sft, retrieve" in capsys.readouterr().err


def test_draws_cover_the_space_alike():
    space = Space(
        {"rate": Range(1e-4, 1e-2, log=True), "layers": Range(1, 4), "share": Range(0.0, 1.0), "kind": ["a", "b"]}
    )
    drawn = [space.drawn(0, trial) for trial in range(1, 400)]
    assert drawn[7] == space.drawn(0, 8) != space.drawn(1, 8)
    logs = np.array([math.log10(one["rate"]) for one in drawn])
    assert logs.min() > -4.01 and logs.max() < -1.99 and abs(logs.mean() + 3) < 0.1
    assert {one["layers"] for one in drawn} == {1, 2, 3, 4} and {one["kind"] for one in drawn} == {"a", "b"}
    assert 0.4 < np.mean([one["share"] for one in drawn]) < 0.6
    assert changed({"model": {"width": 1, "layers": 2}}, {"model.width": 8, "x": 3}) == {
        "model": {"width": 8, "layers": 2},
        "x": 3,
    }


@pytest.mark.parametrize("stage", STAGES)
def test_shipped_spaces_are_of_options_that_there_are(stage, tmp_path):
    base = {"sft": "amazon-scientific/sft-flat-small", "retrieve": "amazon-scientific/retrieve-bsarec"}[stage]
    assert tune(stage, base, SPACES[stage], tmp_path / "out", trials=12, dry_run=True) is None


def test_a_training_ends_at_its_cap(tmp_path):
    """For real: a cap of no time at all ends each training at its first step, with an evaluation."""
    data = tiny_data(tmp_path)
    base, space = tmp_path / "base.yaml", tmp_path / "space.yaml"
    base.write_text(yaml.safe_dump(data.sft(tmp_path / "unused", eval_strategy="steps", eval_steps=50)))
    space.write_text(yaml.safe_dump({"hidden_dropout": [0.1]}))
    best = tune("sft", str(base), space, tmp_path / "out", trials=1, cap_minutes=1e-6, users=10)
    assert best.stopped == "cap"
    log = json.loads((tmp_path / "out/trial-000/sft/model/training_log.json").read_text())
    assert max(entry["step"] for entry in log) == 1 and any("eval_NDCG@10" in entry for entry in log)
