import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hf_gr.errors import HfGrError
from hf_gr.rewards import interest
from hf_gr.rewards.interest import match, overlap


@pytest.fixture(scope="module")
def eight(make_items):
    """Eight items: "serum" on 2, "hair" on 4, "beauty" on all."""
    categories = [["beauty", "serum", "hair"], ["serum", "beauty"], *[["beauty", "hair"]] * 3, *[["beauty"]] * 3]
    codes = [[0, 0], [1, 0], [0, 1], [2, 2], [2, 1], [2, 0], [1, 1], [1, 2]]
    return make_items(codes, (3, 3), categories=categories, quality=np.array([0.8, *[1.0] * 7]))


def test_overlap_as_in_its_docstring(eight, group):
    assert overlap(group([1, 0, 5, -1, 2], 0), eight)[0] == pytest.approx([2 / 3, 1, 0, 0, 1 / 3])
    assert overlap(group([5, 6], 5), eight).tolist() == [[0, 0]]  # they share what all have


def test_interest_as_in_its_docstring(eight, group):
    found = interest(group([0, 5, -1], 0), eight)[0]
    assert found == pytest.approx([2.2, 0.1, 0])
    shares = interest(group([2], 0), eight)[0, 0]  # the first code, and an overlap of 1/3 (the docstring takes 1/4)
    assert shares == pytest.approx(0.1 + 0.25 + 0.2 / 3)


def test_each_weight_is_its_own_terms(eight, group):
    rollouts = group([0, 2, 5, -1], 0)
    none = {"valid_weight": 0, "prefix_weight": 0, "graded_weight": 0}
    assert interest(rollouts, eight, **none)[0] == pytest.approx([1.4, 0, 0, 0])
    assert interest(rollouts, eight, **none | {"valid_weight": 2})[0] == pytest.approx([3.4, 2, 2, 0])
    assert interest(rollouts, eight, **none | {"prefix_weight": 2})[0] == pytest.approx([3.4, 1, 0, 0])
    assert interest(rollouts, eight, **none | {"graded_weight": 3})[0] == pytest.approx([4.4, 1, 0, 0])


def test_without_categories_nothing_overlaps(make_items, group):
    items = make_items([[0, 0], [0, 1]], (2, 2))
    assert overlap(group([0, 1, -1], 0), items).tolist() == [[0, 0, 0]]
    assert interest(group([0, 1, -1], 0), items)[0] == pytest.approx([2.1, 0.35, 0])  # quality 1


def test_match_as_in_its_docstring(eight, group):
    rollouts = replace(group([0, 1, 5, -1], 0), taken=np.array([[2, -1]]))
    assert match(rollouts, eight)[0] == pytest.approx([1 / 3, 0, 0, 0])
    found = interest(rollouts, eight, user_weight=0.6)[0]
    assert found == pytest.approx(interest(rollouts, eight)[0] + [0.2, 0, 0, 0])


def test_match_needs_histories(eight, group):
    with pytest.raises(HfGrError, match="add a column `history`"):
        interest(group([0], 0), eight, user_weight=0.1)


@pytest.mark.parametrize("seed", range(10))
def test_match_equals_its_definition(world, seed):
    rollouts = world.rollouts(seed)
    counts = Counter(name for entry in world.categories for name in set(entry))

    def total(names: set[str]) -> float:
        return sum(math.log(len(world) / counts[name]) for name in names)

    for found, answers, taken in zip(match(rollouts, world.items), rollouts.items, rollouts.taken, strict=True):
        profile = {name for item in taken if item >= 0 for name in world.categories[item]}
        own = [set(world.categories[item]) if item >= 0 else set() for item in answers]
        assert found == pytest.approx([total(entry & profile) / total(entry) if total(entry) else 0 for entry in own])


def interest_by_hand(world, item: int, target: int) -> float:
    if item < 0:
        return 0.0
    reward = 0.3  # valid
    if item == target:
        reward += 1 + 0.5 * world.quality[target]
    for level in range(3):
        if world.codes[item][level] != world.codes[target][level]:
            break
        reward += 0.7 / 3
    ours, theirs = set(world.categories[item]), set(world.categories[target])

    def total(names: set[str]) -> float:
        return sum(math.log(len(world) / sum(name in entry for entry in world.categories)) for name in names)

    return reward + (0.9 * total(ours & theirs) / total(ours | theirs) if total(ours & theirs) else 0)


@pytest.mark.parametrize("seed", range(20))
def test_interest_equals_its_definition(world, seed):
    rollouts = world.rollouts(seed)
    found = interest(rollouts, world.items, valid_weight=0.3, prefix_weight=0.7, graded_weight=0.9)
    assert found.shape == rollouts.items.shape and found.dtype == np.float64
    for prompt, answers in enumerate(rollouts.items.tolist()):
        target = int(rollouts.targets[prompt, 0])
        assert found[prompt] == pytest.approx([interest_by_hand(world, item, target) for item in answers])
