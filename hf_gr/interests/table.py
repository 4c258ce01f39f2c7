"""The interests of items and users on disk, `interests.parquet`, and what of them counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp

from ..errors import HfGrError, first_line
from ..offline import local_folder


INTERESTS_FILE = "interests.parquet"
SCHEMA = pa.schema(
    {
        "item_id": pa.string(),
        "user_id": pa.string(),
        "interest": pa.string(),
        "evidence": pa.string(),
        "confidence": pa.float32(),
        "models": pa.list_(pa.string()),
        "label": pa.bool_(),
        "probability": pa.float32(),
    }
)


@dataclass(frozen=True, eq=False)
class Interests:
    """Interests of items and of users' training histories, one a row.

    Attributes:
        table: Columns of `SCHEMA`. Of `item_id` and `user_id` exactly one is set in each row. `interest` is a name
            that others share, `evidence` the words of the item or history it was read from, `confidence` lies between
            0 and 1, `models` are the miners that found it. `label` (whether it helps to tell what users take next) and
            its `probability` are null until `hf-gr label` has run.
    """

    table: pa.Table

    @classmethod
    def load(cls, path: str | Path) -> "Interests":
        """Reads `interests.parquet`, given itself or by its folder.

        Raises:
            HfGrError: If it is missing, is no such file, or breaks the rules of the columns.
        """
        file = Path(path) / INTERESTS_FILE if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise HfGrError(f"{file} is missing; write it with `hf-gr mine`.")
        try:
            table = pq.read_table(file)
        except pa.ArrowInvalid as error:
            reason = first_line(error)
            raise HfGrError(f"{file} is not a Parquet file ({reason}); mine the interests again.") from None
        missing = [name for name in SCHEMA.names if name not in table.column_names]
        if missing:
            raise HfGrError(f"{file} has no column {missing[0]!r}; it needs {', '.join(SCHEMA.names)}.")
        return cls(_checked(table.select(SCHEMA.names), file))

    @classmethod
    def of_model(cls, path: str | Path, revision: str | None = None) -> "Interests | None":
        """Those that a model folder or Hub repo carries; `None` where it has none."""
        folder = local_folder(path, revision=revision, files=["config.json", INTERESTS_FILE])
        return cls.load(folder) if (folder / INTERESTS_FILE).is_file() else None

    def save(self, folder: str | Path) -> Path:
        """Writes `interests.parquet` into a folder that exists."""
        file = Path(folder) / INTERESTS_FILE
        pq.write_table(self.table.select(SCHEMA.names).cast(SCHEMA), file)
        return file

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def items(self) -> "Interests":
        """Those of items."""
        return Interests(self.table.filter(pc.is_valid(self.table["item_id"])))

    @property
    def users(self) -> "Interests":
        """Those of users."""
        return Interests(self.table.filter(pc.is_valid(self.table["user_id"])))

    @property
    def accepted(self) -> "Interests":
        """Those that labelling did not turn down; before labelling, all of them."""
        return Interests(self.table.filter(pc.fill_null(self.table["label"], True)))

    def of_items(self, item_ids: Sequence[str]) -> list[list[str]]:
        """Names of each item's interests, the most confident first; an empty list where there are none."""
        return self._named("item_id", item_ids)

    def of_users(self, user_ids: Sequence[str]) -> list[list[str]]:
        """Names of each user's interests, the most confident first; an empty list where there are none."""
        return self._named("user_id", user_ids)

    @cached_property
    def names(self) -> list[str]:
        """All interests, sorted; their places are the columns of [`matrix`]."""
        return sorted(set(self.table["interest"].to_pylist()))

    def matrix(self, item_ids: Sequence[str]) -> sp.csr_array:
        """Which item has which interest, 0/1 float64 [items, len(names)]."""
        column = {name: place for place, name in enumerate(self.names)}
        pairs = [(row, column[name]) for row, names in enumerate(self.of_items(item_ids)) for name in set(names)]
        rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
        return sp.coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(item_ids), len(column))).tocsr()

    def quality(self, item_ids: Sequence[str]) -> np.ndarray:
        """q(item) = Σ confidence·label / Σ confidence over its interests, float64 [items] (DeepInterestGR) [known].

        0 for items without interests; interests that are not labelled count as accepted [ours].
        """
        place = {item_id: row for row, item_id in enumerate(item_ids)}
        rows = np.array([place.get(item_id, -1) for item_id in self.table["item_id"].to_pylist()], np.int64)
        known = rows >= 0
        confidence = self.table["confidence"].to_numpy()[known].astype(np.float64)
        label = pc.fill_null(self.table["label"], True).to_numpy()[known].astype(np.float64)
        total = np.bincount(rows[known], confidence, len(item_ids))
        good = np.bincount(rows[known], confidence * label, len(item_ids))
        return np.divide(good, total, out=np.zeros(len(item_ids)), where=total > 0)

    def _named(self, column: str, ids: Sequence[str]) -> list[list[str]]:
        found: dict[str, list[tuple[float, str]]] = {}
        columns = (self.table[name].to_pylist() for name in (column, "confidence", "interest"))
        for owner, confidence, interest in zip(*columns, strict=True):
            if owner is not None:
                found.setdefault(owner, []).append((-confidence, interest))
        return [[interest for _, interest in sorted(found.get(owner, []))] for owner in ids]


def _checked(table: pa.Table, file: Path) -> pa.Table:
    try:
        table = table.cast(SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = first_line(error)
        raise HfGrError(f"{file}: a column has another type ({reason}); mine the interests again.") from None
    both = pc.equal(pc.is_valid(table["item_id"]), pc.is_valid(table["user_id"]))
    if pc.any(both).as_py():
        row = pc.index(both, True).as_py()
        raise HfGrError(f"{file}: row {row} must name either an item or a user; set one of item_id and user_id.")
    outside = pc.fill_null(pc.or_(pc.less(table["confidence"], 0), pc.greater(table["confidence"], 1)), True)
    if pc.any(outside).as_py():
        row = pc.index(outside, True).as_py()
        raise HfGrError(f"{file}: the confidence in row {row} is {table['confidence'][row]}; it lies in [0, 1].")
    return table
