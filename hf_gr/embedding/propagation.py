"""Item vectors smoothed along the co-occurrence graph: items used together move towards each other.

The propagation of S²GR's collaborative and balanced codebook [known]: personalised PageRank of vectors on the
symmetrically normalised graph, its hops averaged with geometric weights. Items without a neighbour keep their vector
exactly [ours], so that an item that nobody has used yet lies in the same space and can be encoded.
"""

import numpy as np
import scipy.sparse as sp

from ..errors import HfGrError


_BLOCK_ROWS = 65_536
_BLOCK_VALUES = 2**27  # values of one [N, columns] block, 512 MiB; four such blocks are held at a time


def propagate(
    vectors: np.ndarray,
    graph: sp.csr_array,
    alpha: float = 0.2,
    hops: int = 3,
    out: np.ndarray | None = None,
    keep_lengths: bool = False,
) -> np.ndarray:
    """Mixes every item's vector with those of its neighbours.

    With Â = D^-½ A D^-½ and H⁰ = X: Hᵏ = (1-α) Â Hᵏ⁻¹ + α X, and the result is Σ_{k≤hops} β_k Hᵏ with β_k
    proportional to α(1-α)ᵏ and of sum 1.

    Args:
        vectors: X, float [N, d]. May be memory-mapped: columns are read, mixed and written a block at a time.
        graph: A, symmetric float [N, N] without negative weights, such as `cooccurrence` gives.
        alpha: Share of its own vector that an item keeps at every hop, above 0 and at most 1.
        hops: How far a vector spreads.
        out: Where to write, float32 [N, d]; may be memory-mapped, or `vectors` itself. A new array if left out.
        keep_lengths: Whether rows are brought back to the lengths they had [ours]. Mixing shortens them, by some 40 %
            on two data sets, but not those of items without a neighbour, which would then be of another kind.

    Returns:
        `out`, float32 [N, d].

    Raises:
        HfGrError: On an alpha or hops out of range, shapes that do not fit, or a graph that is not symmetric or has
            negative weights.
    """
    _check(vectors, graph, alpha, hops, out)
    result = np.empty(vectors.shape, np.float32) if out is None else out
    links, alone = _normalized(graph)
    betas = (1 - alpha) ** np.arange(hops + 1)
    betas = (betas / betas.sum()).astype(np.float32)
    width = max(1, _BLOCK_VALUES // max(1, len(vectors)))
    before, after = np.zeros(len(vectors)), np.zeros(len(vectors))  # squared lengths
    for start in range(0, vectors.shape[1], width):
        columns = slice(start, start + width)
        own = np.array(vectors[:, columns], np.float32, order="C")
        mixed, total = own, betas[0] * own
        for beta in betas[1:]:
            mixed = links @ mixed
            mixed *= np.float32(1 - alpha)
            mixed += np.float32(alpha) * own
            total += beta * mixed
        total[alone] = own[alone]
        before += np.square(own, dtype=np.float64).sum(axis=1)
        after += np.square(total, dtype=np.float64).sum(axis=1)
        result[:, columns] = total
    if keep_lengths:
        scale = np.sqrt(np.divide(before, after, out=np.ones_like(after), where=after > 0)).astype(np.float32)
        for start in range(0, len(result), _BLOCK_ROWS):
            result[start : start + _BLOCK_ROWS] *= scale[start : start + _BLOCK_ROWS, None]
    return result


def _normalized(graph: sp.csr_array) -> tuple[sp.csr_array, np.ndarray]:
    """Â in float32, and which items [N] have no neighbour."""
    degrees = np.asarray(graph.sum(axis=1), np.float64)
    alone = degrees == 0
    scale = np.divide(1.0, np.sqrt(degrees), out=np.zeros_like(degrees), where=~alone).astype(np.float32)
    data = graph.data.astype(np.float32)
    data *= np.repeat(scale, np.diff(graph.indptr))
    data *= scale[graph.indices]
    return sp.csr_array((data, graph.indices, graph.indptr), shape=graph.shape), alone


def _check(vectors: np.ndarray, graph: sp.csr_array, alpha: float, hops: int, out: np.ndarray | None) -> None:
    if not 0 < alpha <= 1:
        raise HfGrError(f"alpha {alpha} must be above 0 and at most 1 (an item's own share at every hop).")
    if hops < 1:
        raise HfGrError(f"hops {hops} must be at least 1.")
    if vectors.ndim != 2 or graph.shape != (len(vectors), len(vectors)):
        raise HfGrError(
            f"vectors {list(vectors.shape)} and a graph {list(graph.shape)} do not fit: give [N, d] and [N, N] of the "
            "same items."
        )
    if out is not None and (out.shape != vectors.shape or out.dtype != np.float32):
        raise HfGrError(f"out is {out.dtype} {list(out.shape)}; give float32 {list(vectors.shape)}.")
    # rows and columns of a symmetric graph have equal sums; comparing every entry would cost a second graph
    if graph.nnz and (graph.data.min() < 0 or not np.allclose(graph.sum(axis=0), graph.sum(axis=1))):
        raise HfGrError("the graph has negative weights or is not symmetric; make it with `cooccurrence`.")
