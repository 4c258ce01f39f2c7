from hf_gr.training import Run


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
