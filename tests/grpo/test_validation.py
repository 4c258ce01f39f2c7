"""What guards a run: the measurement, the best checkpoint, the start where nothing was better, the early stop."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_runs import TinyData, grpo_configs, hit_rate, sft_configs, tiny_data
from toy_world import TARGETS, World

from hf_gr.dataset import Cases, Histories, InteractionDataset
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.grpo import grpo
from hf_gr.sft import sft
from hf_gr.validation import Validation, drawn_cases


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("validation"))


@pytest.fixture(scope="module")
def half_trained(data):
    return sft(*sft_configs(**data.sft(data.dataset.with_name("half"), max_steps=25)))


def log_of(model) -> list[dict]:
    return json.loads((model / "training_log.json").read_text())


@pytest.mark.parametrize("processes", [1, 3])
def test_the_measurement_is_the_recommenders(data, half_trained, processes):
    """Shared out among processes, each case counts once."""
    recommender, cases = Recommender.from_pretrained(half_trained), InteractionDataset.load(data.dataset).split()
    cases = cases.validation
    validation = Validation.of(
        drawn_cases(cases, 10**6, seed=0), recommender.catalog, recommender.vocabulary, num_beams=20, batch_size=7
    )
    totals = []

    class Share(Accelerator):
        num_processes = processes
        process_index = 0

        def reduce(self, tensor, reduction):
            totals.append(tensor)
            return torch.stack(totals).sum(0)

    for rank in range(processes):
        Share.process_index = rank
        found = validation.measure(recommender.model, recommender.grammar, Share(cpu=True))
    assert found.keys() == {"HR@1", "HR@10", "NDCG@1", "NDCG@10"}
    assert found["HR@10"] == pytest.approx(hit_rate(half_trained, cases, 10), abs=1e-6)
    assert found["HR@1"] == pytest.approx(found["NDCG@1"]) and 0 < found["HR@1"] < found["HR@10"] < 1
    some = Validation.of(drawn_cases(cases, 9, seed=0), recommender.catalog, recommender.vocabulary)
    assert len(some.prompts) == len(some.targets) == 9


def test_the_best_checkpoint_is_kept(data, half_trained, tmp_path):
    settings = data.grpo(
        tmp_path / "run",
        half_trained,
        max_steps=30,
        learning_rate=1e-3,
        beta=0.0,
        eval_strategy="steps",
        eval_steps=10,
        metric_for_best_model="NDCG@10",
    )
    model = grpo(*grpo_configs(**settings))
    measured = {entry["step"]: entry["eval_NDCG@10"] for entry in log_of(model) if "eval_NDCG@10" in entry}
    assert list(measured) == [0, 10, 20, 30]
    recommender, cases = Recommender.from_pretrained(model), InteractionDataset.load(data.dataset).split().validation
    validation = Validation.of(cases, recommender.catalog, recommender.vocabulary)
    found = validation.measure(recommender.model, recommender.grammar, Accelerator(cpu=True))
    assert found["NDCG@10"] == pytest.approx(max(measured.values()), abs=1e-6)
    rewards = [entry for entry in log_of(model) if "reward" in entry]
    assert len(rewards) == 30 and all("eval_reward" not in entry for entry in log_of(model))


def test_where_nothing_was_better_the_start_is_kept(data, half_trained, tmp_path, capsys):
    settings = data.grpo(
        tmp_path / "run",
        half_trained,
        max_steps=20,
        learning_rate=0.3,  # ruins it
        eval_strategy="steps",
        eval_steps=4,
        patience=2,
    )
    model = grpo(*grpo_configs(**settings))
    steps = [entry["step"] for entry in log_of(model) if "eval_NDCG@10" in entry]
    assert steps == [0, 4, 8]  # twice no better: stopped
    assert "no checkpoint was better than the start (NDCG@10 " in capsys.readouterr().out
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (model, half_trained))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 2}, "patience waits for measurements; set eval_strategy"),
        ({"eval_strategy": "steps", "metric_for_best_model": "HR@7"}, r"is HR@7; there are HR@1, HR@10, HR@50"),
        ({"estimator": "without_replacement"}, "is for rollout: gumbel and scale_rewards: none, not for sample"),
        (
            {"estimator": "leave_one_out"},
            "leave_one_out is for rollout: sample and scale_rewards: none, not for sample",
        ),
        ({"target_steps": 0}, "target_steps is 0; it lies between 1 and 100"),
        ({"num_generations": 1}, "num_generations is 1; it lies between 2 and 1,048,576"),
        ({"rewards": {"joy": 1}}, "no reward is called 'joy'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(data, half_trained, tmp_path, changes, message):
    with pytest.raises(HfGrError, match=message):
        grpo_configs(**data.grpo(tmp_path, half_trained, **changes))


def test_a_validation_part_without_cases_is_refused():
    none = np.empty(0, np.int64)
    cases = Cases(Histories(none.astype(str), np.zeros(1, np.int64), none, none), none)
    with pytest.raises(HfGrError, match="has no case to measure on"):
        drawn_cases(cases, 5, seed=0)


def test_fewer_prompts_than_a_generation_needs_are_refused(tmp_path):
    world = World()
    with pytest.raises(HfGrError, match=f"there are {len(TARGETS)} prompts, fewer than the 8 of one generation"):
        world.trainer(tmp_path, per_device_train_batch_size=128)
    trainer = world.trainer(tmp_path)
    with pytest.raises(HfGrError, match="no validation cases were given"):
        trainer.evaluate()
