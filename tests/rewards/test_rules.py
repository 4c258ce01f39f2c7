import math
from dataclasses import replace

import numpy as np
import pytest

from hf_gr.errors import HfGrError
from hf_gr.rewards import collaborative, exact, ndcg, novelty, prefix, ranking, repeat, semantic


SEEDS = range(40)


@pytest.fixture(scope="module")
def ten(make_items):
    """Ten items about which nothing is known but how many they are."""
    return make_items([[row] for row in range(10)], (10,))


def test_exact_as_in_its_docstring(ten, group):
    assert exact(group([4, 7, -1], 7), ten).tolist() == [[0.0, 1.0, 0.0]]


def test_ranking_as_in_its_docstring(ten, group):
    assert ranking(group([4, 7, 9], 7), ten)[0] == pytest.approx([-0.469, 0.0, -0.235], abs=5e-4)


def test_ndcg_as_in_its_docstring(ten, group):
    assert ndcg(group([4, 7, 4, 7], 7), ten)[0] == pytest.approx([0, 0.631, 0, 0.631], abs=5e-4)


def test_prefix_as_in_its_docstring(make_items, group):
    items = make_items([[2, 5, 3], [2, 5, 1], [2, 4, 3], [0, 5, 3], [2, 5, 3]], (3, 6, 4))
    assert prefix(group([1, 2, 3, -1], 0), items)[0] == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert prefix(group([0, 4], 0), items).tolist() == [[1, 1]]  # a shared SID


def test_semantic_as_in_its_docstring(make_items, group):
    vectors = np.array([[0, 2], [3, 0], [-0.6, -0.8], [6, 8], [0, 0]], np.float32)
    items = make_items([[row] for row in range(5)], (5,), code_vectors=[vectors])
    assert semantic(group([0, 1, 2, -1, 3, 4], 3), items)[0] == pytest.approx([0.8, 0.6, -1, -1, 1, 0])


def test_collaborative_as_in_its_docstring(make_items, group):
    items = make_items([[row] for row in range(4)], (4,), train=[[0, 1], [0, 1], [0, 2]])
    found = collaborative(group([1, 2, 0, 3, -1], 0), items)[0]
    assert found == pytest.approx([2 / math.sqrt(6), 1 / math.sqrt(3), 1, 0, 0])
    assert found[:2] == pytest.approx([0.816, 0.577], abs=5e-4)


def test_novelty_as_in_its_docstring(make_items, group):
    items = make_items([[row] for row in range(3)], (3,), train=[[0] * 5, [0, 0, 1]])
    assert novelty(group([0, 1, 2, -1], 1), items)[0] == pytest.approx([-1, -1 / 3, 0, -1])


def test_repeat_as_in_its_docstring(ten, group):
    rollouts = replace(group([4, 7, 9, -1], 7), taken=np.array([[9, 4, -1]]))
    assert repeat(rollouts, ten).tolist() == [[-1, 0, -1, 0]]
    with pytest.raises(HfGrError, match="add a column `history`"):
        repeat(group([4], 7), ten)


def test_where_nothing_was_taken_every_item_is_as_new(make_items, group):
    items = make_items([[0], [1]], (2,), train=[])
    assert novelty(group([0, 1, -1], 0), items).tolist() == [[0, 0, -1]]
    assert collaborative(group([0, 1, -1], 0), items).tolist() == [[1, 0, 0]]


def rank_of(row: int, scores: list[float]) -> int:
    return sum(other > scores[row] or (other == scores[row] and place < row) for place, other in enumerate(scores))


def ranking_by_hand(answers: list[int], target: int, scores: list[float]) -> list[float]:
    if target not in answers:
        return [0.0] * len(answers)
    total = sum(1 / math.log2(j + 2) for j in range(len(answers)))
    return [
        0.0 if item == target else -(1 / math.log2(rank_of(row, scores) + 2)) / total
        for row, item in enumerate(answers)
    ]


def ndcg_by_hand(answers: list[int], target: int, scores: list[float]) -> list[float]:
    by_rank = sorted(range(len(answers)), key=lambda row: rank_of(row, scores))
    distinct = []
    for row in by_rank:
        if answers[row] not in (-1, *distinct):
            distinct.append(answers[row])
    return [1 / math.log2(distinct.index(target) + 2) if item == target else 0.0 for item in answers]


@pytest.mark.parametrize("seed", SEEDS)
def test_rewards_of_a_group_equal_their_definition(world, seed):
    rollouts = world.rollouts(seed)
    found = [reward(rollouts, world.items) for reward in (exact, ranking, ndcg)]
    assert all(rewards.shape == rollouts.items.shape and rewards.dtype == np.float64 for rewards in found)
    groups = zip(rollouts.items.tolist(), rollouts.targets[:, 0].tolist(), rollouts.scores.tolist(), strict=True)
    for prompt, (answers, target, scores) in enumerate(groups):
        assert found[0][prompt].tolist() == [float(item == target) for item in answers]
        assert found[1][prompt] == pytest.approx(ranking_by_hand(answers, target, scores))
        assert found[2][prompt] == pytest.approx(ndcg_by_hand(answers, target, scores))


def prefix_by_hand(world, item: int, target: int) -> float:
    shared = 0
    while shared < 3 and world.codes[item][shared] == world.codes[target][shared]:
        shared += 1
    return shared / 3


def semantic_by_hand(world, item: int, target: int) -> float:
    ours, theirs = (
        sum(vectors[code].astype(float) for vectors, code in zip(world.vectors, world.codes[row], strict=True))
        for row in (item, target)
    )
    return float(ours @ theirs / math.sqrt(ours @ ours) / math.sqrt(theirs @ theirs))


def count_by_hand(world, item: int, other: int) -> float:
    count = 0.0
    for events in world.train:
        for late in range(len(events)):
            for early in range(max(0, late - 5), late):
                if {events[early], events[late]} == {item, other} and item != other:
                    count += 1 / (late - early)
    return count


def collaborative_by_hand(world, item: int, target: int) -> float:
    if item == target:
        return 1.0
    sums = [sum(count_by_hand(world, row, other) for other in range(len(world))) for row in (item, target)]
    return count_by_hand(world, item, target) / math.sqrt(sums[0] * sums[1]) if all(sums) else 0.0


def novelty_by_hand(world, item: int, target: int) -> float:
    counts = [sum(events.count(row) for events in world.train) for row in range(len(world))]
    return -math.log(1 + counts[item]) / math.log(1 + max(counts))


@pytest.mark.parametrize(
    ("reward", "by_hand", "no_item"),
    [
        (prefix, prefix_by_hand, 0),
        (semantic, semantic_by_hand, -1),
        (collaborative, collaborative_by_hand, 0),
        (novelty, novelty_by_hand, -1),
    ],
)
def test_rewards_of_an_item_equal_their_definition(world, reward, by_hand, no_item):
    for seed in range(6):
        rollouts = world.rollouts(seed)
        found = reward(rollouts, world.items)
        assert found.shape == rollouts.items.shape and found.dtype == np.float64
        for prompt, answers in enumerate(rollouts.items.tolist()):
            target = int(rollouts.targets[prompt, 0])
            expected = [no_item if item < 0 else by_hand(world, item, target) for item in answers]
            assert found[prompt] == pytest.approx(expected, abs=1e-6)
