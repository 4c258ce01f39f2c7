import numpy as np
import pytest
import scipy.sparse as sp

from hf_gr.embedding import propagation
from hf_gr.embedding.propagation import propagate
from hf_gr.errors import HfGrError


def random_graph(num_items: int, alone: int = 2) -> sp.csr_array:
    """Symmetric; the last `alone` items have no neighbour."""
    random = np.random.default_rng(0)
    half = np.triu(random.random((num_items, num_items)) * (random.random((num_items, num_items)) < 0.3), 1)
    half[:, num_items - alone :] = 0
    return sp.csr_array(half + half.T)


def dense(vectors: np.ndarray, graph: np.ndarray, alpha: float, hops: int) -> np.ndarray:
    """The equations, item by item and in float64."""
    degree = graph.sum(1)
    links = np.zeros_like(graph)
    for i, j in zip(*np.nonzero(graph), strict=True):
        links[i, j] = graph[i, j] / np.sqrt(degree[i] * degree[j])
    steps = [vectors]
    for _ in range(hops):
        steps.append((1 - alpha) * links @ steps[-1] + alpha * vectors)
    betas = [alpha * (1 - alpha) ** k for k in range(hops + 1)]
    result = sum(beta * step for beta, step in zip(betas, steps, strict=True)) / sum(betas)
    return np.where(degree[:, None] > 0, result, vectors)


GRAPH = random_graph(20)
VECTORS = np.random.default_rng(1).normal(size=(20, 7))


@pytest.mark.parametrize(("alpha", "hops"), [(0.2, 3), (0.5, 1), (0.9, 6), (1.0, 2)])
@pytest.mark.parametrize("columns", [1, 3, 7, 100])
def test_it_is_the_dense_equations_whatever_the_block(monkeypatch, alpha: float, hops: int, columns: int):
    monkeypatch.setattr(propagation, "_BLOCK_VALUES", columns * 20)
    result = propagate(VECTORS, GRAPH, alpha, hops)
    assert result.dtype == np.float32
    assert np.allclose(result, dense(VECTORS, GRAPH.toarray(), alpha, hops), atol=1e-6)


def test_items_without_a_neighbour_keep_their_vector_exactly():
    same = (propagate(VECTORS, GRAPH) == VECTORS.astype(np.float32)).all(axis=1)
    assert same[18:].all()
    assert np.array_equal(same, GRAPH.sum(axis=1) == 0)


def test_memory_mapped_vectors_are_read_and_written_in_place(monkeypatch, tmp_path):
    monkeypatch.setattr(propagation, "_BLOCK_VALUES", 40)
    source = np.memmap(tmp_path / "in", np.float32, "w+", shape=VECTORS.shape)
    source[:] = VECTORS
    target = np.memmap(tmp_path / "out", np.float32, "w+", shape=VECTORS.shape)
    assert propagate(source, GRAPH, out=target) is target
    expected = propagate(VECTORS, GRAPH)
    assert np.array_equal(target, expected)
    assert np.array_equal(source, VECTORS.astype(np.float32))
    assert np.array_equal(propagate(source, GRAPH, out=source), expected)


def test_the_graph_is_left_as_it_was():
    before = GRAPH.copy()
    propagate(VECTORS, GRAPH)
    assert (before != GRAPH).nnz == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"alpha": 1.5}, "alpha 1.5"),
        ({"hops": 0}, "hops 0"),
        ({"vectors": VECTORS[:19]}, "do not fit"),
        ({"vectors": VECTORS[0]}, "do not fit"),
        ({"out": np.zeros((20, 7))}, "out is float64"),
        ({"out": np.zeros((20, 6), np.float32)}, "give float32"),
        ({"graph": sp.csr_array(np.triu(GRAPH.toarray()))}, "not symmetric"),
        ({"graph": -1 * GRAPH}, "negative weights"),
    ],
)
def test_what_cannot_work_is_refused(options: dict, message: str):
    with pytest.raises(HfGrError, match=message):
        propagate(**({"vectors": VECTORS, "graph": GRAPH} | options))


def test_rows_can_keep_the_lengths_they_had(monkeypatch):
    monkeypatch.setattr("hf_gr.embedding.propagation._BLOCK_VALUES", 3 * len(VECTORS))
    mixed, kept = propagate(VECTORS, GRAPH), propagate(VECTORS, GRAPH, keep_lengths=True)
    lengths = np.linalg.norm(VECTORS, axis=1)
    assert not np.allclose(np.linalg.norm(mixed, axis=1), lengths)
    assert np.allclose(np.linalg.norm(kept, axis=1), lengths, rtol=1e-5)
    cosines = (mixed * kept).sum(1) / (np.linalg.norm(mixed, axis=1) * lengths)
    assert np.allclose(cosines, 1, atol=1e-5)
