import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.errors import HfGrError
from hf_gr.quantizers import RQKMeans, RQKMeansConfig, collision_report, metrics, print_collisions
from hf_gr.quantizers.metrics import (
    bucket_sizes,
    codebook_report,
    cooccurrence_neighbours,
    nearest_neighbours,
    neighbour_overlap,
    preference_discrimination,
    reconstruction_error,
    semantic_cohesion,
)
from hf_gr.quantizers.redundancy import redundancy


CODES = np.array([[0, 1], [0, 1], [0, 1], [2, 0], [2, 1], [2, 1]])


def test_the_report_counts_what_there_is():
    report = collision_report(CODES, [4, 2], targets=np.array([3, 3, 0, 4]), popularity=np.array([1, 0, 0, 8, 1, 0]))
    assert report["items"] == 6
    assert report["distinct_sids"] == 3
    assert report["collision_rate"] == 5 / 6
    assert report["largest_bucket"] == 3
    assert report["targets_on_shared_sid"] == 0.5
    assert report["events_on_shared_sid"] == 0.2
    first, second = report["levels"]
    assert (first["size"], first["used"], first["use"]) == (4, 2, 0.5)
    assert first["perplexity"] == pytest.approx(2)
    entropy = -(5 / 6 * math.log(5 / 6) + 1 / 6 * math.log(1 / 6))
    assert second["perplexity"] == pytest.approx(math.exp(entropy))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_the_report_equals_brute_force(sids: list[tuple[int, int]]):
    report = collision_report(np.array(sids), [3, 3])
    counts = Counter(sids)
    assert report["distinct_sids"] == len(counts)
    assert report["largest_bucket"] == max(counts.values())
    assert report["collision_rate"] == pytest.approx(sum(counts[sid] > 1 for sid in sids) / len(sids))
    assert [level["used"] for level in report["levels"]] == [len({sid[i] for sid in sids}) for i in range(2)]


def test_codes_out_of_range_are_refused():
    with pytest.raises(HfGrError, match="item row 3"):
        collision_report(CODES, [2, 2])


def test_the_report_is_printed(capsys):
    print_collisions(collision_report(CODES, [4, 2], targets=np.array([0, 3])))
    printed = capsys.readouterr().out
    assert "6 items on 3 SIDs; 83.33% of items share theirs, at most 3 the same one" in printed
    assert "50.00% of test targets" in printed
    assert "level 0: 2 of 4 codes used (50.0%), perplexity 2.0" in printed
    assert "training events" not in printed


def test_skew_and_bucket_sizes():
    report = collision_report(CODES, [4, 2])
    assert [level["skew"] for level in report["levels"]] == pytest.approx([2.0, 5 / 3])  # 3 of 6/4, 5 of 6/2
    assert bucket_sizes(CODES) == [[1, 1], [2, 1], [3, 1]]


def items(seed: int = 0, rows: int = 60, dim: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Codes of 3 levels that say something of the vectors; one vector is zero."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(rows, dim)).astype(np.float32)
    vectors[7] = 0
    codes = np.stack([vectors[:, 0] > 0, vectors[:, 1] > 0.5, random.integers(0, 3, rows)], 1).astype(np.int32)
    return codes, vectors


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths > 1e-9 else 0.0


def clusters_of(prefix: np.ndarray) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, sid in enumerate(map(tuple, prefix.tolist())):
        groups.setdefault(sid, []).append(row)
    return list(groups.values())


def cohesion_by_hand(prefix: np.ndarray, vectors: np.ndarray) -> float:
    means = [
        (len(rows), np.mean([cosine(vectors[i], vectors[j]) for i, j in itertools.combinations(rows, 2)]))
        for rows in clusters_of(prefix)
        if len(rows) > 1
    ]
    return sum(size * mean for size, mean in means) / sum(size for size, _ in means)


def discrimination_by_hand(prefix: np.ndarray, vectors: np.ndarray) -> float:
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centroids = [units[rows].mean(0) for rows in clusters_of(prefix)]
    return float(np.mean([cosine(a, b) for a, b in itertools.combinations(centroids, 2)]))


@pytest.mark.parametrize("chunk", [1, 7, 65_536])
@pytest.mark.parametrize("seed", range(3))
def test_cohesion_and_discrimination_equal_all_pairs(chunk: int, seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    codes, vectors = items(seed)
    for levels in (1, 2, 3):
        prefix = codes[:, :levels]
        assert semantic_cohesion(prefix, vectors) == pytest.approx(cohesion_by_hand(prefix, vectors), abs=1e-6)
        expected = discrimination_by_hand(prefix, vectors)
        assert preference_discrimination(prefix, vectors) == pytest.approx(expected, abs=1e-6)


def test_there_is_no_cohesion_of_singletons_and_no_discrimination_of_one():
    _, vectors = items()
    apart, together = np.arange(len(vectors))[:, None], np.zeros((len(vectors), 1), np.int32)
    assert semantic_cohesion(apart, vectors) is None
    assert preference_discrimination(together, vectors) is None
    assert semantic_cohesion(together, vectors) == pytest.approx(preference_discrimination(apart, vectors), abs=1e-6)


class WithSide(RQKMeans):
    """Keeps the last number of a vector beside the codes."""

    side_width = 1

    def _side(self, batch, codes):
        return batch[:, -1:]

    def _decode(self, codes, side):
        decoded = super()._decode(codes, None).clone()
        decoded[:, -1] = 3.0 if side is None else side[:, 0]
        return decoded


def fitted(kind: type[RQKMeans] = RQKMeans, rows: int = 90) -> tuple[RQKMeans, np.ndarray, np.ndarray]:
    vectors = np.random.default_rng(1).normal(size=(rows, 4)).astype(np.float32) + 2
    quantizer = kind(RQKMeansConfig(dim=4, codebook_sizes=[6, 5])).fit(vectors, progress=False)
    return quantizer, vectors, quantizer.encode(vectors)


@pytest.mark.parametrize("chunk", [11, 65_536])
def test_the_error_is_relative_to_the_mean_and_told_with_and_without_side(chunk: int, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    for kind in (RQKMeans, WithSide):
        quantizer, vectors, codes = fitted(kind)
        spread = np.square(vectors - vectors.mean(0)).sum()
        found = reconstruction_error(quantizer, vectors, codes)
        for level in (1, 2):
            books = [quantizer.code_vectors(i)[codes[:, i]] for i in range(level)]
            known, unknown = sum(books), sum(books)
            if kind is WithSide:
                known, unknown = known.copy(), unknown.copy()
                known[:, -1], unknown[:, -1] = vectors[:, -1], 3
            assert found["error"][level - 1] == pytest.approx(np.square(vectors - known).sum() / spread, rel=1e-4)
            expected = np.square(vectors - unknown).sum() / spread
            assert found["error_of_codes"][level - 1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("chunk", [1, 9, 65_536])
def test_nearest_neighbours_equal_a_full_sort(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    _, vectors = items()
    rows, near = nearest_neighbours(vectors, k=4)
    assert rows.tolist() == [row for row in range(60) if row != 7]  # item 7 is the zero vector
    for row, found in zip(rows, near, strict=True):
        others = sorted((-cosine(vectors[row], vectors[i]), i) for i in range(60) if i != row)
        assert found.tolist() == [i for _, i in others[:4]]


def test_equal_vectors_are_each_others_neighbours_and_never_their_own():
    vectors = np.ones((9, 3), np.float32)
    rows, near = nearest_neighbours(vectors, k=20)
    assert near.shape == (9, 8)
    assert all(
        sorted([row, *found]) == list(range(9)) for row, found in zip(rows.tolist(), near.tolist(), strict=True)
    )


def test_large_catalogs_are_sampled_by_the_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "_PAIRS", 60 * 20)
    monkeypatch.setattr(metrics, "_QUERIES", 2)
    _, vectors = items()
    everyone = dict(zip(range(60), range(60), strict=True))
    rows, near = nearest_neighbours(vectors, 3, seed=5)
    again, _ = nearest_neighbours(vectors, 3, seed=5)
    other, _ = nearest_neighbours(vectors, 3, seed=6)
    assert len(set(rows.tolist()) - {7}) in (19, 20) and set(rows.tolist()) <= everyone.keys()
    assert rows.tolist() == again.tolist() != other.tolist()
    monkeypatch.setattr(metrics, "_PAIRS", 10**9)
    full = dict(zip(*nearest_neighbours(vectors, 3), strict=True))
    assert all(found.tolist() == full[row].tolist() for row, found in zip(rows, near, strict=True))


def graph_of(seed: int = 0, rows: int = 60) -> sp.csr_array:
    random = np.random.default_rng(seed)
    counts = np.triu(random.integers(0, 4, (rows, rows)) * (random.random((rows, rows)) < 0.1), 1)
    counts[:, 11] = counts[11] = 0  # never together with anything
    return sp.csr_array((counts + counts.T).astype(np.float64))


@pytest.mark.parametrize("chunk", [13, 65_536])
def test_cooccurrence_neighbours_are_the_strongest(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    dense = graph_of().toarray()
    graph = sp.csr_array(dense + 9 * np.eye(60))
    rows, neighbours = cooccurrence_neighbours(graph, 3)  # never an item itself
    assert (graph.diagonal() == 9).all()  # and the graph stays as it was
    assert rows.tolist() == list(range(60))
    assert (neighbours[11] == -1).all()
    for row in range(60):
        found = sorted((-dense[row, i], i) for i in range(60) if dense[row, i] > 0)[:3]
        assert neighbours[row].tolist() == [i for _, i in found] + [-1] * (3 - len(found))


@pytest.mark.parametrize("chunk", [13, 65_536])
def test_overlap_and_chance_equal_a_count(chunk: int, monkeypatch: pytest.MonkeyPatch):
    codes, _ = items()
    rows, neighbours = cooccurrence_neighbours(graph_of(), 3)
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    found = neighbour_overlap(codes, rows, neighbours)
    sids = codes.tolist()
    known = [(row, [i for i in near if i >= 0]) for row, near in enumerate(neighbours.tolist()) if near[0] >= 0]
    assert found["items"] == len(known) < 60
    for level in range(3):
        same = [np.mean([sids[row][: level + 1] == sids[i][: level + 1] for i in near]) for row, near in known]
        pairs = [sids[i][: level + 1] == sids[j][: level + 1] for i, j in itertools.permutations(range(60), 2)]
        overlap, chance = float(np.mean(same)), float(np.mean(pairs))
        assert found["overlap"][level] == pytest.approx(overlap)
        assert found["chance"][level] == pytest.approx(chance)
        assert found["lift"][level] == pytest.approx(overlap / chance)
        assert found["gain"][level] == pytest.approx(math.log(overlap / chance) / math.log(1 / chance))


def test_codes_dealt_at_random_have_no_lift_and_perfect_ones_all_the_gain():
    near = np.arange(4000)[:, None] ^ 1  # pairs
    random = neighbour_overlap(np.random.default_rng(0).integers(0, 4, (4000, 1)), np.arange(4000), near)
    assert random["lift"][0] == pytest.approx(1, abs=0.12)
    assert random["gain"][0] == pytest.approx(0, abs=0.08)
    perfect = neighbour_overlap(np.arange(4000)[:, None] // 2, np.arange(4000), near)
    assert perfect["overlap"] == perfect["gain"] == [1.0]
    apart = neighbour_overlap(np.arange(4000)[:, None], np.arange(4000), near)
    assert (apart["overlap"], apart["chance"], apart["lift"], apart["gain"]) == ([0.0], [0.0], [None], [None])


def test_the_report_holds_what_its_inputs_allow():
    quantizer, vectors, codes = fitted(rows=60)
    graph = graph_of()
    bare = codebook_report(codes, [6, 5])
    assert bare == collision_report(codes, [6, 5]) | {
        "distinct_set_rate": len(np.unique(codes, axis=0)) / 60,
        "bucket_sizes": bucket_sizes(codes),
        "redundancy": redundancy(codes),
    }
    assert codebook_report(codes[:, :1], [6])["redundancy"] is None
    full = codebook_report(codes, [6, 5], vectors=vectors, quantizer=quantizer, graph=graph, k=4)
    assert json.loads(json.dumps(full, allow_nan=False)) == full
    assert full["semantic_cohesion"] == [semantic_cohesion(codes[:, :level], vectors) for level in (1, 2)]
    assert full["preference_discrimination"][1] == preference_discrimination(codes, vectors)
    assert full["nearest_overlap"] == neighbour_overlap(codes, *nearest_neighbours(vectors, 4))
    assert full["cooccurrence_overlap"] == neighbour_overlap(codes, *cooccurrence_neighbours(graph, 4))
    assert full["error"] == full["error_of_codes"] == reconstruction_error(quantizer, vectors, codes)["error"]
    assert full["mean_cosine"] == pytest.approx(cohesion_by_hand(np.zeros((60, 1)), vectors), abs=1e-6)


def test_a_digit_beyond_the_quantizers_levels_is_left_out_of_what_concerns_vectors():
    quantizer, vectors, codes = fitted(rows=60)
    digits = np.column_stack([codes, np.arange(60, dtype=np.int32)])
    plain = codebook_report(codes, [6, 5], vectors=vectors, quantizer=quantizer)
    longer = codebook_report(digits, [6, 5, 60], vectors=vectors, quantizer=quantizer)
    assert longer["collision_rate"] == 0 < plain["collision_rate"]
    for name in ("error", "semantic_cohesion", "preference_discrimination", "nearest_overlap"):
        assert longer[name] == plain[name]
