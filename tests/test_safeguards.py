"""What diverges writes no model, and what is not whole is no checkpoint."""

import math

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import QUIET, TinyData, grpo_configs, retrieve_configs, sft_configs, tiny_data

from hf_gr.errors import HfGrError
from hf_gr.grpo import grpo
from hf_gr.retrieval import retrieve
from hf_gr.safeguards import check_finite, is_whole
from hf_gr.sft import SidSFTTrainer, sft


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("safeguards"))


@pytest.fixture(scope="module")
def start(data):
    return sft(*sft_configs(**data.sft(data.dataset.with_name("start"), max_steps=2)))


def run(stage, data, start, output, **changes):
    if stage == "sft":
        return sft(*sft_configs(**data.sft(output, **changes)))
    if stage == "grpo":
        return grpo(*grpo_configs(**data.grpo(output, start, beta=0.1, **changes)))
    given = QUIET | {"dataset": str(data.dataset), "hidden_size": 16, "per_device_train_batch_size": 16, "patience": 0}
    return retrieve(*retrieve_configs(**given | {"output_dir": str(output), "eval_strategy": "no"} | changes))


@pytest.mark.parametrize("stage", ["sft", "grpo", "retrieve"])
def test_a_training_that_diverges_stops_and_writes_no_model(data, start, tmp_path, stage, capfd):
    told = r"of step \d is (nan|inf), so training has diverged and no model is written; lower learning_rate \(1e\+20\)"
    with pytest.raises(HfGrError, match=told):
        run(stage, data, start, tmp_path / "run", learning_rate=1e20, max_steps=12, disable_tqdm=False)
    assert not (tmp_path / "run" / "model").exists()
    assert capfd.readouterr().err.endswith("\n")  # the progress bar is closed: an error begins a line of its own


@pytest.mark.parametrize("stage", ["sft", "retrieve"])
def test_a_gradient_that_is_not_finite_stops_before_the_step(data, start, tmp_path, stage, monkeypatch):
    steps = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), step(self, *a, **k))[1])
    norm = torch.tensor(math.nan)
    monkeypatch.setattr("accelerate.Accelerator.clip_grad_norm_", lambda *_, **__: norm)
    with pytest.raises(HfGrError, match="the gradient's norm of step 1 is nan"):
        run(stage, data, start, tmp_path / "run", max_steps=2)
    assert not steps and not (tmp_path / "run" / "model").exists()


def test_a_last_step_that_breaks_the_weights_writes_no_model(data, start, tmp_path, monkeypatch):
    """No later loss would show it."""
    step = torch.optim.AdamW.step

    def broken(self, *args, **kwargs):
        step(self, *args, **kwargs)
        self.param_groups[0]["params"][0].data.view(-1)[0] = math.nan

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    for stage in ("sft", "retrieve"):
        with pytest.raises(HfGrError, match="holds NaN or infinity, and no model is written"):
            run(stage, data, start, tmp_path / stage, max_steps=1)
        assert not (tmp_path / stage / "model").exists()


def test_a_validation_loss_that_is_not_finite_stops(data, tmp_path, monkeypatch):
    original = SidSFTTrainer.evaluation_loop

    def broken(self, *args, **kwargs):
        found = original(self, *args, **kwargs)
        found.metrics["eval_loss"] = math.nan
        return found

    monkeypatch.setattr(SidSFTTrainer, "evaluation_loop", broken)
    with pytest.raises(HfGrError, match="the validation loss of step 1 is nan"):
        sft(*sft_configs(**data.sft(tmp_path / "run", max_steps=2, eval_strategy="steps", eval_steps=1)))


def test_check_finite_names_the_weight():
    model = torch.nn.Linear(2, 2)
    check_finite(model)
    model.bias.data[1] = math.inf
    with pytest.raises(HfGrError, match="bias holds NaN or infinity"):
        check_finite(model)


FILES = ("trainer_state.json", "model.safetensors", "optimizer.pt", "rng_state.pth")


@pytest.mark.parametrize("cut", FILES)
def test_a_checkpoint_with_a_file_cut_short_is_none(tmp_path, cut):
    (tmp_path / "trainer_state.json").write_text('{"global_step": 4}')
    save_file({"weight": torch.ones(64)}, tmp_path / "model.safetensors")
    for name in FILES[2:]:
        torch.save({"state": torch.ones(64)}, tmp_path / name)
    assert is_whole(tmp_path)
    whole = (tmp_path / cut).read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / cut).write_bytes(whole[:length])
        assert not is_whole(tmp_path), length
    (tmp_path / cut).write_bytes(whole)
    assert is_whole(tmp_path)
