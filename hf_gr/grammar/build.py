"""How a trie is built: SIDs in order, and the arrays that say where the children of each node stand."""

from collections.abc import Sequence

import numpy as np


def sort_keys(codes: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Keys for `lexsort` that order SIDs (last key first): as many codes in one int64 as fit."""
    keys: list[np.ndarray] = []
    room = 0.0
    for column, size in zip(codes.T, sizes, strict=True):
        bits = float(np.log2(max(size, 2)))
        if keys and room + bits < 62:
            keys[0] = keys[0] * size + column
            room += bits
        else:
            keys.insert(0, column.astype(np.int64))
            room = bits
    return keys


def build_trie(codes: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Codes and first children per depth, int32, of SIDs in order [n, L]; and the most children of a node per depth.

    Each depth's codes end in as many zeros as that, so that a row's options are always a slice.
    """
    n = len(codes)
    changed = np.zeros(n, bool)
    changed[0] = True
    starts = np.zeros(1, np.int64)
    code, children, widths = [], [], []
    for column in codes.T:
        changed[1:] |= column[1:] != column[:-1]
        below = np.flatnonzero(changed)
        children.append(np.searchsorted(below, np.append(starts, n)).astype(np.int32))
        widths.append(int(np.diff(children[-1]).max()))
        code.append(np.append(column[below], np.zeros(widths[-1], column.dtype)).astype(np.int32))
        starts = below
    children.append(np.append(starts, n).astype(np.int32))
    return code, children, [*widths, int(np.diff(children[-1]).max())]
