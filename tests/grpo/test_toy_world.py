"""GRPO in a world whose best policy is known finds it; what it logs; rewards that fail."""

import numpy as np
import pytest
from toy_world import TARGETS, World

from hf_gr.decoding import beam_search
from hf_gr.errors import HfGrError


RUNS = [
    pytest.param({"rollout": "sample"}, id="sample"),
    pytest.param({"rollout": "sample", "estimator": "leave_one_out"}, id="sample, leave one out"),
    pytest.param({"rollout": "gumbel"}, id="gumbel"),
    pytest.param(
        {
            "rollout": "gumbel",
            "estimator": "without_replacement",
        },
        id="gumbel, importance weights",
    ),
    pytest.param({"rollout": "sample", "zero_variance": "refill"}, id="sample, refilled"),
    pytest.param({"rollout": "sample", "zero_variance": "skip"}, id="sample, skipped"),
    pytest.param({"rollout": "sample", "steps_per_generation": 2, "num_iterations": 2}, id="sample, used four times"),
]


@pytest.mark.parametrize("changes", RUNS)
def test_draws_find_the_best_policy_from_a_uniform_start(tmp_path, changes):
    world = World()
    assert world.chances() == pytest.approx([1 / 32] * 4, abs=1e-5)
    world.trainer(tmp_path, **changes).train()
    assert min(world.chances()) > 0.85


@pytest.mark.parametrize("form", ["flat", "stepwise"])
def test_beams_find_the_best_policy_where_they_hold_it(tmp_path, form):
    world = World(form)
    world.teach(until=0.06)  # of 32 items: among the first eight, not the first
    before = world.chances()
    world.trainer(tmp_path, rollout="beam", scale_rewards="group").train()
    assert max(before) < 0.6 and min(world.chances()) > 0.85


def test_what_is_logged(tmp_path):
    world = World()
    trainer = world.trainer(tmp_path, max_steps=3, rewards={"exact": 1.0, "prefix": 0.5}, zero_variance="skip")
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(entries) == 3
    for entry in entries:
        assert {"rewards/exact/mean", "rewards/prefix/mean", "entropy", "frac_reward_zero_std"} <= entry.keys()
        assert 0 <= entry["group_hit_rate"] <= 1 and 1 <= entry["distinct_items"] <= 16
        assert entry["groups_without_variance"] == entry["frac_reward_zero_std"]
        weighted = entry["rewards/exact/mean"] + 0.5 * entry["rewards/prefix/mean"]
        assert entry["reward"] == pytest.approx(weighted, abs=1e-6)
    assert entries[0]["entropy"] == pytest.approx((np.log(4) + np.log(8)) / 2, abs=1e-3)  # a code, not a token


def nan_on_item_5(rollouts, items):
    return np.where(rollouts.items == 5, np.nan, 0.0)


def short(rollouts, items):
    return np.zeros(rollouts.items.shape)[:, 1:]


def broken(rollouts, items):
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (nan_on_item_5, r"reward 'nan_on_item_5' gave nan.*i005"),
        (short, r"reward 'short' gave an array of shape \(4, 15\), not \(4, 16\)"),
        (broken, r"reward 'broken' raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_reward_that_fails_stops_the_run_at_once(tmp_path, reward, message):
    trainer = World().trainer(tmp_path, own=[(reward, 1.0)])
    with pytest.raises(HfGrError, match=message) as caught:
        trainer.train()
    assert "\n" not in str(caught.value) and trainer.state.global_step < 20


def test_own_rewards_have_weights(tmp_path):
    def even(rollouts, items):
        return (rollouts.items % 2 == 0).astype(float)

    world = World()
    world.trainer(tmp_path, own=[(even, 2.0)], rewards={"exact": 0.0}, max_steps=40).train()
    every = beam_search(world.model.eval(), world.prompts, world.grammar, num_beams=32, top_k=32)
    assert float(every.scores.exp()[every.items % 2 == 0].sum()) / len(TARGETS) > 0.9
