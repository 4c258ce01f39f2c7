"""Several vectors of an item → one."""

from collections.abc import Mapping

import numpy as np

from ..errors import HfGrError


_BLOCK_ROWS = 65_536  # rows in float64 at a time


def fuse(parts: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Normalises every part row by row, multiplies it by the square root of its weight and concatenates.

    The inner product of two fused vectors is then the weighted sum of their parts' cosines, whatever the widths of
    the parts. A row of zeros (an item of which this part knows nothing) stays zero. The form is ours.

    Args:
        parts: Name → float [N, d_i].
        weights: Name → weight above 0, for exactly these names.

    Returns:
        float32 [N, Σ d_i], parts in the order of `parts`.

    Raises:
        HfGrError: If names or numbers of rows differ, or a weight is not above 0.
    """
    if not parts or set(parts) != set(weights):
        raise HfGrError(f"weights are given for {sorted(weights)}, but there are vectors of {sorted(parts)}.")
    rows = {name: len(part) for name, part in parts.items()}
    if len(set(rows.values())) > 1:
        raise HfGrError(f"vectors of different items cannot be fused: rows are {rows}; embed the same dataset.")
    for name, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise HfGrError(f"the weight of {name!r} is {weight}; give a number above 0, or leave the source out.")
    total = sum(part.shape[1] for part in parts.values())
    fused = np.empty((max(rows.values()), total), np.float32)
    for start in range(0, len(fused), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        pieces = [unit_rows(part[block]) * np.sqrt(weights[name]) for name, part in parts.items()]
        fused[block] = np.concatenate(pieces, axis=1)
    return fused


def unit_rows(part: np.ndarray) -> np.ndarray:
    """Rows [N, d] of length 1, in float64; rows of zeros stay zero."""
    values = part.astype(np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
