from collections import Counter

import numpy as np
import pytest

from hf_gr.errors import HfGrError
from hf_gr.rewards import (
    REWARDS,
    Rollouts,
    category_hit,
    exact,
    global_path,
    over_horizon,
    prefix,
    step_consistency,
    step_hit,
)


def test_step_hit_and_global_path_as_in_their_docstrings(make_items, group):
    items = make_items([[2, 5, 3], [2, 5, 1], [0, 5, 3], [2, 5, 3]], (3, 6, 4))
    assert step_hit(group([1, 2, -1], 0), items)[0] == pytest.approx([2 / 3, 2 / 3, 0])
    assert prefix(group([1, 2, -1], 0), items)[0] == pytest.approx([2 / 3, 0, 0])
    assert global_path(group([3, 1, -1], 0), items).tolist() == [[1, 0, 0]]


@pytest.fixture(scope="module")
def shop(make_items):
    """Codes of level 1: 0 serum, 1 none, 2 hair; of level 2: 0 serum, 1 hair, 2 none; of level 3: 0 serum, 1 hair."""
    rows = [
        ([0, 1, 0], []),  # 0: serum, hair, serum
        ([1, 0, 1], []),  # 1: none, serum, hair
        ([0, 0, 1], []),  # 2: serum, serum, hair
        ([2, 1, 1], []),  # 3: hair, hair, hair
        ([1, 2, 1], []),  # 4: none, none, hair
        ([0, 0, 0], ["serum"]),
        ([2, 1, 1], ["hair"]),
    ]
    return make_items([codes for codes, _ in rows], (3, 3, 2), categories=[names for _, names in rows])


def test_category_rewards_as_in_their_docstrings(shop, group):
    assert category_hit(group([0, 1, -1], 5), shop)[0] == pytest.approx([2 / 3, 1 / 3, 0])
    assert step_consistency(group([2, 3, 4, -1], 5), shop)[0] == pytest.approx([1 / 2, 1, 0, 0])


def test_a_target_without_a_category_is_hit_by_nobody(shop, group):
    assert category_hit(group([0, 4, 5], 4), shop).tolist() == [[0, 0, 0]]


def test_a_sid_of_one_code_has_no_steps_to_compare(make_items, group):
    items = make_items([[0], [1]], (2,), categories=[["a"], ["b"]])
    assert step_consistency(group([0, 1, -1], 0), items).tolist() == [[0, 0, 0]]
    assert category_hit(group([0, 1, -1], 0), items).tolist() == [[1, 0, 0]]


def category_of(world, item: int) -> str | None:
    for name in world.categories[item]:
        if 2 * sum(name in entry for entry in world.categories) <= len(world):
            return name
    return None


def token_category_of(world, level: int, code: int) -> str | None:
    carriers = [row for row in range(len(world)) if world.codes[row][level] == code]
    votes = Counter(name for row in carriers if (name := category_of(world, row)) is not None)
    return min(votes, key=lambda name: (-votes[name], name)) if votes else None


def steps_of(world, item: int) -> list[str | None]:
    return [token_category_of(world, level, code) for level, code in enumerate(world.codes[item])]


def by_hand(name: str, world, item: int, target: int) -> float:
    if item < 0:
        return 0.0
    equal = [world.codes[item][level] == world.codes[target][level] for level in range(3)]
    steps, wanted = steps_of(world, item), category_of(world, target)
    return {
        "step_hit": sum(equal) / 3,
        "global_path": float(all(equal)),
        "category_hit": sum(step == wanted is not None for step in steps) / 3,
        "step_consistency": sum(steps[i] == steps[i + 1] is not None for i in range(2)) / 2,
    }[name]


@pytest.mark.parametrize("name", ["step_hit", "global_path", "category_hit", "step_consistency"])
def test_step_rewards_equal_their_definition(world, name):
    seen = set()
    for seed in range(12):
        rollouts = world.rollouts(seed)
        found = REWARDS[name](rollouts, world.items)
        assert found.shape == rollouts.items.shape and found.dtype == np.float64
        for prompt, answers in enumerate(rollouts.items.tolist()):
            expected = [by_hand(name, world, item, int(rollouts.targets[prompt, 0])) for item in answers]
            assert found[prompt] == pytest.approx(expected)
            seen |= set(expected)
    assert len(seen) > 1


def test_over_horizon_as_in_its_docstring(make_items, group):
    items = make_items([[0], [1]], (2,))
    ahead = over_horizon(exact, 0.5)
    assert ahead(group([0], 0, 1, 0), items)[0] == pytest.approx([0.714], abs=5e-4)
    assert ahead(group([0], 0, 1, -1), items)[0] == pytest.approx([0.667], abs=5e-4)


@pytest.mark.parametrize("name", list(REWARDS))
def test_over_horizon_is_the_weighted_mean_over_the_targets_there_are(world, name):
    reward = REWARDS[name]
    for seed, decay in enumerate([0.0, 0.3, 0.9, 1.0] * 2):
        rollouts = world.rollouts(seed, horizon=3)
        found = over_horizon(reward, decay)(rollouts, world.items)
        for prompt, answers in enumerate(rollouts.items):
            total, weights = np.zeros(len(answers)), 0.0
            for place, target in enumerate(rollouts.targets[prompt]):
                if target >= 0:
                    own = (rollouts.scores[prompt][None], rollouts.taken[prompt][None])
                    alone = Rollouts(answers[None], np.array([[target]]), *own)
                    total += decay**place * reward(alone, world.items)[0]
                    weights += decay**place
            assert found[prompt] == pytest.approx(total / weights)


@pytest.mark.parametrize("name", list(REWARDS))
def test_over_one_target_it_is_the_reward_itself(world, name):
    rollouts, reward = world.rollouts(3), REWARDS[name]
    ahead = over_horizon(reward, 0.4)
    assert ahead.__name__ == name
    assert ahead(rollouts, world.items).tolist() == reward(rollouts, world.items).tolist()


def test_a_reward_is_never_asked_about_a_target_that_is_not_there(make_items, group):
    asked = []

    def noting(rollouts, items):
        asked.append(rollouts.targets.tolist())
        return exact(rollouts, items)

    over_horizon(noting, 0.5)(group([0, 1], 1, 0, -1), make_items([[0], [1]], (2,)))
    assert asked == [[[1]], [[0]], [[1]]]


def test_over_horizon_hands_parameters_on(make_items, group):
    items = make_items([[0], [1]], (2,))

    def flat(rollouts, items, *, height=1.0):
        return np.full(rollouts.items.shape, height)

    assert over_horizon(flat, 0.5)(group([0, 1], 0, 1), items, height=3.0).tolist() == [[3, 3]]


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_decay_is_between_0_and_1(decay):
    with pytest.raises(HfGrError, match=r"decay is .*; give a number between 0"):
        over_horizon(exact, decay)
