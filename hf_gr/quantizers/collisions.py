"""Items that share a SID: how to tell them apart."""

from typing import Literal, get_args

import numpy as np

from ..errors import HfGrError
from .base import Quantizer


CollisionMethod = Literal["keep", "greedy"]


def resolve_collisions(
    codes: np.ndarray, vectors: np.ndarray, quantizer: Quantizer, method: CollisionMethod = "greedy"
) -> np.ndarray:
    """Gives items that share a SID another code on the last level, where one is free.

    `"greedy"`: of the items on one SID the nearest to it stays. Of all others below one prefix (the codes before the
    last), the one furthest from its code moves first, to the nearest last-level code that no item below this prefix
    has; when none is left, the remaining items stay where they are and share. Ties go to the lower row and the lower
    code. The idea is known, the order is ours. `"keep"`: the codes as they are.

    Args:
        codes: int32 [N, L] of `quantizer`.
        vectors: float32 [N, d], the vectors that were encoded.
        quantizer: Gives the distances to the codes of the last level.
        method: `"keep"` or `"greedy"`.

    Returns:
        int32 [N, L], a copy; no two items below one prefix share a SID while a code there is free.
    """
    if method not in get_args(CollisionMethod):
        raise HfGrError(f"collisions {method!r} is unknown; use one of {', '.join(get_args(CollisionMethod))}.")
    quantizer.check_codes(codes)
    resolved = codes.copy()
    if method == "keep":
        return resolved
    for rows in _crowded_prefixes(codes):
        distances = quantizer.distances(vectors[rows], codes[rows], codes.shape[1] - 1)
        resolved[rows, -1] = _spread(codes[rows, -1], distances)
    return resolved


def _crowded_prefixes(codes: np.ndarray) -> list[np.ndarray]:
    """Rows, ascending, of the items below every prefix with a shared SID."""
    _, prefix = np.unique(codes[:, :-1], axis=0, return_inverse=True)
    _, bucket, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    crowded = np.unique(prefix[sizes[bucket] > 1])
    order = np.argsort(prefix, kind="stable")
    starts, ends = (np.searchsorted(prefix[order], crowded, side=side) for side in ("left", "right"))
    return [order[start:end] for start, end in zip(starts, ends, strict=True)]


def _spread(last: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """New last-level codes of the n items below one prefix.

    Args:
        last: int [n], their codes.
        distances: float32 [n, K], squared distance of every item to every code.
    """
    own = distances[np.arange(len(last)), last]
    free = np.ones(distances.shape[1], bool)
    free[last] = False
    movers, kept = [], set()
    for item in np.argsort(own, kind="stable").tolist():  # nearest first: the first on a code keeps it
        if last[item] in kept:
            movers.append(item)
        kept.add(last[item])
    result = last.copy()
    for item in sorted(movers, key=lambda item: (-own[item], item)):
        if not free.any():
            break
        result[item] = int(np.where(free, distances[item], np.inf).argmin())
        free[result[item]] = False
    return result
