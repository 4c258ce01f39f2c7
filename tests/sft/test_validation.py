"""SFT chooses by what users get: the best checkpoint, a start that is better, when to stop, also after a kill."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_lm
from tiny_runs import TinyData, sft_configs, tiny_data
from transformers import TrainerControl, TrainerState

from hf_gr.dataset import InteractionDataset
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.sft import SidSFTConfig, SidSFTTrainer, sft
from hf_gr.validation import Patience, Validation, _searchable


MEASURED = {"eval_strategy": "steps", "eval_steps": 8, "save_strategy": "steps", "patience": 9, "max_steps": 24}
KINDS = {
    "flat": {},
    "lora": {"finetune": "lora", "learning_rate": 1e-2},
    "curriculum": {"rows_first": 0.5},
    "stepwise": {"form": "stepwise", "thinking": {"clusters": 4}},
    "hidden": {"form": "stepwise", "thinking": {"clusters": 4, "feedback": "hidden"}},
    "upfront": {"form": "upfront"},
    "unordered": {"form": "unordered"},
    "recursive": {"form": "recursive"},
    "hybrid": {"form": "recursive", "recursion": {"read": "sum", "dense": 1.0, "dense_share": 0.4}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("chosen"))


def log_of(model: Path) -> list[dict]:
    return json.loads((model / "training_log.json").read_text())


def figures_of(model: Path, name: str) -> dict[int, float]:
    return {entry["step"]: entry[f"eval_{name}"] for entry in log_of(model) if f"eval_{name}" in entry}


def ndcg_at_10(model: Path, data: TinyData) -> float:
    """On the validation part, by the recommender's lists, one user after another."""
    cases = InteractionDataset.load(data.dataset).split().validation
    items, _ = Recommender.from_pretrained(model).recommend(cases.histories, top_k=10, num_beams=50)
    pairs = zip(items.tolist(), cases.targets, strict=True)
    gains = [1 / np.log2(2 + row.index(target)) if target in row else 0 for row, target in pairs]
    return float(np.mean(gains))


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_with_the_best_lists_becomes_the_model(data, tmp_path, kind):
    settings = data.sft(tmp_path / "run", **MEASURED | {"learning_rate": 1e-2} | KINDS[kind])
    model = sft(*sft_configs(**settings))
    measured = figures_of(model, "NDCG@10")
    assert list(measured) == list(figures_of(model, "loss")) == [8, 16, 24]
    assert min(figures_of(model, "users_runtime").values()) > 0
    assert ndcg_at_10(model, data) == pytest.approx(max(measured.values()), abs=1e-5)
    assert len(set(measured.values())) > 1  # else any would do


def test_the_start_of_a_model_that_goes_on_is_a_candidate(data, tmp_path, capsys):
    stepwise = {"form": "stepwise", "thinking": {"clusters": 4}}
    start = sft(*sft_configs(**data.sft(tmp_path / "start", max_steps=70, **stepwise)))
    ruined = {"learning_rate": 0.3, "warmup_steps": 0, "eval_steps": 2, "patience": 2}
    model = sft(*sft_configs(**data.sft(tmp_path / "on", continue_from=str(start), **MEASURED | ruined)))
    measured = figures_of(model, "NDCG@10")
    assert list(measured) == [0, 2, 4]  # twice no better: stopped
    assert "[sft] no checkpoint was better than the start (NDCG@10 " in capsys.readouterr().out
    for name in ("model.safetensors", "thinking.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in (model, start))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_resumed_run_keeps_the_same_best_and_stops_at_the_same_step(data, tmp_path):
    """It learns until the learning rate, which climbs, ruins it; killed between the best and the stop."""
    settings = MEASURED | {"learning_rate": 0.3, "warmup_steps": 60, "max_steps": 60, "eval_steps": 4, "patience": 3}
    settings |= {"save_total_limit": 1}
    whole = sft(*sft_configs(**data.sft(tmp_path / "whole", **settings)))
    measured = figures_of(whole, "NDCG@10")
    best, last = max(measured, key=measured.get), max(measured)
    assert last == best + 12 < 60

    def killed(self, *arguments, save=SidSFTTrainer._save_checkpoint, **rest):
        save(self, *arguments, **rest)
        if self.state.global_step == best + 4:
            raise KeyboardInterrupt

    again = data.sft(tmp_path / "killed", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SidSFTTrainer, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            sft(*sft_configs(**again))
    resumed = sft(*sft_configs(**again))
    assert figures_of(resumed, "NDCG@10") == measured
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_loss_that_decides_costs_no_search(data, tmp_path, monkeypatch):
    def searched(*_, **__):
        raise AssertionError("lists were searched")

    monkeypatch.setattr(Validation, "measure", searched)
    settings = data.sft(tmp_path / "run", **MEASURED, metric_for_best_model="eval_loss")
    model = sft(*sft_configs(**settings))
    losses = figures_of(model, "loss")
    assert list(losses) == [8, 16, 24] and not figures_of(model, "NDCG@10")
    with pytest.raises(HfGrError, match=r"eval_beams is 20, but acts only with .*not eval_loss"):
        sft_configs(**settings, eval_beams=20)
    with pytest.raises(AssertionError, match="lists were searched"):
        sft(*sft_configs(**settings | {"metric_for_best_model": "HR@10"}))


def test_fewer_users_are_measured_if_fewer_are_asked_for(data, tmp_path):
    whole, part = (
        figures_of(sft(*sft_configs(**data.sft(tmp_path / str(users), **MEASURED, eval_users=users))), "HR@10")
        for users in (60, 7)
    )
    assert all(value * 7 == pytest.approx(round(value * 7), abs=1e-4) for value in part.values())
    assert whole != part


def test_checkpoints_come_with_evaluations_where_the_best_is_kept():
    given = {"output_dir": "x", "eval_strategy": "steps", "eval_steps": 6, "patience": 1}
    assert SidSFTConfig(**given).save_steps == 6
    for changes in ({"save_steps": 12}, {"save_strategy": "epoch"}, {"save_strategy": "no"}):
        with pytest.raises(HfGrError, match=r"the best checkpoint is taken, but .*; set them alike, or patience: 0"):
            SidSFTConfig(**given | changes)
    with pytest.raises(HfGrError, match="patience waits for measurements; set eval_strategy"):
        SidSFTConfig(output_dir="x", patience=2)


@pytest.mark.parametrize("greater", [True, False])
def test_patience_is_that_of_a_loop(greater):
    """Against a count that is kept from one evaluation to the next, on random figures with ties."""
    draws = np.random.default_rng(0)
    args = SidSFTConfig(output_dir="x")
    args.metric_for_best_model, args.greater_is_better = "eval_NDCG@10", greater
    for patience in (1, 2, 3):
        for values in draws.integers(0, 6, size=(50, 12)).tolist():
            state, control, best, waited = TrainerState(), TrainerControl(), None, 0
            for value in values:
                state.log_history += [{"loss": 1.0}, {"eval_NDCG@10": value}]
                better = best is None or (value > best if greater else value < best)
                best, waited = (value, 0) if better else (best, waited + 1)
                Patience(patience).on_evaluate(args, state, control)
                assert control.should_training_stop == (waited >= patience)
                if waited >= patience:
                    break


def test_a_model_that_trains_with_block_masks_is_searched_under_sdpa():
    model = tiny_lm()
    for attention in ("flex_attention", "eager"):
        model.set_attn_implementation(attention)
        with _searchable(model):
            inside = model.config._attn_implementation
        assert inside == ("sdpa" if attention == "flex_attention" else "eager")
        assert model.config._attn_implementation == attention
