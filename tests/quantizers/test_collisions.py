import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from hf_gr.errors import HfGrError
from hf_gr.quantizers import Quantizer, QuantizerConfig, resolve_collisions
from hf_gr.quantizers.collisions import digit_vectors, place, transport


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


class Residual(Quantizer):
    """Residual codebooks that are given, not fitted."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.codebooks = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(size, config.dim), requires_grad=False) for size in config.codebook_sizes
        )
        self.post_init()

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        residual = batch - self._decode(codes[:, :level], None)
        return (residual[:, None] - self.codebooks[level]).square().sum(2)

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        codes = torch.zeros(len(batch), self.num_levels, dtype=torch.int64)
        for level in range(self.num_levels):
            codes[:, level] = self._distances(batch, codes, level).argmin(1)
        return codes

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        found = torch.zeros(len(codes), self.config.dim)
        for codebook, column in zip(self.codebooks, codes.T, strict=False):
            found = found + codebook[column]
        return found


def quantizer_of(sizes: list[int] | tuple[int, ...], dim: int = 3, seed: int = 0) -> Residual:
    """Codebooks of small integers, coarse before fine: costs are exact, and ties are common."""
    quantizer = Residual(QuantizerConfig(dim=dim, codebook_sizes=sizes))
    random = np.random.default_rng(seed)
    for level, codebook in enumerate(quantizer.codebooks):
        reach = max(6 - 2 * level, 1)
        codebook.data.copy_(codebook.new_tensor(random.integers(-reach, reach + 1, tuple(codebook.shape))))
    return quantizer


def vectors_of(rows: int, seed: int, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 9, (rows, dim)).astype(np.float32)


def placed_by_hand(
    codes: np.ndarray,
    vectors: np.ndarray,
    quantizer: Residual,
    allowed: list[np.ndarray],
    taken: set[tuple[int, ...]],
) -> np.ndarray:
    """The greedy rule word for word: level by level, one move at a time, costs of one item at a time."""
    sids = [list(row) for row in codes.tolist()]
    free = [np.flatnonzero(mask).tolist() for mask in allowed]

    def cost(item: int, level: int, code: int) -> float:
        return float(quantizer.distances(vectors[[item]], np.array([sids[item]]), level)[0, code])

    moved = set()
    for level in range(len(allowed)):
        for item in moved:
            sids[item][level] = min(free[level], key=lambda code: (cost(item, level, code), code))
        for prefix in sorted({tuple(sid[:level]) for sid in sids}):
            below = [item for item, sid in enumerate(sids) if tuple(sid[:level]) == prefix]
            places = {
                code: math.prod(map(len, free[level + 1 :]))
                - sum(sid[: level + 1] == (*prefix, code) for sid in taken)
                for code in free[level]
            }
            while True:
                on = Counter(sids[item][level] for item in below)
                goals = [code for code in free[level] if places[code] > on[code]]
                moves = [
                    (cost(item, level, goal) - cost(item, level, sids[item][level]), -item, goal)
                    for item in below
                    if on[sids[item][level]] > places[sids[item][level]]
                    for goal in goals
                ]
                if not moves:
                    break
                _, minus, goal = min(moves)
                sids[-minus][level] = goal
                moved.add(-minus)
    return np.array(sids, np.int32).reshape(codes.shape)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 20), sizes=SIZES, seed=st.integers(0, 9999))
def test_greedy_equals_the_rule_applied_by_hand(rows: int, sizes: list[int], seed: int):
    rows = min(rows, math.prod(sizes))
    vectors, quantizer = vectors_of(rows, seed), quantizer_of(sizes, seed=seed)
    codes = quantizer.encode(vectors)
    before = codes.copy()
    resolved = resolve_collisions(codes, vectors, quantizer)
    everything = [np.ones(size, bool) for size in sizes]
    assert np.array_equal(resolved.codes, placed_by_hand(codes, vectors, quantizer, everything, set()))
    assert resolved.codebook_sizes == tuple(sizes) and resolved.codes.dtype == np.int32
    assert np.array_equal(codes, before)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=SIZES, seed=st.integers(0, 9999))
def test_items_are_placed_beside_taken_sids_on_allowed_codes(data: st.DataObject, sizes: list[int], seed: int):
    quantizer = quantizer_of(sizes, seed=seed)
    allowed = [
        np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))) for size in sizes
    ]
    sids = list(product(*map(np.flatnonzero, allowed)))
    taken = data.draw(st.lists(st.sampled_from(sids), max_size=2 * len(sids)))
    vectors = vectors_of(data.draw(st.integers(0, len(sids) - len(set(taken)))), seed)
    codes = quantizer.encode(vectors, allowed=allowed)
    found = place(codes, vectors, quantizer, allowed, np.array(taken, np.int32).reshape(-1, len(sizes)))
    assert np.array_equal(found, placed_by_hand(codes, vectors, quantizer, allowed, set(taken)))
    placed = set(map(tuple, found.tolist()))
    assert len(placed) == len(vectors) and placed <= set(sids) - set(taken)


@pytest.mark.parametrize("method", ["greedy", "sinkhorn"])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), sizes=SIZES, equal=st.booleans(), seed=st.integers(0, 9999))
def test_it_ends_without_collisions_while_items_fit(
    method: str, data: st.DataObject, sizes: list[int], equal: bool, seed: int
):
    """Even if all items are the same, and even if every SID is needed."""
    rows = data.draw(st.integers(1, math.prod(sizes)))
    vectors = np.ones((rows, 3), np.float32) if equal else vectors_of(rows, seed)
    quantizer = quantizer_of(sizes, seed=seed)
    codes = quantizer.encode(vectors)
    resolved = resolve_collisions(codes, vectors, quantizer, method).codes
    assert len(np.unique(resolved, axis=0)) == rows
    quantizer.check_codes(resolved)
    again = resolve_collisions(codes, vectors, quantizer, method).codes
    assert np.array_equal(resolved, again)


@pytest.mark.parametrize("method", ["greedy", "sinkhorn"])
def test_more_items_than_sids_are_refused(method: str):
    vectors = vectors_of(9, 0)
    quantizer = quantizer_of((4, 2))
    codes = quantizer.encode(vectors)
    with pytest.raises(HfGrError, match=r"9 items do not fit on the 8 SIDs of codebooks \[4, 2\]"):
        resolve_collisions(codes, vectors, quantizer, method)
    assert len(np.unique(resolve_collisions(codes, vectors, quantizer, "digit").codes, axis=0)) == 9
    with pytest.raises(HfGrError, match=r"1 items do not fit on the 0 free SIDs .* \[1, 1\]"):
        allowed = [np.array([True, False, False, False]), np.array([True, False])]
        place(np.zeros((1, 2), np.int32), vectors[:1], quantizer, allowed, np.zeros((3, 2), np.int32))


def line_quantizer(*codebooks: list[float]) -> Residual:
    quantizer = Residual(QuantizerConfig(dim=1, codebook_sizes=[len(codebook) for codebook in codebooks]))
    for codebook, values in zip(quantizer.codebooks, codebooks, strict=True):
        codebook.data.copy_(codebook.new_tensor(values)[:, None])
    return quantizer


def test_the_cheapest_move_is_made_first():
    """Moving -2 from 0 to 10 costs 140 more, 0.1 costs 98, 0.5 costs 90, 0.7 costs 86; 11 is what is left for 0.5."""
    quantizer = line_quantizer([0.0], [0.0, 10.0, 11.0, -9.0])
    vectors = np.array([[0.5], [0.1], [-2.0], [0.7]], np.float32)
    codes = quantizer.encode(vectors)
    assert codes[:, 1].tolist() == [0, 0, 0, 0]
    # -2 to -9 costs 49 - 4 = 45: first; then 0.7 to 10; then 0.5 to 11
    assert resolve_collisions(codes, vectors, quantizer).codes[:, 1].tolist() == [2, 0, 3, 1]
    assert np.array_equal(resolve_collisions(codes, vectors, quantizer, "keep").codes, codes)


def test_a_full_prefix_sends_the_cheapest_to_the_next_best_code_with_room():
    """Three items below code 0 (at 0), which has two places; code 1 (at 100) is full; code 2 is at -200."""
    quantizer = line_quantizer([0.0, 100.0, -200.0], [0.0, 1.0])
    vectors = np.array([[0.0], [1.0], [3.0], [100.0], [101.0]], np.float32)
    codes = quantizer.encode(vectors)
    assert codes.tolist() == [[0, 0], [0, 1], [0, 1], [1, 0], [1, 1]]
    resolved = resolve_collisions(codes, vectors, quantizer).codes
    # the least extra loss to -200 is that of 0, then its better code there is 1; 1 and 3 share out what 0 leaves
    assert resolved.tolist() == [[2, 1], [0, 0], [0, 1], [1, 0], [1, 1]]


def test_equal_items_are_told_apart_by_their_rows():
    quantizer = quantizer_of((2, 4))
    vectors = np.zeros((4, 3), np.float32)
    codes = quantizer.encode(vectors)
    resolved = resolve_collisions(codes, vectors, quantizer).codes
    assert len(np.unique(resolved, axis=0)) == 4
    assert np.array_equal(resolved[0], codes[0])


def test_an_unknown_method_is_refused():
    with pytest.raises(HfGrError, match="sinkhorm"):
        resolve_collisions(np.zeros((1, 1), np.int32), np.zeros((1, 3), np.float32), quantizer_of((2,)), "sinkhorm")


def loss_of(codes: np.ndarray, vectors: np.ndarray, quantizer: Residual) -> float:
    return float(np.square(vectors - quantizer.decode(codes)).sum())


def test_sinkhorn_comes_close_to_the_best_assignment():
    """Below one prefix: no worse than one percent above the exact optimum, where greedy is further off."""
    random = np.random.default_rng(0)
    losses = {"greedy": 0.0, "sinkhorn": 0.0, "best": 0.0}
    for seed in range(30):
        quantizer = quantizer_of((1, 24), seed=seed)
        quantizer.codebooks[1].data.copy_(quantizer.codebooks[1].new_tensor(random.normal(size=(24, 3))))
        vectors = random.normal(size=(int(random.integers(2, 25)), 3)).astype(np.float32)
        codes = quantizer.encode(vectors)
        for method in ("greedy", "sinkhorn"):
            losses[method] += loss_of(resolve_collisions(codes, vectors, quantizer, method).codes, vectors, quantizer)
        best = codes.copy()
        best[:, 1] = linear_sum_assignment(quantizer.distances(vectors, codes, 1))[1]
        losses["best"] += loss_of(best, vectors, quantizer)
    assert losses["best"] <= losses["sinkhorn"] < 1.01 * losses["best"]
    assert losses["greedy"] > 1.01 * losses["best"]


def test_sinkhorn_leaves_prefixes_without_collisions_alone():
    vectors, quantizer = vectors_of(24, 3), quantizer_of((8, 12), seed=3)
    codes = quantizer.encode(vectors)
    resolved = resolve_collisions(codes, vectors, quantizer, "sinkhorn").codes
    crowded = {first for (first, _), count in Counter(map(tuple, codes.tolist())).items() if count > 1}
    alone = ~np.isin(codes[:, 0], list(crowded))
    assert alone.any() and crowded
    assert np.array_equal(resolved[alone], codes[alone])


def test_the_plan_has_the_masses_asked_for():
    """Items give 1 each, codes take at most their room, and codes without room take nothing."""
    random = np.random.default_rng(1)
    costs, lengths = random.random((3, 5, 8)).astype(np.float32), np.array([5, 2, 4])
    room = np.array([[1] * 8, [1, 1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0, 0]])
    logs = transport(costs, lengths, room)
    for group, length in enumerate(lengths):
        plan = np.exp(logs[group, :length] - logs[group, :length].max(axis=1, keepdims=True))
        plan /= plan.sum(axis=1, keepdims=True)  # rows are known up to a constant, and have mass 1
        assert (plan.sum(axis=0) <= room[group] + 0.05).all()
        assert (plan[:, room[group] == 0] == 0).all()


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 60), sizes=SIZES, spare=st.integers(0, 5), seed=st.integers(0, 9999))
def test_digits_differ_in_a_bucket_and_all_of_them_are_used(rows: int, sizes: list[int], spare: int, seed: int):
    vectors, quantizer = vectors_of(rows, seed), quantizer_of(sizes, seed=seed)
    codes = quantizer.encode(vectors)
    resolved = resolve_collisions(codes, vectors, quantizer, "digit", spare)
    largest = max(Counter(map(tuple, codes.tolist())).values())
    assert resolved.codebook_sizes == (*sizes, min(largest + spare, rows))
    assert np.array_equal(resolved.codes[:, :-1], codes)
    assert len(np.unique(resolved.codes, axis=0)) == rows
    used = np.bincount(resolved.codes[:, -1], minlength=resolved.codebook_sizes[-1])
    assert used.min() >= 1 and used.max() - used.min() <= 1


def test_a_later_item_gets_the_lowest_free_digit_of_its_bucket_or_climbs():
    quantizer = line_quantizer([0.0, 5.0])
    allowed = [np.ones(2, bool), np.ones(3, bool)]
    taken = np.array([[0, 0], [0, 2]], np.int32)
    vectors = np.array([[0.0], [1.0], [0.5]], np.float32)
    wish = np.zeros((3, 2), np.int32)
    assert place(wish[:1], vectors[:1], quantizer, allowed, taken).tolist() == [[0, 1]]
    # one place is left below code 0: the two that lose least (1, then 0.5) go to code 5
    assert place(wish, vectors, quantizer, allowed, taken).tolist() == [[0, 1], [1, 0], [1, 1]]


def test_digit_vectors_differ_and_stay_the_same():
    vectors = digit_vectors(5, 16)
    assert vectors.shape == (5, 16) and vectors.dtype == np.float32
    assert len(np.unique(vectors, axis=0)) == 5
    assert np.array_equal(vectors, digit_vectors(5, 16))


def test_spare_digits_are_counted_from_zero():
    with pytest.raises(HfGrError, match="spare_digits is -1"):
        resolve_collisions(np.zeros((1, 1), np.int32), np.zeros((1, 3), np.float32), quantizer_of((2,)), "digit", -1)
