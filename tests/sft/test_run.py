"""SFT runs: what a tiny one learns, reruns, continuation, thinking heads, the curriculum, adapters."""

import copy
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from tiny_runs import (
    distinct_catalog,
    grpo_configs,
    held_out,
    hit_rate,
    plain_logits,
    sft_configs,
    tiny_data,
    untied_lm,
)
from transformers import AutoModelForCausalLM, Qwen3Config

import hf_gr.sft.run
from hf_gr.adapters import merge_adapter, tuned
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import InteractionDataset
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.evaluation.baselines import Popularity
from hf_gr.grpo import grpo
from hf_gr.models import ThinkingConfig, ThinkingHeads
from hf_gr.runs import Run
from hf_gr.sft import SidSFTTrainer, sft
from hf_gr.sft.run import starting_model
from hf_gr.sft.tasks import next_item


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def trained(data):
    """A model that has learned the walk."""
    return sft(*sft_configs(**data.sft(data.dataset.with_name("trained"))))


def test_a_setting_counts_also_where_an_input_is_called_like_it(data, tmp_path, monkeypatch):
    """A catalog in a folder `unordered` does not hide the form of that name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data.catalog, "unordered")
    shutil.copytree(data.catalog, "elsewhere")

    def folder(catalog: str, **settings: str) -> str:
        configs = sft_configs(**data.sft(tmp_path / "out", **settings) | {"catalog": catalog})
        return Run.of("sft", configs, {"dataset": data.dataset, "catalog": catalog}).folder.name

    assert folder("unordered", form="unordered") != folder("unordered")
    assert folder("unordered") == folder("elsewhere")  # an input counts by its content


def log_of(model: Path) -> list[dict]:
    return json.loads((model / "training_log.json").read_text())


def test_padding_and_company_do_not_change_the_logged_loss(data, tmp_path):
    """The mean is over codes: the same rows in two batches, accumulated, are one batch."""
    losses = []
    for batch, accumulate in ((16, 1), (8, 2)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate, "max_steps": 2}
        log = log_of(sft(*sft_configs(**data.sft(tmp_path / f"{batch}", **settings))))
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# Runs


def test_a_tiny_run_learns_the_walk(data, trained):
    cases = held_out(data)
    split = InteractionDataset.load(data.dataset).split()
    popular = Popularity(split.train, 40).recommend(cases.histories, 5)
    popularity = float((popular == cases.targets[:, None]).any(axis=1).mean())
    learned = hit_rate(trained, cases, 5)
    assert learned > 0.6, f"HR@5 {learned:.2f} (chance .125, the pattern allows about .9)"
    assert learned > 2 * popularity
    accuracy = [entry["code_accuracy"] for entry in log_of(trained) if "code_accuracy" in entry]
    assert len(accuracy) == 60
    assert np.mean(accuracy[-5:]) > 0.7 > 0.5 > accuracy[0]


@pytest.mark.parametrize(("credit", "share"), [("next", 0.5), ("any", 1.0), ("next", 0.0)])
def test_sets_learn_the_walk_and_go_on_after_a_kill(data, tmp_path, credit, share):
    """The second run is stopped at its checkpoint and started again: chance depends on the step alone."""
    settings = {"form": "unordered", "set_credit": credit, "confident_orders": share, "max_steps": 100}
    settings |= {"trunk_weight": float(credit == "any")}
    model = sft(*sft_configs(**data.sft(tmp_path / "once", **settings)))
    assert hit_rate(model, held_out(data), 5) > 0.45
    if credit == "any":
        return
    again = data.sft(tmp_path / "again", **settings) | {"save_strategy": "steps", "save_steps": 30}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SidSFTTrainer, "_save_checkpoint", killed_after(SidSFTTrainer._save_checkpoint))
        with pytest.raises(KeyboardInterrupt):
            sft(*sft_configs(**again))
    resumed = sft(*sft_configs(**again))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (resumed, model))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def killed_after(save):
    def killed(*args, **kwargs):
        save(*args, **kwargs)
        raise KeyboardInterrupt

    return killed


def test_confident_orders_need_masks_of_ours(data, tmp_path):
    settings = {"form": "unordered", "model": {"architecture": "qwen3", "layers": 1, "width": 32}}
    with pytest.raises(HfGrError, match=r"confident_orders is not to be had here: .*flex.*; set confident_orders: 0"):
        sft(*sft_configs(**data.sft(tmp_path / "flex", attention="flex_attention", **settings)))


def test_full_loss_learns_too_and_reports_tokens(data, tmp_path):
    """The softmax over the whole vocabulary: near log(vocabulary) at first, and falling."""
    log = log_of(sft(*sft_configs(**data.sft(tmp_path / "full", loss="full", max_steps=25))))
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] > 4.5  # log 290 = 5.7, where the constrained loss begins near log 4 = 1.4
    assert losses[-1] < losses[0] - 1.5


def test_evaluation_during_training_reports_the_held_out_loss(data, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 5, "max_steps": 10, "per_device_eval_batch_size": 16}
    log = log_of(sft(*sft_configs(**data.sft(tmp_path / "eval", **settings))))
    held_out_losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(held_out_losses) == 2 and held_out_losses[1] < held_out_losses[0] < 3


def test_the_second_run_trains_nothing_and_says_so(data, trained, capsys, monkeypatch):
    settings = data.sft(trained.parent)
    before = (trained / "model.safetensors").stat().st_mtime_ns

    def trains(*_, **__):
        raise AssertionError("a second run built a trainer")

    monkeypatch.setattr(hf_gr.sft.run, "SidSFTTrainer", trains)
    assert sft(*sft_configs(**settings)) == trained
    assert "[sft] up to date:" in capsys.readouterr().out
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    sft(*sft_configs(**settings | {"logging_steps": 7, "save_steps": 11}))  # how it is watched changes no model
    for change in ({"learning_rate": 1e-4}, {"max_history": 9}, {"seed": 5}, {"force": True}, {"max_steps": 61}):
        with pytest.raises(AssertionError, match="a second run built a trainer"):
            sft(*sft_configs(**settings | change))


def test_a_changed_setting_trains_again(data, tmp_path, capsys):
    settings = data.sft(tmp_path / "run", max_steps=2)
    weights = []
    for rate in (1e-3, 1e-2):
        model = sft(*sft_configs(**settings | {"learning_rate": rate}))
        assert "[sft] wrote" in capsys.readouterr().out
        weights.append((model / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]  # nothing of the runs is left


def test_train_rows_only_leaves_the_rest_as_it_was(data, tmp_path):
    configs = sft_configs(**data.sft(tmp_path / "rows", max_steps=3, train_rows_only=True, weight_decay=0.1))
    train = InteractionDataset.load(data.dataset).split().train
    start, _, vocabulary = starting_model(configs[1], distinct_catalog(), train)
    rows = torch.tensor(vocabulary.token_ids)
    before = copy.deepcopy(start.state_dict())
    after = AutoModelForCausalLM.from_pretrained(sft(*configs)).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}  # tied: one tensor under two names
    difference = (before["lm_head.weight"] - after["lm_head.weight"]).abs().sum(1)
    assert (difference[: rows[0]] == 0).all() and (difference[vocabulary.code_ids[0][0]] > 0).all()


# Going on


def test_continue_goes_on_where_the_model_was(data, trained, tmp_path):
    settings = data.sft(tmp_path / "more", continue_from=str(trained), max_steps=3, learning_rate=1e-4)
    log = log_of(sft(*sft_configs(**settings)))
    first, fresh = log[0]["loss"], log_of(trained)[0]["loss"]
    assert first < 0.7 * fresh, f"went on with a loss of {first:.2f}, from scratch it was {fresh:.2f}"


def test_a_hub_model_that_goes_on_is_read_of_one_commit(data, trained, tmp_path, monkeypatch):
    """Every look at the Hub could see another commit: there is one, for weights, tokens, records and interests."""
    looks = []

    def snapshot(name, **given):
        looks.append(name)
        return str(trained)

    monkeypatch.setattr("hf_gr.offline.snapshot_download", snapshot)
    model = sft(*sft_configs(**data.sft(tmp_path / "more", continue_from="someone/model", max_steps=1)))
    assert looks == ["someone/model"]
    assert "someone/model" in (model / "README.md").read_text()


@pytest.mark.parametrize("changes", [{"max_history": 7}, {"context": "behavior"}, {"prompt": "Next: "}])
def test_continue_refuses_other_histories_than_the_model_has(data, trained, tmp_path, changes):
    settings = data.sft(tmp_path / "on", max_steps=1, continue_from=str(trained)) | changes
    with pytest.raises(HfGrError, match=rf"{next(iter(changes))} is .+ goes on with its own, .+; leave it out"):
        sft(*sft_configs(**settings))


def test_continue_refuses_a_foreign_catalog(data, trained, tmp_path):
    other = tiny_catalog(sizes=(4, 4, 4), seed=9)
    other.save(tmp_path / "other")
    settings = data.sft(tmp_path / "more", continue_from=str(trained)) | {"catalog": str(tmp_path / "other")}
    with pytest.raises(HfGrError, match="is not the one this model was trained on"):
        sft(*sft_configs(**settings))
    assert not (tmp_path / "more" / "model").exists()


def test_a_model_of_ours_is_not_started_over(data, trained, tmp_path):
    settings = data.sft(tmp_path / "again", model=str(trained))
    with pytest.raises(HfGrError, match="already holds SID tokens"):
        sft(*sft_configs(**settings))


# Thinking


THINKING = {"form": "stepwise", "thinking": {"clusters": 4}}


def heads_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "thinking.safetensors")


@pytest.fixture(scope="module")
def thinker(data):
    return sft(*sft_configs(**data.sft(data.dataset.with_name("thinker"), **THINKING)))


def test_thinking_learns_the_walk_and_its_terms_are_logged(data, thinker):
    assert hit_rate(thinker, held_out(data), 5) > 0.4
    log = [entry for entry in log_of(thinker) if "loss" in entry]
    for name in ("align", "interest", "agreement"):
        values = [entry[f"thinking/{name}"] for entry in log]
        assert np.mean(values[-10:]) < np.mean(values[:10])
    accuracy = [entry["thinking/align_accuracy_1"] for entry in log]
    assert np.mean(accuracy[-10:]) > 0.7 > 0.5 > np.mean(accuracy[:3])
    for entry in log:  # a code's share of the loss, with the weights of the recipe
        parts = {"align": 0.3, "interest": 0.1, "agreement": 0.1}
        thinking = sum(weight * entry[f"thinking/{name}"] for name, weight in parts.items())
        assert entry["loss"] == pytest.approx(entry["code_loss"] + thinking / 3, rel=1e-3)


def test_a_thinking_model_is_a_plain_one_with_heads_beside_it(thinker):
    assert json.loads((thinker / "vocabulary.json").read_text())["form"] == "stepwise"
    assert not [name for name in load_file(thinker / "model.safetensors") if "thinking" in name]
    assert {path.name for path in thinker.glob("thinking.*")} == {"thinking.json", "thinking.safetensors"}
    AutoModelForCausalLM.from_pretrained(thinker)
    catalog = SidCatalog.load(thinker)
    start = ThinkingHeads.start(ThinkingConfig(clusters=4), 64, catalog, seed=0).state_dict()
    moved = {name for name, value in heads_of(thinker).items() if not torch.equal(value, start[name])}
    assert any("projections" in name for name in moved) and any("interest." in name for name in moved)


def test_hidden_feedback_trains_the_way_back(data, tmp_path):
    settings = THINKING | {"thinking": {"clusters": 4, "feedback": "hidden"}}
    model = sft(*sft_configs(**data.sft(tmp_path / "hidden", **settings)))
    assert heads_of(model)["feed.weight"].abs().max() > 0.01  # zero at the start
    assert hit_rate(model, held_out(data), 5) > 0.4  # the search feeds hidden states too


def test_a_killed_thinking_run_goes_on_with_its_heads(data, tmp_path, monkeypatch):
    settings = THINKING | {"max_steps": 12, "save_strategy": "steps", "save_steps": 4}
    whole = sft(*sft_configs(**data.sft(tmp_path / "whole", **settings)))
    train = SidSFTTrainer.training_step

    def killed(self, *arguments, **rest):
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return train(self, *arguments, **rest)

    monkeypatch.setattr(SidSFTTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        sft(*sft_configs(**data.sft(tmp_path / "killed", **settings)))
    monkeypatch.setattr(SidSFTTrainer, "training_step", train)
    resumed = sft(*sft_configs(**data.sft(tmp_path / "killed", **settings)))
    for name, value in heads_of(whole).items():
        assert torch.allclose(value, heads_of(resumed)[name], atol=1e-5), name


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_the_best_checkpoint_gives_its_heads_too(data, tmp_path, finetune):
    """The validation loss is worst at the end here, as the learning rate is absurd from the second evaluation on."""
    settings = THINKING | {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    settings |= {"patience": 1, "max_steps": 60, "learning_rate": 0.5, "warmup_steps": 40, "finetune": finetune}
    settings["metric_for_best_model"] = "eval_loss"
    seen = {}
    save = SidSFTTrainer._save

    def noted(self, *arguments, **rest):
        save(self, *arguments, **rest)
        seen[self.state.global_step] = {name: value.clone() for name, value in self.heads.state_dict().items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SidSFTTrainer, "_save", noted)
        model = sft(*sft_configs(**data.sft(tmp_path / "best", **settings)))
    losses = {entry["step"]: entry["eval_loss"] for entry in log_of(model) if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    assert best != max(losses) < 60
    assert all(torch.equal(value, seen[best][name]) for name, value in heads_of(model).items())


def test_going_on_without_a_word_stays_a_thinking_model(data, thinker, tmp_path):
    """`hf-gr sft --from MODEL` on new logs, nothing else said: not a flat model without heads."""
    settings = data.sft(tmp_path / "more", continue_from=str(thinker), max_steps=1, learning_rate=1e-9)
    model = sft(*sft_configs(**settings))
    assert json.loads((model / "vocabulary.json").read_text())["form"] == "stepwise"
    assert all(torch.allclose(value, heads_of(model)[name], atol=1e-6) for name, value in heads_of(thinker).items())
    flat = sft(*sft_configs(**settings | {"output_dir": str(tmp_path / "flat"), "form": "flat"}))
    assert not list(flat.glob("thinking.*"))
    assert json.loads((flat / "vocabulary.json").read_text())["form"] == "flat"


def test_grpo_refuses_hidden_feedback(data, tmp_path):
    settings = THINKING | {"thinking": {"clusters": 4, "feedback": "hidden"}, "max_steps": 1}
    model = sft(*sft_configs(**data.sft(tmp_path / "hidden", **settings)))
    with pytest.raises(HfGrError, match="feeds hidden states back"):
        grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", model)))


def test_going_on_keeps_the_heads_and_refuses_others(data, thinker, tmp_path):
    settings = data.sft(tmp_path / "more", continue_from=str(thinker), max_steps=1, learning_rate=1e-9, **THINKING)
    kept = heads_of(sft(*sft_configs(**settings)))
    assert all(torch.allclose(value, kept[name], atol=1e-6) for name, value in heads_of(thinker).items())
    with pytest.raises(HfGrError, match="ask for the same"):
        sft(*sft_configs(**settings | {"thinking": {"clusters": 5}}))


# Settings


def test_dropout_leaves_no_trace_in_the_model(data, tmp_path):
    model = sft(*sft_configs(**data.sft(tmp_path / "dropout", max_steps=2, hidden_dropout=0.5)))
    plain = sft(*sft_configs(**data.sft(tmp_path / "plain", max_steps=2)))
    found, expected = (load_file(folder / "model.safetensors") for folder in (model, plain))
    assert found.keys() == expected.keys()
    assert not torch.equal(found["model.embed_tokens.weight"], expected["model.embed_tokens.weight"])


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_new_rows_learn_first(data, tmp_path, finetune):
    """Until `rows_first` nothing else moves, weight decay or not; after it everything does."""
    seen = []
    step = torch.optim.AdamW.step

    def noted(self, *arguments, **rest):
        result = step(self, *arguments, **rest)
        seen.append([value.detach().clone() for group in self.param_groups for value in group["params"]])
        return result

    settings = {"max_steps": 4, "rows_first": 2, "weight_decay": 0.1, "finetune": finetune}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noted)
        sft(*sft_configs(**data.sft(tmp_path / "rows", **settings)))
    moved = [sum(not torch.equal(*pair) for pair in zip(*two, strict=True)) for two in itertools.pairwise(seen)]
    assert moved[0] == 1  # the embedding (tied to the head), or what LoRA trains of it
    assert moved[1] > 5 and moved[2] > 5


def test_rows_first_keeps_old_rows(data, tmp_path):
    configs = sft_configs(**data.sft(tmp_path / "rows", max_steps=3, rows_first=3, weight_decay=0.1))
    train = InteractionDataset.load(data.dataset).split().train
    start, _, vocabulary = starting_model(configs[1], distinct_catalog(), train)
    before = start.get_input_embeddings().weight.detach().clone()
    after = load_file(sft(*configs) / "model.safetensors")["model.embed_tokens.weight"]
    changed = (before != after).any(1)
    assert not changed[: min(vocabulary.token_ids)].any() and changed[vocabulary.code_ids[0][0]]


@pytest.mark.parametrize("changes", [{"rows_first": 1}, {"train_rows_only": True}])
def test_frozen_rows_are_refused_where_weights_are_sharded(data, tmp_path, changes, monkeypatch):
    monkeypatch.setattr("hf_gr.sft.trainer.is_sharded", lambda _: True)
    with pytest.raises(HfGrError, match=f"{next(iter(changes))} does not work on sharded weights"):
        sft(*sft_configs(**data.sft(tmp_path / "rows", max_steps=1, **changes)))


def test_a_prompt_is_learned_and_asked(data, tmp_path):
    model = sft(*sft_configs(**data.sft(tmp_path / "prompt", prompt="Next: ", max_steps=2)))
    recommender = Recommender.from_pretrained(model)
    [prompt] = recommender.prompts(held_out(data).histories.cut(np.array([0]), np.array([2])))
    assert (
        recommender.tokenizer.convert_ids_to_tokens(prompt[:6]) == list("Next:Ġ")
        and prompt[6] == recommender.vocabulary.start_id
    )


def test_a_mixture_of_tasks_trains(data, tmp_path):
    tasks = {"next_item": 1, "title_to_sid": 1, "sid_to_title": 0.5, "query_to_sid": 2}
    model = sft(*sft_configs(**data.sft(tmp_path / "tasks", tasks=tasks, max_steps=5, **THINKING)))
    log = [entry for entry in log_of(model) if "loss" in entry]
    assert len(log) == 5 and all(np.isfinite(entry["loss"]) for entry in log)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"nonsense": 1}}, "'nonsense', which is no task; choose from next_item"),
        ({"tasks": {}}, "tasks is empty; leave it out"),
        ({"model": ""}, "model is empty; leave it out"),
        ({"tasks": "next_item"}, "give keys and values"),
        ({"tasks": ["next_item"]}, "give tasks and weights"),
        ({"thinking": {}}, "form is 'flat' and has no thinking tokens"),
        ({"form": "stepwise", "thinking": {"clusteres": 3}}, "no key 'clusteres'"),
        ({"form": "upfront", "thinking": {"feedback": "hidden"}}, "form: stepwise alone"),
        ({"model": {"layer": 3}}, "no key 'layer'"),
        ({"model": "{architecture: bert}"}, "architecture is 'bert'"),
        ({"max_length": None}, "max_length is None"),
        ({"target_steps": 0}, "target_steps is 0"),
        ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0"),
        ({"rows_first": 5, "train_rows_only": True}, "not for train_rows_only"),
    ],
)
def test_settings_that_cannot_be_are_refused(data, tmp_path, changes, message):
    with pytest.raises(HfGrError, match=message) as caught:
        sft_configs(**data.sft(tmp_path / "bad") | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"bf16": True}, {"fill_rows": True}])
def test_ways_to_compute_give_the_same_losses(data, tmp_path, changes):
    losses = []
    for name, given in (("as it is", {}), ("changed", changes)):
        log = log_of(sft(*sft_configs(**data.sft(tmp_path / name, max_steps=4, **THINKING) | given)))
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=0.02 if "bf16" in changes else 1e-4)


def test_a_model_without_tree_attention_trains_on_one_row_per_answer(data, tmp_path):
    """The losses of a Qwen3 whose window is shorter than a row may be are those of its trunks and branches."""
    losses = []
    for name, window in (("full", None), ("windowed", 30)):
        changes = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0} if window else {}
        tiny_lm(Qwen3Config, **changes).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        settings = {"model": str(tmp_path / name), "max_history": 3, "max_length": 40, "max_steps": 1, "seed": 1}
        settings |= THINKING | {"per_device_train_batch_size": 10_000}  # everything in one batch
        log = log_of(sft(*sft_configs(**data.sft(tmp_path / f"{name}-sft", **settings))))
        losses.append(log[0])
    assert losses[0]["code_loss"] == pytest.approx(losses[1]["code_loss"], rel=1e-5)
    assert losses[1]["num_tokens"] > 1.3 * losses[0]["num_tokens"]
    with pytest.raises(HfGrError, match="fill_rows puts several users on a row, which is not for this model"):
        sft(*sft_configs(**data.sft(tmp_path / "filled", **settings | {"fill_rows": True})))


@pytest.mark.parametrize("settings", [{}, THINKING, {"form": "recursive"}], ids=["flat", "stepwise", "recursive"])
def test_sub_histories_have_the_losses_of_whole_histories(data, tmp_path, settings):
    """Before the first step, without dropout: a row for every event reads what its event has before it, no more."""
    logs = []
    for apart in (False, True):
        settings = {"max_steps": 1, "per_device_train_batch_size": 10_000} | settings  # everything in one batch
        logs.append(log_of(sft(*sft_configs(**data.sft(tmp_path / str(apart), **settings, sub_histories=apart))))[0])
    name = "loss" if "code_loss" not in logs[0] else "code_loss"
    assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-5)
    assert logs[1]["num_tokens"] > 1.3 * logs[0]["num_tokens"]


def test_a_row_that_is_too_long_is_refused_before_training(data, tmp_path):
    with pytest.raises(HfGrError, match="rows have at most 12; raise"):
        sft(*sft_configs(**data.sft(tmp_path / "long", max_length=12, form="stepwise")))


# Adapters


def adapted(data, tmp_path, **changes):
    """Trains an adapter for some steps; returns its model, the run's base and the rows it was trained on."""
    _, start_from, args = sft_configs(**data.sft(tmp_path / "run", max_steps=20, learning_rate=1e-2, **changes))
    catalog = distinct_catalog()
    train = InteractionDataset.load(data.dataset).split().train
    model, tokenizer, vocabulary = starting_model(start_from, catalog, train)
    start = copy.deepcopy(model.state_dict())
    base = tmp_path / "run" / "base"
    model, adapter = tuned(model, vocabulary, start_from, base)
    rows = next_item(train, catalog, vocabulary)
    trainer = SidSFTTrainer(
        model,
        args,
        catalog=catalog,
        vocabulary=vocabulary,
        processing_class=tokenizer,
        train_dataset=rows,
        peft_config=adapter,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    return trainer.accelerator.unwrap_model(trainer.model), base, start, vocabulary, rows["input_ids"][:6]


def reloaded(plain, folder: Path):
    plain.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def worst(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_lora_merges_into_the_model_that_was_trained(data, tmp_path, tied):
    source = {} if tied else {"model": str(untied_lm(tmp_path / "lm"))}
    model, base, start, vocabulary, prompts = adapted(data, tmp_path, finetune="lora", **source)
    before = plain_logits(model, prompts)
    plain = reloaded(merge_adapter(model, base), tmp_path / "merged")
    assert type(plain.get_output_embeddings()) is torch.nn.Linear  # an ordinary model, nothing of PEFT in it
    assert plain.config.tie_word_embeddings is tied
    assert worst(before, plain_logits(plain, prompts)) < 1e-4
    untrained = AutoModelForCausalLM.from_pretrained(base)
    assert worst(before, plain_logits(untrained, prompts)) > 0.1

    weights = plain.state_dict()
    new = torch.zeros(len(weights["lm_head.weight"]), dtype=torch.bool)
    new[vocabulary.token_ids] = True
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        moved = (weights[name] != start[name]).any(1)
        assert not moved[~new].any()  # the LM's own words stay
        assert moved[list(vocabulary.code_ids[0])].all()  # codes learn
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"]) is tied


@pytest.mark.parametrize("tied", [True, False])
def test_qlora_merges_into_full_precision_weights(data, tmp_path, tied):
    pytest.importorskip("bitsandbytes")
    source = {} if tied else {"model": str(untied_lm(tmp_path / "lm"))}
    model, base, start, vocabulary, prompts = adapted(data, tmp_path, finetune="qlora", **source)
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    before = plain_logits(model, prompts)
    plain = reloaded(merge_adapter(model, base), tmp_path / "merged")
    assert not any(type(module).__name__ == "Linear4bit" for module in plain.modules())
    after = plain_logits(plain, prompts)
    untrained = plain_logits(AutoModelForCausalLM.from_pretrained(base), prompts)
    # 4 bits move the logits a little; the adapter moves them far more, and the same way
    assert worst(before, after) < 0.5 * worst(before, untrained)
    weights = plain.state_dict()
    moved = (weights["lm_head.weight"] != start["lm_head.weight"]).any(1)
    assert moved[list(vocabulary.code_ids[0])].all() and not moved[: min(vocabulary.token_ids)].any()
    # exactly the adapter of the run on the full-precision weights
    from peft import PeftModel

    kept = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), base.with_name("adapter"))
    assert worst(after, plain_logits(kept, prompts)) < 1e-4


@pytest.mark.parametrize("finetune", ["lora", "qlora"])
def test_an_adapter_run_leaves_a_plain_model(data, tmp_path, finetune):
    if finetune == "qlora":
        pytest.importorskip("bitsandbytes")
    model = sft(*sft_configs(**data.sft(tmp_path / "run", finetune=finetune, max_steps=40, learning_rate=1e-2)))
    assert not list(model.glob("adapter*"))
    assert "quantization_config" not in json.loads((model / "config.json").read_text())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]
    assert hit_rate(model, held_out(data), 5) > 0.4
