import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.rewards import REWARDS, exact, ranking


def test_worked_examples_of_the_docstrings():
    assert exact(np.array([[4, 7]]), np.array([7]), np.zeros((1, 2))).tolist() == [[0.0, 1.0]]
    found = ranking(np.array([[4, 7, 9]]), np.array([7]), np.array([[-1.0, -2.0, -3.0]]))
    assert found[0] == pytest.approx([-0.469, 0.0, -0.235], abs=5e-4)


def test_a_higher_rank_costs_more_wherever_the_row_stands():
    found = ranking(np.array([[9, 7, 4]]), np.array([7]), np.array([[-3.0, -2.0, -1.0]]))
    assert found[0] == pytest.approx([-0.235, 0.0, -0.469], abs=5e-4)


def ranking_by_hand(items: list[int], target: int, scores: list[float]) -> list[float]:
    if target not in items:
        return [0.0] * len(items)
    total = sum(1 / math.log2(j + 2) for j in range(len(items)))
    rewards = []
    for row, (item, score) in enumerate(zip(items, scores, strict=True)):
        rank = sum(other > score or (other == score and earlier < row) for earlier, other in enumerate(scores))
        rewards.append(0.0 if item == target else -(1 / math.log2(rank + 2)) / total)
    return rewards


@st.composite
def groups(draw) -> tuple[list[list[int]], list[int], list[list[float]]]:
    count, size = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    item, score = st.integers(-1, 4), st.sampled_from([-9.5, -3.0, -2.5, -0.1])  # ties, repeats and no answers
    rows = [[draw(item) for _ in range(size)] for _ in range(count)]
    targets = [draw(st.integers(0, 4)) for _ in range(count)]
    return rows, targets, [[draw(score) for _ in range(size)] for _ in range(count)]


@settings(max_examples=150, deadline=None)
@given(groups())
def test_rewards_equal_the_definition(batch):
    items, targets, scores = batch
    arrays = np.array(items), np.array(targets), np.array(scores)
    found = ranking(*arrays)
    assert found.shape == arrays[0].shape and found.dtype == np.float64
    for row, group in enumerate(zip(*batch, strict=True)):
        assert found[row] == pytest.approx(ranking_by_hand(*group))
    assert exact(*arrays).tolist() == [
        [float(item == target) for item in group] for group, target in zip(items, targets, strict=True)
    ]


def test_rewards_have_names():
    assert list(REWARDS.items()) == [("exact", exact), ("ranking", ranking)]
