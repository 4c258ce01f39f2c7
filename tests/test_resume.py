"""Training killed by SIGKILL and started again with the same command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import QUIET, TinyData, arguments, grpo_configs, retrieve_configs, sft_configs, tiny_data

from hf_gr.artifacts import fingerprint
from hf_gr.cli import main
from hf_gr.grpo import grpo
from hf_gr.retrieval import retrieve
from hf_gr.safeguards import is_whole
from hf_gr.sft import sft


SAVING = {"save_strategy": "steps", "save_steps": 10}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("resume"))


def start_and_kill(command: list[str], output: Path) -> int:
    """Runs a command until its first checkpoint is complete and kills its process group; returns that step."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_gr.cli", *command],
        start_new_session=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300  # the first import of everything may take long
        while time.monotonic() < deadline:
            found = [path for path in output.glob("run-*/checkpoint-*") if is_whole(path)]
            if found or process.poll() is not None:
                break
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        errors = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, f"ended by itself with {process.returncode}: {errors[-2000:]}"
    assert found, f"no checkpoint within five minutes: {errors[-2000:]}"
    return max(int(path.name.split("-")[1]) for path in found)


def log_of(model: Path) -> list[dict]:
    return json.loads((model / "training_log.json").read_text())


def check_resumed(stage: str, settings: dict, unkilled: Path, capsys) -> None:
    """Kills a run, starts it again, and compares its end with that of a run that was left alone."""
    output = Path(settings["output_dir"])
    command = [stage, *arguments(settings)]
    old = fingerprint(output / "model")
    saved = start_and_kill(command, output)
    assert fingerprint(output / "model") == old  # what an earlier run has made stays whole
    assert 0 < saved < settings["max_steps"]

    capsys.readouterr()
    main(command)
    printed = capsys.readouterr().out
    assert f"[{stage}] resuming from {output}" in printed and f"[{stage}] wrote {output / 'model'}" in printed
    assert [path.name for path in output.iterdir()] == ["model"]

    log, expected = log_of(output / "model"), log_of(unkilled)
    assert log[-1]["step"] == expected[-1]["step"] == settings["max_steps"]
    steps = [entry["step"] for entry in log if "grad_norm" in entry]
    assert steps == list(range(1, settings["max_steps"] + 1))  # every step once: some before the kill, some after
    weights, reference = (load_file(folder / "model.safetensors") for folder in (output / "model", unkilled))
    assert weights.keys() == reference.keys()
    for name in weights:  # same data, optimizer and random state: the very same model but for rounding
        assert (weights[name] - reference[name]).abs().max() < 1e-3, name


def earlier_model(data: TinyData, output: Path) -> None:
    sft(*sft_configs(**data.sft(output, max_steps=1)))


def test_sft_goes_on_from_its_checkpoint(data, tmp_path, capsys):
    earlier_model(data, tmp_path / "run")
    settings = data.sft(tmp_path / "run", max_steps=100, **SAVING)
    unkilled = sft(*sft_configs(**data.sft(tmp_path / "unkilled", max_steps=100)))
    check_resumed("sft", settings, unkilled, capsys)


def test_grpo_goes_on_from_its_checkpoint(data, tmp_path, capsys):
    start = sft(*sft_configs(**data.sft(tmp_path / "start", max_steps=20)))
    grpo(*grpo_configs(**data.grpo(tmp_path / "run", start, max_steps=1)))  # an earlier model
    settings = data.grpo(tmp_path / "run", start, max_steps=60, learning_rate=1e-4, **SAVING)
    unkilled = grpo(*grpo_configs(**data.grpo(tmp_path / "unkilled", start, max_steps=60, learning_rate=1e-4)))
    check_resumed("grpo", settings, unkilled, capsys)


def test_retrieve_goes_on_from_its_checkpoint(data, tmp_path, capsys):
    given = QUIET | {"dataset": str(data.dataset), "hidden_size": 32, "negatives": 8, "patience": 100}
    given |= {"per_device_train_batch_size": 16, "logging_strategy": "steps", "max_steps": 300}
    for strategy in ("eval", "save"):
        given |= {f"{strategy}_strategy": "steps", f"{strategy}_steps": 25}
    retrieve(*retrieve_configs(**given | {"output_dir": str(tmp_path / "run"), "max_steps": 25}))
    unkilled = retrieve(*retrieve_configs(**given | {"output_dir": str(tmp_path / "unkilled")}))
    check_resumed("retrieve", given | {"output_dir": str(tmp_path / "run")}, unkilled, capsys)


def test_a_changed_setting_never_goes_on_from_a_foreign_checkpoint(data, tmp_path, capsys):
    settings = data.sft(tmp_path / "run", max_steps=6, save_strategy="steps", save_steps=2)

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("hf_gr.runs.Run.finish", kill)
        sft(*sft_configs(**settings))
    assert list((tmp_path / "run").glob("run-*/checkpoint-6"))
    capsys.readouterr()
    model = sft(*sft_configs(**settings | {"learning_rate": 1e-4}))
    assert "resuming" not in capsys.readouterr().out
    assert [entry["step"] for entry in log_of(model) if "grad_norm" in entry] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("torn", ["no state", "half a state", "half an optimizer"])
def test_a_torn_checkpoint_is_passed_over(data, tmp_path, capsys, torn):
    """The trainer writes its state last: a folder without it was cut off; a full disk cuts any file."""
    settings = data.sft(tmp_path / "run", max_steps=6, save_strategy="steps", save_steps=2)

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("hf_gr.runs.Run.finish", kill)
        sft(*sft_configs(**settings))
    (state,) = (tmp_path / "run").glob("run-*/checkpoint-6/trainer_state.json")
    if torn == "no state":
        state.unlink()
    else:
        cut = state if torn == "half a state" else state.with_name("optimizer.pt")
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    capsys.readouterr()
    model = sft(*sft_configs(**settings))
    assert f"resuming from {state.parents[1] / 'checkpoint-4'}" in capsys.readouterr().out
    assert log_of(model)[-1]["step"] == 6
