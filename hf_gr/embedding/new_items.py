"""Vectors of items that came after the artifact was made, in the very way its own were made."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..artifacts import fingerprint, read_json
from ..errors import HfGrError
from .fusion import fuse
from .image import VisionEncoder, encode_images, item_images
from .missing import MAPS_FILE, fill_missing, load_maps
from .precomputed import read_vectors
from .store import INFO_FILE
from .text import SentenceEncoder, encode_text, item_texts


# What must travel with a catalog so that items can be added to it; the second is there only if parts are predicted.
RECIPE_FILES = (INFO_FILE, MAPS_FILE)


def embed_new_items(
    recipe: str | Path,
    items: pa.Table,
    images_root: str | Path | None = None,
    vectors_file: str | Path | None = None,
    device: str | None = None,
) -> np.ndarray:
    """Makes vectors with the encoders, fields, template and weights of an artifact.

    Nobody has used a new item, so its behavior is predicted from its text, or zeros, as for items of the artifact
    without a co-occurrence; likewise images and precomputed vectors that it lacks. It has no neighbours, so
    propagation leaves it as it is.

    Args:
        recipe: Folder of item vectors, or any folder with their `RECIPE_FILES`.
        items: n new items, with the columns that the artifact's text and image parts were made of.
        images_root: Folder that relative paths of the column `image` start from; the working folder if left out.
        vectors_file: Precomputed vectors of new items, when the artifact was made of such (see [`read_vectors`]).
        device: Device of the encoders; chosen if left out.

    Returns:
        float32 [n, d], d the width of the artifact's vectors.

    Raises:
        HfGrError: If the recipe is incomplete, an encoder cannot be had or has changed, or vectors have another width.
    """
    recipe = Path(recipe)
    info = _read_recipe(recipe)
    parts: dict[str, np.ndarray] = {}
    for source, dim in info["dims"].items():
        if source == "text":
            part = _text(recipe, info, items, device)
        elif source == "image" and "image" in items.column_names and any(items["image"].to_pylist()):
            part = _image(recipe, info, items, images_root or ".", device)
        elif source == "file" and vectors_file is not None:
            part = read_vectors(vectors_file, items["item_id"].to_pylist())
        else:
            part = np.zeros((items.num_rows, dim), np.float32)
        if part.shape[1] != dim:
            raise HfGrError(
                f"{recipe}: the part {source!r} of the item vectors is {dim} wide, but that of the new items "
                f"{part.shape[1]}; make it in the way the old one was made."
            )
        parts[source] = part
    maps = load_maps(recipe, info["predicted"])
    return fuse(fill_missing(parts, maps), dict(zip(info["sources"], info["weights"], strict=True)))


def _read_recipe(recipe: Path) -> dict[str, Any]:
    info = read_json(recipe / INFO_FILE)
    needed = {"sources", "weights", "dims", "predicted"}
    if "text" in info.get("sources", []):
        needed |= {"encoder", "encoder_fingerprint", "fields", "template"}
    if "image" in info.get("sources", []):
        needed |= {"image_encoder", "image_encoder_fingerprint"}
    if lacking := sorted(needed - set(info)):
        raise HfGrError(
            f"{recipe / INFO_FILE} does not say {', '.join(lacking)}, which new items need; write the item vectors "
            "again with `hf-gr embed`."
        )
    return {**info, "dims": {source: info["dims"][source] for source in info["sources"]}}  # JSON sorts its keys


def _text(recipe: Path, info: dict[str, Any], items: pa.Table, device: str | None) -> np.ndarray:
    texts = item_texts(items, info["fields"], info["template"])
    _check_texts(texts, items, info)
    _check_encoder(recipe, info["encoder"], info["encoder_fingerprint"])
    try:
        encoder = SentenceEncoder(info["encoder"], device=device)
    except HfGrError as error:
        raise HfGrError(f"{recipe}: new items need the text encoder of the item vectors, but {error}") from error
    return encode_text(texts, encoder, progress=False)


def _check_texts(texts: list[str], items: pa.Table, info: dict[str, Any]) -> None:
    """An item without a word has the vector of an empty text, near to nothing that it is like."""
    other = {"image", "file"} & set(info["sources"])
    silent = [item_id for item_id, text in zip(items["item_id"].to_pylist(), texts, strict=True) if not text]
    if silent and not other:
        raise HfGrError(
            f"{len(silent)} of the new items have no text (first: {silent[0]!r}), of which vectors are made; fill in "
            f"one of {', '.join(info['fields'])}."
        )


def _image(recipe: Path, info: dict[str, Any], items: pa.Table, root: str | Path, device: str | None) -> np.ndarray:
    _check_encoder(recipe, info["image_encoder"], info["image_encoder_fingerprint"])
    return encode_images(item_images(items, root), VisionEncoder(info["image_encoder"], device=device), progress=False)


def _check_encoder(recipe: Path, name: str, made_with: str | None) -> None:
    """That an encoder which was a folder still is that folder with that content."""
    if made_with is not None and (not Path(name).is_dir() or fingerprint(name) != made_with):
        raise HfGrError(
            f"{recipe}: new items need the encoder folder {name} as it was when the item vectors were made "
            f"({made_with}), but it is missing or has changed; bring it back, or embed all items again."
        )
