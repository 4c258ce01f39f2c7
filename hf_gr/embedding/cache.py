"""Encoding in chunks that survive a killed run: what texts and images share."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from ..artifacts import replacing


CHUNK_SIZE = 2048  # inputs per file of the cache: what a killed run can lose

Input = TypeVar("Input")


def encode_in_chunks(
    inputs: Sequence[Input],
    encode: Callable[[Sequence[Input]], np.ndarray],
    key: Sequence[object],
    cache: str | Path | None = None,
    chunk_size: int = CHUNK_SIZE,
    progress: bool = True,
    unit: str = "text",
) -> np.ndarray:
    """Encodes inputs chunk by chunk.

    Args:
        inputs: N inputs, one at least.
        encode: Inputs → float32 [n, d].
        key: What the vectors depend on, JSON-serialisable, its first entry the encoder's name. Chunks that were
            written under another key are never read.
        cache: Folder for finished chunks. A run that was killed goes on from them when it is started again with the
            same key. The caller removes the folder when the vectors are safe elsewhere. Nothing is kept if left out.
        chunk_size: Inputs per chunk.
        progress: Whether to show a progress bar.
        unit: What an input is called there.

    Returns:
        float32 [N, d].
    """
    folder = None if cache is None else Path(cache) / _digest([chunk_size, *key])
    chunks = []
    with tqdm(total=len(inputs), desc=f"encode with {key[0]}", unit=unit, disable=not progress) as bar:
        for start in range(0, len(inputs), chunk_size):
            part = inputs[start : start + chunk_size]
            chunks.append(encode(part) if folder is None else _cached(part, encode, folder / f"{start:012d}.npy"))
            bar.update(len(part))
    return np.concatenate(chunks)


def _cached(inputs: Sequence[Input], encode: Callable[[Sequence[Input]], np.ndarray], file: Path) -> np.ndarray:
    if file.is_file():
        return np.load(file, allow_pickle=False)
    vectors = encode(inputs)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as half, half.open("wb") as handle:
        np.save(handle, vectors, allow_pickle=False)
    return vectors


def _digest(key: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
