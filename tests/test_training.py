import copy

import pytest
import torch
from tiny_runs import QUIET, grpo_configs, retrieve_configs, sft_configs, tiny_data
from transformers import T5Config

from hf_gr.artifacts import mark
from hf_gr.errors import HfGrError
from hf_gr.grpo import SidGRPOConfig, grpo
from hf_gr.retrieval import retrieve
from hf_gr.runs import Run, changed_settings
from hf_gr.sft import SidSFTConfig, sft
from hf_gr.training import has_fast_bf16, load_lm


class _Saved(torch.nn.Module):
    """Stands for a trained model: `finish` hands it to `save_repo`, which the test replaces."""


def test_a_finished_run_clears_its_own_folder_and_no_other(tmp_path, monkeypatch):
    run = Run("sft", tmp_path, {"seed": 1}, {}, {})
    mark(run.folder)
    (run.folder / "checkpoint-5").mkdir()
    kept = tmp_path / "run-of-somebody-else"
    kept.mkdir()
    monkeypatch.setattr("hf_gr.runs.save_repo", lambda folder, *_, **__: (folder / "config.json").write_text("{}"))
    run.finish(_Saved(), None, None, None, [], None)
    assert (run.model / "manifest.json").is_file()
    assert not run.folder.exists() and kept.is_dir()


@pytest.mark.parametrize("config", [SidSFTConfig, SidGRPOConfig])
@pytest.mark.parametrize("fast", [True, False])
def test_bf16_is_left_to_the_machine_unless_it_is_asked_for(config, fast, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    given = {"output_dir": str(tmp_path), "use_cpu": True}
    assert config(**given).bf16 is fast
    assert changed_settings(config(**given))["bf16"] is fast  # what was run with is told, asked for or not
    assert config(**given, bf16=not fast).bf16 is not fast
    assert config(**given, fp16=True).bf16 is False


def settings_of(configs):
    """Everything in some configs but the state of their processes, which accelerate puts there."""
    return {name: value for config in configs for name, value in vars(config).items() if name != "distributed_state"}


def test_a_config_is_unchanged_by_its_run_and_runs_again_as_up_to_date(tmp_path, capsys):
    data = tiny_data(tmp_path)
    quiet = QUIET | {"dataset": str(data.dataset), "hidden_size": 16, "max_steps": 1, "patience": 0}
    model = tmp_path / "sft" / "model"
    configs = {
        sft: sft_configs(**data.sft(tmp_path / "sft", max_steps=1)),
        grpo: grpo_configs(**data.grpo(tmp_path / "grpo", model, max_steps=1)),
        retrieve: retrieve_configs(**quiet, output_dir=str(tmp_path / "retrieve"), eval_strategy="no"),
    }
    for stage, settings in configs.items():
        before = copy.deepcopy(settings_of(settings))
        made = stage(*settings)
        assert settings_of(settings) == before
        capsys.readouterr()
        assert stage(*settings) == made
        assert "up to date" in capsys.readouterr().out and settings_of(settings) == before


@pytest.mark.parametrize("real", [True, False])
def test_a_gpu_that_emulates_bf16_is_not_fast(real, monkeypatch):
    def supported(including_emulation=True):
        return including_emulation or real

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_fast_bf16() is real


def test_what_is_no_causal_lm_is_told_in_a_line(tmp_path):
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(HfGrError, match="t5' is of type 't5', which is no causal LM; give a decoder") as error:
        load_lm(str(tmp_path / "t5"))
    assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(HfGrError, match=r"cannot load the model .*empty'") as error:
        load_lm(str(tmp_path / "empty"))
    assert "\n" not in str(error.value)
