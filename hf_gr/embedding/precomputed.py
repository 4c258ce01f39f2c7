"""Item vectors that were made elsewhere: a Parquet or safetensors file with ids."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from ..errors import HfGrError, first_line
from .store import check_finite


_BLOCK_ROWS = 65_536  # rows read at a time, so that a large file is never whole in memory beside the result

_Block = tuple[list[str], np.ndarray]  # ids and their vectors, float [rows, d]


def read_vectors(file: str | Path, item_ids: Sequence[str]) -> np.ndarray:
    """Vectors of these items, in their order.

    Args:
        file: Either Parquet with columns `item_id` and `vector` (lists of d numbers), or safetensors with one 2-D
            tensor [n, d] of floats and the n ids: an integer tensor `item_id`, or a JSON list `item_id` in the
            metadata. Ids that are not among the items are passed over.
        item_ids: N ids.

    Returns:
        float32 [N, d]; zeros for items that the file lacks, whose number is printed.

    Raises:
        HfGrError: If the file has another form, names an item twice, holds NaN or infinity, or none of the items.
    """
    file = Path(file)
    if not file.is_file():
        raise HfGrError(f"the vectors file {file} does not exist; give --vectors_file a Parquet or safetensors file.")
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    found = np.zeros(len(item_ids), bool)
    result = np.zeros((len(item_ids), 0), np.float32)
    for ids, vectors in _safetensors_blocks(file) if file.suffix == ".safetensors" else _parquet_blocks(file):
        if result.shape[1] == 0:
            result = np.zeros((len(item_ids), vectors.shape[1]), np.float32)
        if vectors.shape[1] != result.shape[1]:
            raise HfGrError(
                f"{file}: the vector of {ids[0]!r} has {vectors.shape[1]} numbers, those before {result.shape[1]}; "
                "write vectors of one width."
            )
        known = [place for place, item_id in enumerate(ids) if item_id in row_of]
        rows = np.array([row_of[ids[place]] for place in known], np.int64)
        if found[rows].any() or len(np.unique(rows)) < len(rows):
            raise HfGrError(f"{file} gives an item two vectors ({_first_twice(rows, found, item_ids)!r}); leave one.")
        result[rows] = vectors[known]
        found[rows] = True
    if not found.any():
        raise HfGrError(
            f"{file} has a vector of none of the {len(item_ids)} items (such as {item_ids[0]!r}); write it with the "
            "ids of items.parquet."
        )
    check_finite(result, file)
    if not found.all():
        print(f"[embed] {file} lacks {np.count_nonzero(~found):,} of {len(found):,} items", flush=True)
    return result


def _first_twice(rows: np.ndarray, found: np.ndarray, item_ids: Sequence[str]) -> str:
    seen = set(np.flatnonzero(found).tolist())
    for row in rows.tolist():
        if row in seen:
            break
        seen.add(row)
    return item_ids[row]


def _parquet_blocks(file: Path) -> Iterator[_Block]:
    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        reason = first_line(error)
        raise HfGrError(
            f"{file} is not a Parquet file ({reason}); write columns item_id and vector, or name a .safetensors file."
        ) from None
    if missing := {"item_id", "vector"} - set(table.schema_arrow.names):
        raise HfGrError(f"{file} has no column {min(missing)!r}; write the columns item_id and vector.")
    for batch in table.iter_batches(_BLOCK_ROWS, columns=["item_id", "vector"]):
        ids, column = batch["item_id"].cast(pa.string()).to_pylist(), batch["vector"]
        try:
            lists = column.cast(pa.list_(pa.float32()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise HfGrError(f"{file}: vector is {column.type}; write lists of floats.") from None
        widths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        bad = (widths == 0) | (widths != widths.max(initial=0))
        if bad.any() or lists.flatten().null_count:
            raise HfGrError(
                f"{file}: the vector of {ids[int(bad.argmax())]!r} is empty or of another width than its neighbours', "
                "or holds an empty place; write d numbers each."
            )
        if ids:
            yield ids, lists.flatten().to_numpy().reshape(len(ids), -1)


def _safetensors_blocks(file: Path) -> Iterator[_Block]:
    try:
        with safe_open(file, framework="pt") as handle:  # NumPy has no bfloat16
            shapes = {name: handle.get_slice(name).get_shape() for name in handle.keys()}  # noqa: SIM118 (not a dict)
            matrices = [name for name, shape in shapes.items() if len(shape) == 2]
            if len(matrices) != 1:
                raise HfGrError(f"{file} holds {len(matrices)} tensors [n, d] ({sorted(shapes)}); leave exactly one.")
            rows = shapes[matrices[0]][0]
            named = handle.get_tensor("item_id").tolist() if "item_id" in shapes else _listed(handle.metadata())
            ids = [str(item_id) for item_id in named]
            if len(ids) != rows:
                raise HfGrError(
                    f"{file}: {len(ids)} ids for {rows} vectors; write an integer tensor item_id [{rows}], or a JSON "
                    "list item_id in the metadata."
                )
            vectors = handle.get_slice(matrices[0])
            for start in range(0, rows, _BLOCK_ROWS):
                end = min(start + _BLOCK_ROWS, rows)
                yield ids[start:end], vectors[start:end].float().numpy()
    except SafetensorError as error:
        reason = first_line(error)
        raise HfGrError(f"{file} is not a safetensors file ({reason}); write it again, or as Parquet.") from None


def _listed(metadata: dict[str, str] | None) -> list[str]:
    """The ids in a file's metadata; none where there is no JSON list of them."""
    try:
        ids = json.loads((metadata or {}).get("item_id", ""))
    except json.JSONDecodeError:
        return []
    return ids if isinstance(ids, list) else []
