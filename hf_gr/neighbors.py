"""The largest values of the rows of a sparse matrix: an item's neighbors, and what is recommended by them."""

import numpy as np
from scipy import sparse


_CELLS = 2**22  # entries of a block that are sorted at a time


def largest_in_rows(scores: sparse.csr_array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k largest positive values of every row of a sparse matrix.

    Values are compared in float32: sums that are equal by right and differ in their last digits are ties. Ties go to
    the lower column.

    Args:
        scores: [rows, columns]; values that are not positive count as absent.
        k: How many.

    Returns:
        Columns int64 [rows, k], largest value first, -1 behind the last; and the values, float32 [rows, k], 0 there.
    """
    rows, last = scores.shape[0], 2**32 - 1
    columns, values = np.full((rows, k), -1, np.int64), np.zeros((rows, k), np.float32)
    counts = np.diff(scores.indptr)
    # positive floats are ordered as their bits are: one integer holds the value and, below it, the column
    bits = np.maximum(scores.data, 0).astype(np.float32).view(np.int32).astype(np.int64)
    keys = np.where(bits > 0, (bits << 32) | (last - scores.indices.astype(np.int64)), 0)
    order = np.argsort(counts, kind="stable")  # rows of about one length are sorted together
    start = 0
    while start < rows:
        end = start + 1
        while end < rows and (end + 1 - start) * counts[order[end]] <= _CELLS:
            end += 1
        chosen = order[start:end]
        lengths, width = counts[chosen], max(int(counts[chosen].max()), k)
        block = np.zeros((len(chosen), width), np.int64)
        inside = np.arange(width) < lengths[:, None]
        source = (scores.indptr[:-1][chosen][:, None] + np.arange(width))[inside]
        block[inside] = keys[source]
        best = -np.sort(-np.partition(block, width - k, axis=1)[:, width - k :], axis=1)
        columns[chosen] = np.where(best > 0, last - (best & last), -1)
        values[chosen] = (best >> 32).astype(np.int32).view(np.float32)
        start = end
    return columns, values
