import math
from collections import Counter

import numpy as np
import pytest

from hf_gr.quantizers.redundancy import redundancy, redundancy_by_group


def information_by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """2·I / (H + H), from the probabilities of codes and of pairs, counted one item at a time."""

    def entropy(labels: list) -> float:
        return -sum(count / len(labels) * math.log(count / len(labels)) for count in Counter(labels).values())

    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    apart = entropy(one.tolist()) + entropy(other.tolist())
    return 2 * (apart - entropy(pairs)) / apart


def test_redundancy_equals_brute_force():
    random = np.random.default_rng(3)
    codes = random.integers(0, [4, 6, 3], (200, 3))
    codes[:120, 2] = codes[:120, 0] % 3
    pairs = [(0, 1), (0, 2), (1, 2)]
    found = redundancy(codes)
    by_pair = [information_by_hand(codes[:, one], codes[:, other]) for one, other in pairs]
    assert found["information"] == pytest.approx(np.mean(by_pair))
    dealt = [information_by_hand(codes[:, a], random.permutation(codes[:, b])) for a, b in pairs for _ in range(50)]
    assert found["chance"] == pytest.approx(np.mean(dealt), abs=0.01)
    assert found["adjusted"] == pytest.approx(
        (found["information"] - found["chance"]) / (1 - found["chance"]), abs=1e-12
    )
    assert found["adjusted"] > 0.05
    assert redundancy(codes) == found
    assert redundancy(codes, seed=1)["chance"] != found["chance"]


def test_redundancy_is_1_of_a_repeated_codebook_and_0_of_unrelated_ones(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    codes = random.integers(0, 64, (5_000, 2))
    unrelated = redundancy(codes)
    assert unrelated["information"] > 0.08  # the bias that chance is told for
    assert unrelated["adjusted"] == pytest.approx(0, abs=0.005)
    repeated = redundancy(np.column_stack([codes[:, 0], 63 - codes[:, 0]]))
    assert repeated["adjusted"] == pytest.approx(1)
    each = np.arange(30)
    assert redundancy(np.column_stack([each, each]))["adjusted"] is None  # one item a code: chance cannot be told
    monkeypatch.setattr("hf_gr.quantizers.redundancy._TOLD", 1_000)
    assert redundancy(codes)["chance"] > 2 * unrelated["chance"]  # fewer items, and chance is told of the same ones


def test_redundancy_by_group_is_the_mean_over_its_pairs():
    random = np.random.default_rng(3)
    codes = random.integers(0, 6, (400, 4))
    codes[:300, 3] = codes[:300, 2]
    found = redundancy_by_group(codes, ["shared", "text", "text", "image"], seed=5)
    assert [(row["groups"], row["pairs"]) for row in found] == [
        (["shared", "text"], 2),
        (["shared", "image"], 1),
        (["text", "text"], 1),
        (["text", "image"], 2),
    ]
    by_hand = {pair: information_by_hand(codes[:, pair[0]], codes[:, pair[1]]) for pair in [(1, 3), (2, 3), (1, 2)]}
    assert found[3]["information"] == pytest.approx((by_hand[1, 3] + by_hand[2, 3]) / 2)
    assert found[2]["information"] == pytest.approx(by_hand[1, 2])
    assert found[3]["adjusted"] > 0.2 > found[2]["adjusted"]
    # of one group it is the redundancy of all
    whole = redundancy_by_group(codes, ["a"] * 4, seed=5)[0]
    assert {name: whole[name] for name in ("information", "chance", "adjusted")} == redundancy(codes, seed=5)
