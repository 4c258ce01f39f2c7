"""Two CPU processes train and evaluate; their numbers are those of one process.

`accelerate launch --cpu --num_processes 2` starts a single process, so torchrun it is.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_runs import TinyData, arguments, grpo_configs, held_out, hit_rate, sft_configs, tiny_data

from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.grpo import grpo
from hf_gr.sft import sft


RECIPES = Path(__file__).parents[1] / "recipes"

# One launch for the three recipes, since most of a launch is importing. What is run is each recipe's own script.
LAUNCHER = """
import json, runpy, sys

import torch
from accelerate import PartialState

folder, commands = sys.argv[1], json.loads(open(sys.argv[2]).read())
worlds = {}
for recipe, arguments in commands.items():
    sys.argv = [recipe, *arguments]
    runpy.run_path(recipe, run_name="__main__")
    assert torch.distributed.is_initialized()
    worlds[recipe] = [PartialState().num_processes, torch.distributed.get_world_size()]
with open(f"{folder}/rank-{PartialState().process_index}.json", "w") as file:
    json.dump(worlds, file)
"""


def evaluation(data: TinyData, model: Path, output: Path) -> dict:
    return {
        "dataset": str(data.dataset),
        "model": str(model),
        "output_dir": str(output),
        "num_beams": 20,
        "top_k": 20,
        "batch_size": 7,
    }


def sft_settings(data: TinyData, output: Path, rows: int) -> dict:
    measured = {"eval_strategy": "steps", "eval_steps": 20, "save_strategy": "steps", "patience": 3}
    return data.sft(output, per_device_train_batch_size=rows, per_device_eval_batch_size=7, **measured)


def grpo_settings(data: TinyData, output: Path, model: Path, prompts: int) -> dict:
    return data.grpo(output, model, per_device_train_batch_size=8 * prompts, max_steps=6, learning_rate=1e-4, beta=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one(data) -> Path:
    """What one process makes."""
    folder = data.dataset.with_name("one")
    model = sft(*sft_configs(**sft_settings(data, folder / "sft", rows=16)))
    final = grpo(*grpo_configs(**grpo_settings(data, folder / "grpo", model, prompts=4)))
    evaluate(EvaluateConfig(**evaluation(data, final, folder / "evaluation")))
    return folder


@pytest.fixture(scope="module")
def two(data, one) -> Path:
    """What two processes make of the same batches, half of each for either; what they judge is the model of `one`."""
    folder = data.dataset.with_name("two")
    folder.mkdir()
    settings = sft_settings(data, folder / "sft", rows=8)
    del settings["use_cpu"]  # ACCELERATE_USE_CPU says it
    commands = {
        str(RECIPES / "sft.py"): arguments(settings),
        str(RECIPES / "grpo.py"): arguments(grpo_settings(data, folder / "grpo", one / "sft" / "model", prompts=2)),
        str(RECIPES / "evaluate.py"): arguments(evaluation(data, one / "grpo" / "model", folder / "evaluation")),
    }
    (folder / "launch.py").write_text(LAUNCHER)
    (folder / "commands.json").write_text(json.dumps(commands))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += [str(folder / "launch.py"), str(folder), str(folder / "commands.json")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def log_of(folder: Path, key: str) -> np.ndarray:
    log = json.loads((folder / "model" / "training_log.json").read_text())
    return np.array([entry[key] for entry in log if key in entry])


def test_there_are_two_processes_in_every_recipe(two):
    for rank in range(2):
        worlds = json.loads((two / f"rank-{rank}.json").read_text())
        assert len(worlds) == 3 and set(map(tuple, worlds.values())) == {(2, 2)}


def test_only_the_first_process_speaks_and_writes(two):
    printed = (two / "stdout.txt").read_text()
    for stage, output in (("sft", two / "sft" / "model"), ("grpo", two / "grpo" / "model")):
        assert printed.count(f"[{stage}] wrote {output} ") == 1
    assert printed.count("[evaluate] wrote") == 1
    for folder in ("sft", "grpo"):
        assert [path.name for path in (two / folder).iterdir()] == ["model"]  # no staging folder, no run folder


def test_evaluation_of_the_same_model_is_the_same(one, two):
    ours, theirs = (json.loads((folder / "evaluation" / "metrics.json").read_text()) for folder in (two, one))
    assert ours["systems"] == theirs["systems"] and ours["cases"] == theirs["cases"] == 60
    lists = [(folder / "evaluation" / "predictions.parquet").read_bytes() for folder in (two, one)]
    assert lists[0] == lists[1]


def test_sft_learns_the_same(data, one, two):
    losses = [log_of(folder / "sft", "loss") for folder in (two, one)]
    assert len(losses[0]) == len(losses[1]) == 60
    assert np.abs(losses[0] - losses[1]).max() < 0.1  # the same rows a step, summed in another order
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-4)
    for key in ("eval_NDCG@10", "eval_HR@50", "eval_loss"):  # each process measures its share of the users
        ours, theirs = (log_of(folder / "sft", key) for folder in (two, one))
        assert len(ours) == 3 and ours == pytest.approx(theirs, abs=0.05), key
    rates = [hit_rate(folder / "sft" / "model", held_out(data), 10) for folder in (two, one)]
    assert rates[1] > 0.7
    assert rates[0] == pytest.approx(rates[1], abs=0.05)  # 3 of 60 users


def test_grpo_has_the_same_curve(data, one, two):
    """Both draw the same rollouts: each process makes the random numbers of all prompts and takes its own."""
    for key in ("rewards/exact/mean", "rewards/ranking/mean", "group_hit_rate", "distinct_items"):
        ours, theirs = (log_of(folder / "grpo", key) for folder in (two, one))
        assert len(ours) == 6 and ours == pytest.approx(theirs, abs=1e-6), key
    for key in ("kl", "entropy"):
        ours, theirs = (log_of(folder / "grpo", key) for folder in (two, one))
        assert ours == pytest.approx(theirs, abs=1e-3), key
    assert np.abs([log_of(folder / "grpo", "kl")[0] for folder in (two, one)]).max() < 1e-6
    rates = [hit_rate(folder / "grpo" / "model", held_out(data), 10) for folder in (two, one)]
    assert rates[0] == pytest.approx(rates[1], abs=0.02)
    start = load_file(one / "sft" / "model" / "model.safetensors")
    for folder in (two, one):
        final = load_file(folder / "grpo" / "model" / "model.safetensors")
        assert any((final[name] - start[name]).abs().max() > 1e-5 for name in start)
