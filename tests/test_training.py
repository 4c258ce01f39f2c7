import pytest
import torch

from hf_gr.grpo import SidGRPOConfig
from hf_gr.sft import SidSFTConfig
from hf_gr.training import Run, changed_settings


class _Saved:
    """Stands for a trained model: `finish` hands it to `save_repo`, which the test replaces."""


def test_a_finished_run_clears_its_own_folder_and_no_other(tmp_path, monkeypatch):
    run = Run("sft", tmp_path, {"seed": 1}, {}, {})
    (run.folder / "checkpoint-5").mkdir(parents=True)
    kept = tmp_path / "run-of-somebody-else"
    kept.mkdir()
    monkeypatch.setattr("hf_gr.training.save_repo", lambda folder, *_, **__: (folder / "config.json").write_text("{}"))
    run.finish(_Saved(), None, None, None, [], None)
    assert (run.model / "manifest.json").is_file()
    assert not run.folder.exists() and kept.is_dir()


@pytest.mark.parametrize("config", [SidSFTConfig, SidGRPOConfig])
@pytest.mark.parametrize("fast", [True, False])
def test_bf16_is_left_to_the_machine_unless_it_is_asked_for(config, fast, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    given = {"dataset": "data", "model": "model", "output_dir": str(tmp_path), "use_cpu": True}
    assert config(**given).bf16 is fast
    assert changed_settings(config(**given))["bf16"] is fast  # what was run with is told, asked for or not
    assert config(**given, bf16=not fast).bf16 is not fast
    assert config(**given, fp16=True).bf16 is False
