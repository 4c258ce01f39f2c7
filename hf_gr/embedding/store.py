"""The item vectors on disk: `embeddings.safetensors` and `embeddings.json`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..artifacts import read_json, write_json
from ..errors import HfGrError, first_line


VECTORS_FILE = "embeddings.safetensors"
INFO_FILE = "embeddings.json"
_KEY = "vectors"
_CHECK_ROWS = 65_536  # rows looked at at a time, so that a memory-mapped file is never whole in memory


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """One vector per item of a dataset's `items.parquet`, in the same order.

    Attributes:
        vectors: float32 [N, d], finite. After [`load`] it is a read-only view of the file.
        info: How the vectors were made (sources, encoder, fields, pooling, …), JSON-serialisable.
    """

    vectors: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise HfGrError(
                f"item vectors must be float32 [items, dim], not {self.vectors.dtype} {list(self.vectors.shape)}; "
                "convert them with .astype('float32')."
            )

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def parts(self, where: str | Path) -> dict[str, int]:
        """Names of the sources that a vector is the concatenation of, in their order, and their widths.

        Raises:
            HfGrError: If `info`, read from `where`, does not tell them, or tells of another width.
        """
        sources, dims = self.info.get("sources", []), self.info.get("dims", {})
        parts = {source: dims[source] for source in sources if source in dims}
        if not sources or len(parts) < len(sources) or sum(parts.values()) != self.dim:
            raise HfGrError(
                f"{Path(where) / INFO_FILE} does not say which parts of what width the vectors of width {self.dim} "
                "are made of (sources and dims); write them again with `hf-gr embed`."
            )
        return parts

    def save(self, folder: str | Path) -> None:
        """Writes both files into an existing or new folder. Raises [`HfGrError`] on NaN or infinite values.

        `embeddings.json` is `info` with `num_items`, `dim` and `fingerprint` (SHA-256 of the values, 16 digits) added.
        """
        folder = Path(folder)
        check_finite(self.vectors, "item vectors")
        folder.mkdir(parents=True, exist_ok=True)
        values = np.ascontiguousarray(self.vectors)
        save_file({_KEY: values}, folder / VECTORS_FILE)
        facts = {
            "num_items": len(self),
            "dim": self.dim,
            "fingerprint": hashlib.sha256(values.data).hexdigest()[:16],
        }
        write_json(folder / INFO_FILE, self.info | facts)

    @classmethod
    def load(cls, folder: str | Path) -> "ItemVectors":
        """Opens the artifact; the vectors are memory-mapped, checked once for NaN and infinite values.

        Raises:
            HfGrError: If a file is missing, damaged, or holds vectors that are not finite.
        """
        folder = Path(folder)
        info = read_json(folder / INFO_FILE)
        vectors = _memory_map(folder / VECTORS_FILE)
        check_finite(vectors, folder / VECTORS_FILE)
        return cls(vectors, info)


def check_finite(vectors: np.ndarray, where: str | Path) -> None:
    """Raises [`HfGrError`] that names the first item row whose vector [N, d] holds NaN or infinity."""
    for start in range(0, len(vectors), _CHECK_ROWS):
        bad = ~np.isfinite(vectors[start : start + _CHECK_ROWS]).all(axis=1)
        if bad.any():
            row = start + int(np.flatnonzero(bad)[0])
            raise HfGrError(
                f"{where}: the vector of item row {row} holds NaN or infinity; look at that row of items.parquet and "
                "embed again (in float32), or replace its vector by zeros."
            )


def items_fingerprint(item_ids: Sequence[str]) -> str:
    """16 digits that name a list of item ids in its order: ties vectors to the items they were made for."""
    digest = hashlib.sha256()
    for item_id in item_ids:
        digest.update(item_id.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _memory_map(file: Path) -> np.ndarray:
    if not file.is_file():
        raise HfGrError(f"{file} is missing; write it with `hf-gr embed`.")
    try:
        with safe_open(file, framework="np") as handle:
            if _KEY not in handle.keys():  # noqa: SIM118 (not a dict)
                raise HfGrError(f"{file} has no tensor {_KEY!r}; write it with `hf-gr embed`.")
            where = handle.get_slice(_KEY)
            shape, dtype = where.get_shape(), where.get_dtype()
    except SafetensorError as error:
        reason = first_line(error)
        raise HfGrError(f"{file} is not a safetensors file ({reason}); write it with `hf-gr embed`.") from None
    if dtype != "F32" or len(shape) != 2:
        raise HfGrError(f"{file}: {_KEY!r} is {dtype} {shape}, not float32 [items, dim]; write it with `hf-gr embed`.")
    # safetensors: 8 bytes header length, the header, then the data; this file holds one tensor.
    with file.open("rb") as handle:
        header = int.from_bytes(handle.read(8), "little")
    return np.memmap(file, np.float32, "r", offset=8 + header, shape=tuple(shape))
