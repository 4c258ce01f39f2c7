"""What quantizers ask of the vectors they are given, and how they read files larger than memory."""

from collections.abc import Iterator, Sequence
from warnings import warn

import numpy as np

from ..errors import HfGrError


CHUNK = 65_536  # rows read at a time
_HASHED = 8192  # rows hashed at a time
_NAMED = 3  # items that a message names


def check_vectors(vectors: np.ndarray, dim: int, item_ids: Sequence[str] | None = None) -> None:
    """Raises [`HfGrError`] that names the first bad items unless the vectors are finite and [N, dim]."""
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        whose = f" (of {_names(np.arange(len(vectors)), item_ids)})" if item_ids is not None else ""
        raise HfGrError(
            f"this quantizer takes vectors of width {dim}, not shape {list(vectors.shape)}{whose}; "
            "embed with the settings it was fitted with, or fit it again."
        )
    for start in range(0, len(vectors), CHUNK):
        bad = start + np.flatnonzero(~np.isfinite(vectors[start : start + CHUNK]).all(axis=1))
        if len(bad):
            raise HfGrError(
                f"vectors of {_names(bad, item_ids)} hold NaN or infinity; look at their texts and embed again "
                "(in float32), or leave these items out."
            )


def check_distinct(vectors: np.ndarray, codebook_sizes: Sequence[int], item_ids: Sequence[str] | None = None) -> None:
    """Raises [`HfGrError`] if fewer vectors differ than a codebook has codes; warns of items that are the same.

    A catalog may well hold one product twice, so equal vectors are refused only when they leave too little to learn
    from; of the others the collision resolution makes distinct SIDs.
    """
    largest = max(codebook_sizes)
    level = list(codebook_sizes).index(largest)
    if len(vectors) < largest:
        raise HfGrError(
            f"{len(vectors)} item vectors are fewer than the {largest} codes of level {level}; "
            f"set codebook_size to {len(vectors)} or less."
        )
    _, first, group, sizes = np.unique(
        _row_hashes(vectors), return_index=True, return_inverse=True, return_counts=True
    )
    most = np.flatnonzero(sizes == sizes.max())
    fullest = np.flatnonzero(group == most[first[most].argmin()])  # hashes have no order: of several, the earliest
    if len(first) < largest:
        raise HfGrError(
            f"{len(vectors)} item vectors take only {len(first)} different values, fewer than the {largest} codes of "
            f"level {level} ({_names(fullest, item_ids)} are all the same); check what was embedded, or set "
            f"codebook_size to {len(first)} or less."
        )
    if len(first) < len(vectors):
        warn(
            f"{len(vectors) - len(first)} item vectors repeat another one; the most on one vector are "
            f"{_names(fullest, item_ids)}. Only the resolution of collisions can tell such items apart.",
            stacklevel=3,
        )


def sample_rows(vectors: np.ndarray, at_most: int, seed: int) -> np.ndarray:
    """A float32 copy of the vectors, or of `at_most` rows of them in their order."""
    if len(vectors) <= at_most:
        return np.array(vectors, dtype=np.float32)
    rows = np.random.default_rng(seed).choice(len(vectors), at_most, replace=False)
    return np.array(vectors[np.sort(rows)], dtype=np.float32)


def shuffled_batches(num_rows: int, batch_size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of one epoch, int64 [≤ batch_size] each, without replacement.

    Up to [`CHUNK`] rows: a plain shuffle. Beyond, chunks of neighbouring rows come in random order and are shuffled
    within, so that a memory-mapped file is read in long runs.
    """
    chunks = [np.arange(start, min(start + CHUNK, num_rows)) for start in range(0, num_rows, CHUNK)]
    for chunk in random.permutation(len(chunks)):
        rows = random.permutation(chunks[chunk])
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def _row_hashes(vectors: np.ndarray) -> np.ndarray:
    """int64 [N]: equal for equal rows (-0 is 0), different for different ones but for a chance of some N²/2⁶⁴."""
    hashes = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _HASHED):
        values = np.ascontiguousarray(vectors[start : start + _HASHED], dtype=np.float32) + np.float32(0)
        rows = values.view(np.dtype((np.void, values.itemsize * values.shape[1])))
        hashes[start : start + _HASHED] = [hash(row) for row in rows[:, 0].tolist()]  # of bytes: fast and mixes well
    return hashes


def _names(rows: np.ndarray, item_ids: Sequence[str] | None) -> str:
    shown = [repr(str(item_ids[row])) if item_ids is not None else f"row {row}" for row in rows[:_NAMED].tolist()]
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"item{'s' if len(rows) > 1 else ''} {', '.join(shown)}{more}"
