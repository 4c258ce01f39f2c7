from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.errors import HfGrError
from hf_gr.quantizers import RQKMeans, RQKMeansConfig, resolve_collisions


def quantizer_of(sizes: tuple[int, ...], dim: int = 3, seed: int = 0) -> RQKMeans:
    """Codebooks at random, coarse before fine."""
    quantizer = RQKMeans(RQKMeansConfig(dim=dim, codebook_sizes=sizes))
    random = np.random.default_rng(seed)
    for level, codebook in enumerate(quantizer.codebooks):
        values = random.normal(size=tuple(codebook.shape)) * 0.3**level
        codebook.data.copy_(codebook.new_tensor(values))
    return quantizer


def greedy_by_hand(codes: np.ndarray, vectors: np.ndarray, quantizer: RQKMeans) -> np.ndarray:
    """The rule word for word, one item at a time, distances from the decoded vectors."""
    result = [tuple(row) for row in codes.tolist()]
    size = quantizer.config.codebook_sizes[-1]

    def distance(item: int, code: int) -> float:
        sid = np.array([[*codes[item, :-1], code]], np.int32)
        return float(np.square(vectors[item].astype(np.float64) - quantizer.decode(sid)[0]).sum())

    for prefix in {sid[:-1] for sid in result}:
        below = [item for item, sid in enumerate(result) if sid[:-1] == prefix]
        taken = {result[item][-1] for item in below}
        movers = []
        for code in taken:
            bucket = [item for item in below if result[item][-1] == code]
            stays = min(bucket, key=lambda item: (distance(item, code), item))
            movers += [(distance(item, code), item) for item in bucket if item != stays]
        for _, item in sorted(movers, reverse=True):
            free = [code for code in range(size) if code not in taken]
            if free:
                code = min(free, key=lambda code: distance(item, code))
                result[item] = (*prefix, code)
                taken.add(code)
    return np.array(result, np.int32)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 9999))
def test_greedy_equals_the_rule_applied_by_hand(rows: int, sizes: list[int], seed: int):
    vectors = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    quantizer = quantizer_of(tuple(sizes), seed=seed)
    codes = quantizer.encode(vectors)
    before = codes.copy()
    resolved = resolve_collisions(codes, vectors, quantizer)
    assert np.array_equal(resolved, greedy_by_hand(codes, vectors, quantizer))
    assert np.array_equal(codes, before)
    assert np.array_equal(resolved[:, :-1], codes[:, :-1])
    groups = Counter(map(tuple, codes[:, :-1].tolist()))
    assert len(np.unique(resolved, axis=0)) == sum(min(count, sizes[-1]) for count in groups.values())


def test_the_nearest_stays_and_the_furthest_takes_the_last_free_code():
    quantizer = RQKMeans(RQKMeansConfig(dim=1, codebook_sizes=[1, 3]))
    quantizer.codebooks[0].data.zero_()
    quantizer.codebooks[1].data.copy_(quantizer.codebooks[1].new_tensor([[0.0], [10.0], [11.0]]))
    vectors = np.array([[0.5], [0.1], [-2.0], [9.9], [0.7]], np.float32)
    codes = quantizer.encode(vectors)
    assert codes[:, 1].tolist() == [0, 0, 0, 1, 0]
    assert resolve_collisions(codes, vectors, quantizer)[:, 1].tolist() == [0, 0, 2, 1, 0]
    assert np.array_equal(resolve_collisions(codes, vectors, quantizer, "keep"), codes)


def test_equal_items_are_told_apart_by_their_rows():
    quantizer = quantizer_of((2, 4))
    vectors = np.zeros((4, 3), np.float32)
    codes = quantizer.encode(vectors)
    resolved = resolve_collisions(codes, vectors, quantizer)
    assert len(np.unique(resolved, axis=0)) == 4
    assert np.array_equal(resolved[0], codes[0])


def test_an_unknown_method_is_refused():
    with pytest.raises(HfGrError, match="sinkhorm"):
        resolve_collisions(np.zeros((1, 1), np.int32), np.zeros((1, 3), np.float32), quantizer_of((2,)), "sinkhorm")
