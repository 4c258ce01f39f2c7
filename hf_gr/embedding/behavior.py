"""Item vectors from how items are used together: PPMI of co-occurrence counts, then truncated SVD.

Levy & Goldberg, "Neural Word Embedding as Implicit Matrix Factorization" (2014) [known]; items in place of words and
user histories in place of sentences, window and weighting as below [ours].
"""

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from ..dataset import Histories
from ..errors import HfGrError


def behavior_vectors(train: Histories, num_items: int, dim: int = 64, window: int = 5, seed: int = 0) -> np.ndarray:
    """Vectors of items that are used together are close.

    Args:
        train: Histories of the training part, and nothing else: these vectors must not see held-out events.
        num_items: N, rows of `items.parquet`.
        dim: d, width of the vectors.
        window: How many events apart two items of one history may stand to count as used together.
        seed: Start of the eigensolver; the result depends on it by rounding only.

    Returns:
        float32 [N, d], columns by falling singular value; items without a co-occurrence get zeros.

    Raises:
        HfGrError: If `dim` is not below the number of items, or no two items occur together.
    """
    if not 0 < dim < num_items:
        raise HfGrError(f"behavior_dim {dim} must be between 1 and the number of items less one ({num_items - 1}).")
    counts = cooccurrence(train, num_items, window)
    if counts.nnz == 0:
        raise HfGrError(
            "no two items stand together in the training histories, so behavior says nothing; "
            "use longer histories or sources: [text]."
        )
    return _truncated_svd(ppmi(counts), dim, seed)


def cooccurrence(train: Histories, num_items: int, window: int) -> sp.csr_array:
    """Symmetric counts float64 [N, N]: every pair of events of one user that stands `d ≤ window` apart adds 1/d.

    The diagonal is left out (an item taken again says nothing of other items) [ours].
    """
    if window < 1:
        raise HfGrError(f"window {window} must be at least 1.")
    owner = np.repeat(np.arange(len(train)), train.lengths)
    counts = sp.csr_array((num_items, num_items), dtype=np.float64)
    for distance in range(1, window + 1):
        left, right = train.items[:-distance], train.items[distance:]
        keep = (owner[:-distance] == owner[distance:]) & (left != right)
        rows, columns = left[keep], right[keep]
        weights = np.full(len(rows), 1 / distance)
        counts = counts + sp.coo_array((weights, (rows, columns)), shape=counts.shape).tocsr()
    return (counts + counts.T).tocsr()


def ppmi(counts: sp.csr_array) -> sp.csr_array:
    """Positive pointwise mutual information of a symmetric count matrix: max(0, log(c_ij·Σc / (c_i·c_j)))."""
    margin = counts.sum(axis=1)
    entries = counts.tocoo()
    rows, columns = entries.coords
    # log of the parts, not of a product: margins of popular items multiply to huge numbers
    information = np.log(entries.data) + np.log(margin.sum()) - np.log(margin[rows]) - np.log(margin[columns])
    result = sp.coo_array((np.maximum(information, 0), (rows, columns)), shape=counts.shape).tocsr()
    result.eliminate_zeros()
    return result


def _truncated_svd(matrix: sp.csr_array, dim: int, seed: int) -> np.ndarray:
    start = np.random.default_rng(seed).standard_normal(matrix.shape[0])
    left, values, _ = svds(matrix, k=dim, v0=start)
    order = np.argsort(-values, kind="stable")
    left, values = left[:, order], values[order]
    # Singular vectors are defined up to sign: the largest entry of every column is made positive.
    largest = left[np.abs(left).argmax(axis=0), np.arange(dim)]
    left = left * np.where(largest < 0, -1.0, 1.0)
    # A value that is rounding noise has an arbitrary vector, which must not become a column.
    values = np.where(values > 1e-6 * values[0], values, 0.0)
    vectors = left * np.sqrt(values)  # both sides share the values equally: U·√S
    # exactly zero, not 1e-17, which normalisation would blow up to a direction
    vectors[np.diff(matrix.indptr) == 0] = 0.0
    return vectors.astype(np.float32)
