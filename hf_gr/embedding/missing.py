"""Parts of an item's vector that are not known (no behavior yet, no image), predicted from its text.

An item that nobody has used has no behavior vector; zeros in its place would make its fused vector shorter than
others and different in kind. Ridge regression from text, learned on the items that have both, gives it a likely one
[ours].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import HfGrError
from .fusion import unit_rows


MAPS_FILE = "missing.safetensors"
MIN_ITEMS = 10  # with fewer items that have both there is nothing to learn from
# λ as a share of the mean eigenvalue of the texts' scatter matrix; chosen once, on two datasets, between the cosine of
# prediction and truth (best near 1) and the neighbours found by the prediction (best below 0.3)
RIDGE = 0.3
_BLOCK_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class TextMap:
    """Part of an item ≈ (its text - `text_mean`) @ `weights` + `part_mean`, of rows of length 1.

    Attributes:
        weights: float32 [width of text, width of the part].
        text_mean: float32 [width of text].
        part_mean: float32 [width of the part].
    """

    weights: np.ndarray
    text_mean: np.ndarray
    part_mean: np.ndarray

    def __call__(self, text: np.ndarray) -> np.ndarray:
        """float32 [N, width of the part] from text vectors [N, width of text] of any length."""
        centered = unit_rows(text) - self.text_mean
        return (centered @ self.weights.astype(np.float64) + self.part_mean).astype(np.float32)


def learn_maps(parts: Mapping[str, np.ndarray]) -> dict[str, TextMap]:
    """A map for every part but the text, from the items that have both (rows that are not all zero).

    W = (Tᵀ T + λ I)⁻¹ Tᵀ P of centred rows of length 1, in float64, with λ = `RIDGE` times the mean eigenvalue of
    TᵀT (its trace over the width of text).

    Args:
        parts: Name → float [N, d_i].

    Returns:
        Name → map; empty without a part `text`, and without a map for parts of fewer than `MIN_ITEMS` items.
    """
    if "text" not in parts:
        return {}
    maps = {}
    for name, part in parts.items():
        rows = np.flatnonzero(parts["text"].any(axis=1) & part.any(axis=1))
        if name != "text" and len(rows) >= MIN_ITEMS:
            maps[name] = _ridge(parts["text"], part, rows)
    return maps


def fill_missing(parts: Mapping[str, np.ndarray], maps: Mapping[str, TextMap]) -> dict[str, np.ndarray]:
    """The parts [N, d_i], rows of zeros of those that have a map predicted from the text's row."""
    filled = dict(parts)
    for name, predict in maps.items():
        rows = np.flatnonzero(~parts[name].any(axis=1) & parts["text"].any(axis=1))
        if len(rows):
            filled[name] = np.array(parts[name], np.float32)
            filled[name][rows] = predict(parts["text"][rows])
    return filled


def save_maps(maps: Mapping[str, TextMap], folder: Path) -> None:
    """Writes `missing.safetensors` if there is a map."""
    if maps:
        tensors = {f"{name}.{field}": value for name, map in maps.items() for field, value in vars(map).items()}
        save_file(tensors, folder / MAPS_FILE)


def load_maps(folder: Path, names: list[str]) -> dict[str, TextMap]:
    """The maps of these parts. Raises [`HfGrError`] if the file is missing, damaged or lacks one."""
    if not names:
        return {}
    file = folder / MAPS_FILE
    try:
        tensors = load_file(file)
        return {
            name: TextMap(*(tensors[f"{name}.{field}"] for field in ("weights", "text_mean", "part_mean")))
            for name in names
        }
    except (FileNotFoundError, KeyError, SafetensorError) as error:
        raise HfGrError(
            f"{file} is missing or damaged ({' '.join(str(error).split())}), but {names} of new items are predicted "
            "with it; copy it from the folder of the item vectors, or write them again with `hf-gr embed`."
        ) from None


def _ridge(text: np.ndarray, part: np.ndarray, rows: np.ndarray) -> TextMap:
    blocks = [rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS)]
    text_mean = sum(unit_rows(text[block]).sum(0) for block in blocks) / len(rows)
    part_mean = sum(unit_rows(part[block]).sum(0) for block in blocks) / len(rows)
    scatter = np.zeros((text.shape[1], text.shape[1]))
    products = np.zeros((text.shape[1], part.shape[1]))
    for block in blocks:
        centered = unit_rows(text[block]) - text_mean
        scatter += centered.T @ centered
        products += centered.T @ (unit_rows(part[block]) - part_mean)
    # texts that are all alike say nothing: the map is then the mean alone
    ridge = RIDGE * np.trace(scatter) / len(scatter) or 1.0
    weights = np.linalg.solve(scatter + ridge * np.eye(len(scatter)), products)
    return TextMap(*(value.astype(np.float32) for value in (weights, text_mean, part_mean)))
