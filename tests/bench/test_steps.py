"""Stages of a cell: their order and keys, what they took, and what they hear of a launcher."""

import json
import os
import sys

import pytest
import yaml
from bench.suites import write_suite, write_table

from hf_gr.artifacts import _VERSIONS
from hf_gr.bench import Places, load_suite
from hf_gr.bench.steps import LAUNCHER, Runner, Step, _environment, settings_of, steps_of
from hf_gr.errors import HfGrError


def test_stages_of_a_cell_and_what_changes_their_keys(tmp_path, monkeypatch):
    suite = load_suite(write_suite(tmp_path))
    flat, wide = (steps_of(suite, cell, Places(tmp_path / "out", tmp_path)) for cell in suite.cells())
    assert [step.stage for step in flat] == ["prepare", "embed", "quantize", "sft", "evaluate", "evaluate"]
    assert [one.key == other.key for one, other in zip(flat, wide, strict=True)] == [True] * 3 + [False] * 3
    assert flat[0].output == tmp_path / "out/circle/dataset"
    assert [step.output.name for step in flat[-2:]] == ["test", "test-unseen"]
    assert ["--exclude_seen" in step.command for step in flat] == [False] * 5 + [True]
    raw = write_table(tmp_path / "raw") / "log.csv"
    places = Places(tmp_path / "out", tmp_path / "raw")
    found, told = steps_of(suite, suite.cells()[0], places), settings_of(suite, suite.cells()[0])
    assert found[-1].key not in (flat[-1].key, told)  # raw data count
    raw.write_text(raw.read_text() + "u1,i1,99\n")
    other = steps_of(suite, suite.cells()[0], places)
    assert not {step.key for step in found} & {step.key for step in other}
    assert settings_of(suite, suite.cells()[0]) == told  # the settings are the same
    raw.unlink()
    (tmp_path / "raw" / "items.csv").unlink()
    elsewhere = steps_of(suite, suite.cells()[0], Places(tmp_path / "moved", tmp_path / "raw"))
    assert [step.key for step in elsewhere] == [step.key for step in flat]  # wherever it runs
    with monkeypatch.context() as changes:
        changes.setitem(_VERSIONS, "quantize", 2)
        later = steps_of(suite, suite.cells()[0], Places(tmp_path / "out", tmp_path))
        assert [one.key == other.key for one, other in zip(flat, later, strict=True)] == [True] * 2 + [False] * 4
    recipe = tmp_path / "circle" / "quantize.yaml"
    recipe.write_text("# a comment\n" + recipe.read_text())
    same = steps_of(suite, suite.cells()[0], Places(tmp_path / "out", tmp_path))
    assert [step.key for step in same] == [step.key for step in flat]
    recipe.write_text(recipe.read_text() + "seed: 1\n")  # the command line says another, which counts
    same = steps_of(suite, suite.cells()[0], Places(tmp_path / "out", tmp_path))
    assert [step.key for step in same] == [step.key for step in flat]
    recipe.write_text(recipe.read_text() + "max_iterations: 3\n")
    changed = steps_of(suite, suite.cells()[0], Places(tmp_path / "out", tmp_path))
    assert [one.key == other.key for one, other in zip(flat, changed, strict=True)] == [True] * 2 + [False] * 4


def test_what_a_method_changes_counts_as_a_recipe_that_says_so(tmp_path):
    def key(recipe: dict, **changes: object) -> str:
        suite = load_suite(
            write_suite(tmp_path, methods={"flat": {"quantize": "quantize", "sft": {"recipe": "sft-flat", **changes}}})
        )
        (tmp_path / "circle" / "sft-flat.yaml").write_text(yaml.safe_dump(recipe))
        return steps_of(suite, suite.cells()[0], Places(tmp_path / "out", tmp_path))[3].key

    model, rate = {"architecture": "qwen3", "layers": 1}, 3.0e-3
    asked = key({"model": model, "learning_rate": rate, "bf16": False})
    assert asked == key({"model": {"layers": 9}, "bf16": True}, model=model, learning_rate=rate, bf16=False)
    assert asked != key({"model": model, "learning_rate": rate, "bf16": False}, learning_rate=1e-3)


def test_a_method_goes_on_from_another_ones_model(tmp_path):
    methods = {"flat": {"quantize": "quantize", "sft": "sft-flat"}, "again": {"from": "flat", "grpo": "sft-flat"}}
    suite = load_suite(write_suite(tmp_path, methods=methods))
    first, second = (steps_of(suite, cell, Places(tmp_path / "out", tmp_path)) for cell in suite.cells())
    assert [step.key for step in second[:4]] == [step.key for step in first[:4]]
    assert second[4].command[second[4].command.index("--model") + 1] == str(first[3].output)
    assert [step.stage for step in second[3:]] == ["sft", "grpo", "evaluate", "evaluate"]
    assert second[5].command[second[5].command.index("--model") + 1] == str(second[4].output)


def test_a_model_is_blended_with_a_retriever(tmp_path):
    methods = {
        "flat": {"quantize": "quantize", "sft": "sft-flat"},
        "dense": {"retrieve": "sft-flat"},
        "both": {"from": "flat", "blend": {"method": "dense", "share": 0.3}},
    }
    suite = load_suite(write_suite(tmp_path, methods=methods))
    flat, dense, both = (steps_of(suite, cell, Places(tmp_path / "out", tmp_path)) for cell in suite.cells())
    assert [step.stage for step in both[3:]] == ["sft", "retrieve", "blend", "evaluate", "evaluate"]
    assert (both[3].key, both[4].key) == (flat[3].key, dense[1].key)
    joined = ["blend", str(flat[3].output), str(dense[1].output), "--share", "0.3", "--out", str(both[5].output)]
    assert both[5].command[-7:] == joined
    assert both[6].command[both[6].command.index("--model") + 1] == str(both[5].output)
    for wrong in ({"method": "flat"}, {"method": "nobody"}, {"with": "dense"}):
        with pytest.raises(HfGrError, match="blend of method both"):
            load_suite(write_suite(tmp_path, methods=methods | {"both": {"from": "flat", "blend": wrong}}))


def test_a_memory_is_a_step_of_its_own(tmp_path):
    methods = {
        "flat": {"quantize": "quantize", "sft": "sft-flat"},
        "flat-memory": {"from": "flat", "remember": {"users": 50}},
    }
    suite = load_suite(write_suite(tmp_path, methods=methods))
    flat, both = (steps_of(suite, cell, Places(tmp_path / "out", tmp_path)) for cell in suite.cells())
    assert [step.stage for step in both[3:]] == ["sft", "remember", "evaluate", "remember", "evaluate"]
    assert both[3].key == flat[3].key
    assert both[3].command[both[3].command.index("--memory") + 1] == "false"
    words = ["remember", str(flat[3].output), str(flat[0].output), "--users", "50", "--seed", "0"]
    assert both[4].command[-9:] == [*words, "--out", str(both[4].output)]
    assert both[5].command[both[5].command.index("--model") + 1] == str(both[4].output)
    unseen = [*words, "--exclude-seen", "--out", str(both[6].output)]  # a memory that lists without seen items chose
    assert both[6].command[-10:] == unseen and both[6].output != both[4].output
    assert both[7].command[both[7].command.index("--model") + 1] == str(both[6].output)
    with pytest.raises(HfGrError, match="goes on from flat-memory, whose memory it would lose"):
        load_suite(write_suite(tmp_path, methods=methods | {"again": {"from": "flat-memory", "grpo": "sft-flat"}}))
    with pytest.raises(HfGrError, match="remember of method flat-memory"):
        load_suite(write_suite(tmp_path, methods=methods | {"flat-memory": {"from": "flat", "remember": {"x": 1}}}))


def test_interests_are_mined_once_and_told_to_what_reads_them(tmp_path):
    codes = {"quantize": "quantize", "sft": "sft-flat"}
    methods = {
        "flat": codes,
        "told": codes | {"mine": "mine", "label": "label", "embed": "embed-interests"},
        "tasks": codes | {"mine": "mine", "label": "label", "embed": "embed-interests", "sft": "sft-interests"},
        "reward": {"from": "tasks", "grpo": "grpo-interests"},
    }
    file = write_suite(tmp_path, methods=methods)
    for name in ("mine", "label", "embed-interests", "sft-interests", "grpo-interests"):
        reads = {} if name == "mine" else {"interests": "somewhere"}
        (tmp_path / "circle" / f"{name}.yaml").write_text(json.dumps(reads | {"seed": 0}))
    suite, places = load_suite(file), Places(tmp_path / "out", tmp_path)
    flat, told, tasks, reward = (steps_of(suite, cell, places) for cell in suite.cells())
    stages = ["prepare", "mine", "label", "embed", "quantize", "sft", "evaluate"]
    assert [step.stage for step in told] == [*stages, "evaluate"]
    assert [step.stage for step in reward] == [*stages[:-1], "grpo", "evaluate", "evaluate"]
    assert [one.key for one in told[:5]] == [other.key for other in tasks[:5]] and told[5].key != tasks[5].key
    assert {step.key for step in flat[1:]}.isdisjoint(step.key for step in told)
    assert flat[1].output != told[3].output and flat[2].output != told[4].output  # vectors and codes of their own
    readers = {
        step.stage: step.command[step.command.index("--interests") + 1]
        for step in reward
        if "--interests" in step.command
    }
    labels = str(told[2].output)
    assert readers == {"label": str(told[1].output)} | dict.fromkeys(("embed", "sft", "grpo"), labels)
    assert "--interests" not in told[5].command  # a recipe that reads none
    recipe = tmp_path / "circle" / "mine.yaml"
    recipe.write_text(json.dumps({"seed": 1}))
    again = steps_of(suite, suite.cells()[3], places)
    assert [one.key == other.key for one, other in zip(again, reward, strict=True)] == [True] + [False] * 8
    with pytest.raises(HfGrError, match="one of mine and label"):
        load_suite(write_suite(tmp_path, methods={"flat": codes | {"mine": "mine"}}))
    lost = load_suite(write_suite(tmp_path, methods={"flat": codes | {"embed": "embed-interests"}}))
    with pytest.raises(HfGrError, match="recipe embed-interests reads interests; give method flat mine and label"):
        steps_of(lost, lost.cells()[0], places)


def test_what_was_measured_stays_where_only_a_key_has_changed(tmp_path):
    output = tmp_path / "made"
    output.mkdir()
    command = [sys.executable, "-c", "pass"]  # a stage that finds its output up to date
    measured = {"seconds": 5.0, "cpu_seconds": 4.0, "peak_bytes": 3}
    old, new = (Step("sft", output, command, key) for key in ("old", "new"))
    old.cost_file.write_text(json.dumps(measured | {"key": "old", "finished": True}))
    assert new.cost() is None
    assert Runner(1).run(new, tmp_path / "log.txt") == measured and new.cost()["seconds"] == 5.0
    old.cost_file.unlink()
    assert Runner(1).run(new, tmp_path / "log.txt") == dict.fromkeys(measured)


def test_stages_hear_nothing_of_a_launcher(monkeypatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_PORT",
        "ACCELERATE_MIXED_PRECISION",
        "TORCHELASTIC_RUN_ID",
    ):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = _environment(2)
    assert not [name for name in found if LAUNCHER.fullmatch(name)] and found["PATH"] == os.environ["PATH"]
    assert found["OMP_NUM_THREADS"] == "2" and found["CUDA_VISIBLE_DEVICES"] == "1"


def test_item_knn_is_judged_without_a_training(tmp_path):
    """The bench's kNN is the reports' kNN: there is no other."""
    methods = {"knn": {"evaluate": {"baselines": True}}, "flat": {"quantize": "quantize", "sft": "sft-flat"}}
    suite = load_suite(write_suite(tmp_path, methods=methods))
    steps = steps_of(suite, suite.cells()[0], Places(tmp_path / "out", tmp_path))
    assert [step.stage for step in steps] == ["prepare", "evaluate", "evaluate"]
    words = steps[1].command
    assert words[words.index("--baselines") + 1] == "true" and "--model" not in words and "--predictions" not in words
