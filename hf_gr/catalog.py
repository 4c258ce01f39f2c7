"""The SID catalog: which item has which semantic ID. It travels inside the model repo."""

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

from .artifacts import read_json, write_json
from .dataset import check_items
from .errors import HfGrError
from .offline import local_folder
from .tables import matched, with_rows


CATALOG_FILES = ("catalog.json", "catalog.safetensors", "items.parquet")


@dataclass(frozen=True, eq=False)
class SidCatalog:
    """Semantic IDs of N items on L levels, in one view or in several: an item may have a SID by each of V codebooks.

    Attributes:
        codes: int32 [N, L]; `codes[i, l]` is the code of item i on level l, in the first view. Items may share a SID.
        codebook_sizes: Number of codes K_l of each level.
        items: Table of N rows with `item_id` and `title`, the rows of the dataset it was made from. Further columns
            are kept; boolean ones, such as `in_stock`, can filter requests.
        popularity: int64 [N], training events per item; orders the items that share a SID.
        live: bool [N]; removed items keep their row and SID, but are never an answer.
        code_vectors: float32 [K_l, d] for every level, of one view after the other (empty tuple if unknown), used to
            start the token rows; those of a digit level are drawn at random.
        collisions: How items on one SID were told apart: `"keep"` (not at all), `"greedy"`, `"sinkhorn"`, or
            `"digit"` (the last level only counts). Items that come later get their SIDs accordingly.
        more_codes: int32 [V - 1, N, L], the codes of the other views, on the same codebook sizes; `None`: one view.
    """

    codes: np.ndarray
    codebook_sizes: tuple[int, ...]
    items: pa.Table
    popularity: np.ndarray
    live: np.ndarray
    code_vectors: tuple[np.ndarray, ...] = field(default=())
    collisions: str = "keep"
    more_codes: np.ndarray | None = None

    @classmethod
    def from_codes(
        cls,
        codes: np.ndarray,
        items: pa.Table,
        codebook_sizes: Sequence[int],
        popularity: np.ndarray | None = None,
        code_vectors: Sequence[np.ndarray] = (),
        collisions: str = "keep",
    ) -> "SidCatalog":
        """Makes a catalog of live items, of codes [N, L] or, in several views, [V, N, L], and checks that the parts
        agree; raises [`HfGrError`] where they do not."""
        items = check_items(items, "catalog items")
        codes = np.ascontiguousarray(codes, dtype=np.int32)
        if codes.ndim == 3 and len(codes) and codes.shape[1:] == (items.num_rows, len(codebook_sizes)):
            views = [
                cls.from_codes(view, items, codebook_sizes, popularity, vectors, collisions)
                for view, vectors in zip(codes, _by_view(code_vectors, len(codes)), strict=True)
            ]
            vectors = tuple(one for view in views for one in view.code_vectors)
            return replace(views[0], code_vectors=vectors, more_codes=codes[1:] if len(codes) > 1 else None)
        if codes.ndim != 2 or codes.shape[0] != items.num_rows or codes.shape[1] != len(codebook_sizes):
            raise HfGrError(
                f"codes have shape {codes.shape}; {items.num_rows} items on {len(codebook_sizes)} levels are needed."
            )
        if (codes < 0).any() or (codes >= np.array(codebook_sizes)).any():
            row = int(np.flatnonzero((codes < 0) | (codes >= np.array(codebook_sizes)))[0] // codes.shape[1])
            sizes = list(codebook_sizes)
            raise HfGrError(f"item row {row} has SID {codes[row].tolist()}, outside the codebook sizes {sizes}.")
        if popularity is not None and len(popularity) != len(codes):
            raise HfGrError(f"popularity has {len(popularity)} entries, but there are {len(codes)} items.")
        if code_vectors and [len(vectors) for vectors in code_vectors] != list(codebook_sizes):
            found = [len(vectors) for vectors in code_vectors]
            raise HfGrError(f"there are {found} code vectors, but the codebook sizes are {list(codebook_sizes)}.")
        return cls(
            codes,
            tuple(int(size) for size in codebook_sizes),
            items,
            np.zeros(len(codes), np.int64) if popularity is None else popularity.astype(np.int64),
            np.ones(len(codes), bool),
            tuple(np.ascontiguousarray(v, dtype=np.float32) for v in code_vectors),
            collisions,
        )

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def views(self) -> np.ndarray:
        """The codes of all views, int32 [V, N, L]."""
        return self.codes[None] if self.more_codes is None else np.concatenate([self.codes[None], self.more_codes])

    def view(self, number: int) -> "SidCatalog":
        """The catalog of one view, the first being 0. Raises [`HfGrError`] if there are not so many."""
        codes = self.views
        if not 0 <= number < len(codes):
            raise HfGrError(f"there is no view {number}; the catalog has {len(codes)}, counted from 0.")
        vectors = tuple(_by_view(self.code_vectors, len(codes))[number])
        return replace(self, codes=codes[number], code_vectors=vectors, more_codes=None)

    @cached_property
    def item_ids(self) -> list[str]:
        return self.items["item_id"].to_pylist()

    @cached_property
    def titles(self) -> list[str]:
        return self.items["title"].to_pylist()

    @cached_property
    def categories(self) -> list[list[str]]:
        if "categories" not in self.items.column_names:
            return [[] for _ in range(len(self))]
        return [value or [] for value in self.items["categories"].to_pylist()]

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of every item id."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def rows_by_category(self) -> dict[str, np.ndarray]:
        """Rows of the items that carry each category, int64, ascending."""
        rows: dict[str, list[int]] = {}
        for row, names in enumerate(self.categories):
            for name in names:
                rows.setdefault(name, []).append(row)
        return {name: np.array(found) for name, found in rows.items()}

    @cached_property
    def first_categories(self) -> np.ndarray:
        """Number of every item's first category, int64 [N]; −1 where it has none."""
        named = np.array([bool(names) for names in self.categories], bool)
        first = np.array([names[0] if names else "" for names in self.categories], dtype=object)
        return np.where(named, np.unique(first.astype(str), return_inverse=True)[1], -1)

    @property
    def flags(self) -> list[str]:
        """Names of the boolean columns of `items`, such as `in_stock`."""
        return [field.name for field in self.items.schema if pa.types.is_boolean(field.type)]

    def matching(self, category: Collection[str] = (), where: Collection[str] = ()) -> np.ndarray:
        """Items that words pick out, bool [N].

        Args:
            category: Items that carry at least one of these; none given: all items.
            where: Of these, the items where all of these boolean columns are true (a null is not).

        Raises:
            HfGrError: On a word that [`check_words`] refuses.
        """
        self.check_words(category, where)
        found = np.full(len(self), not category)
        for name in category:
            found[self.rows_by_category[name]] = True
        for name in where:
            found &= pc.fill_null(self.items[name], False).to_numpy()
        return found

    def check_words(self, category: Collection[str], where: Collection[str]) -> None:
        """Raises [`HfGrError`] on a category that no item carries, and on what is no boolean column of `items`."""
        for name in category:
            if name not in self.rows_by_category:
                raise HfGrError(f"no item is of category {name!r}; categories are: {_some(self.rows_by_category)}.")
        for name in where:
            if name not in self.flags:
                kind = f"of type {self.items[name].type}" if name in self.items.column_names else "missing"
                raise HfGrError(
                    f"where names {name!r}, but that column of the items is {kind}; boolean ones are: "
                    f"{_some(self.flags)}."
                )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over ids and SIDs: what a vocabulary and the weights behind it were made for."""
        digest = hashlib.sha256("\0".join(self.item_ids).encode())
        digest.update(np.ascontiguousarray(self.codes, dtype="<i4").tobytes())
        digest.update(repr(self.codebook_sizes).encode())
        if self.more_codes is not None:
            digest.update(np.ascontiguousarray(self.more_codes, dtype="<i4").tobytes())
        return digest.hexdigest()[:16]

    def removed(self, item_ids: Sequence[str]) -> "SidCatalog":
        """The catalog with these items no longer an answer. Unknown ids raise [`HfGrError`]."""
        live = self.live.copy()
        live[[self._row(item_id) for item_id in item_ids]] = False
        return replace(self, live=live)

    def _row(self, item_id: str) -> int:
        if item_id not in self.row_of:
            raise HfGrError(f"item {item_id!r} is not in the catalog of {len(self)} items; nothing was changed.")
        return self.row_of[item_id]

    def extended(self, items: pa.Table, codes: np.ndarray) -> "SidCatalog":
        """The catalog with new items at its end: live, of popularity 0, with the columns that it has already.

        Args:
            items: Table of n items with `item_id`, `title`; columns the catalog has and they lack become null.
            codes: int [n, L], or [V, n, L] where the catalog has several views.

        Raises:
            HfGrError: On codes of another number of views or outside the codebooks, ids that are known, or columns of
                another type.
        """
        items = check_items(items, "new items")
        codes = codes[None] if codes.ndim == 2 else codes
        if len(codes) != len(self.views):
            raise HfGrError(f"the new items have {len(codes)} view(s) of codes, the catalog {len(self.views)}.")
        if known := [item_id for item_id in items["item_id"].to_pylist() if item_id in self.row_of]:
            raise HfGrError(f"{_some(known)} are in the catalog already; leave them out of the new items.")
        both = pa.concat_tables([self.items, matched(items, self.items.schema)])
        extended = SidCatalog.from_codes(
            np.concatenate([self.views, codes], axis=1),
            both,
            self.codebook_sizes,
            np.concatenate([self.popularity, np.zeros(len(items), np.int64)]),
            self.code_vectors,
            self.collisions,
        )
        return replace(extended, live=np.concatenate([self.live, np.ones(len(items), bool)]))

    def updated(self, items: pa.Table) -> "SidCatalog":
        """The catalog with known items live (again) and their columns as given; SIDs stay.

        Args:
            items: Table of known items with `item_id` and any columns; those that the catalog lacks are ignored.

        Raises:
            HfGrError: On unknown ids, or columns of another type.
        """
        rows = np.array([self._row(item_id) for item_id in items["item_id"].to_pylist()], np.int64)
        live = self.live.copy()
        live[rows] = True
        return replace(self, items=with_rows(self.items, rows, items), live=live)

    def features(self, buckets: int | None = None) -> pa.Table:
        """SIDs as categorical features of a ranking model: the number of every prefix of an item's SID.

        Items that share a prefix share its number, so what a ranker learns of popular items holds for new and rare
        ones near them. Numbers depend on an item's own codes alone: they stay when items come and go. SIDs as hashed
        features of a ranker: Singh et al. 2024; prefixes: Zheng et al. 2025 [known]; mixed radix and hash are ours.

        Example: with codebooks of 4, 4 and 8 codes, SID (2, 1, 5) has the prefixes (2), (2, 1) and (2, 1, 5) of
        numbers 2, 2·4 + 1 = 9 and 9·8 + 5 = 77.

        Args:
            buckets: Rows of the embedding table of each column. Left out, numbers are below K₁, K₁·K₂, …

        Returns:
            Table of N rows, removed items included: `item_id`, and int64 `prefix_1` to `prefix_L`, hashed to
            `0 … buckets - 1`, each column by a hash of its own, if `buckets` are given.

        Raises:
            HfGrError: If there are less than 1 buckets, or numbers beyond int64 without buckets.
        """
        if buckets is not None and buckets < 1:
            raise HfGrError(f"buckets is {buckets}; use the number of rows of an embedding table.")
        if buckets is None and math.prod(self.codebook_sizes) > np.iinfo(np.int64).max:
            raise HfGrError(f"prefixes of codebooks {list(self.codebook_sizes)} outnumber int64; give buckets.")
        columns: dict[str, pa.Array | pa.ChunkedArray] = {"item_id": self.items["item_id"]}
        number = np.zeros(len(self), np.int64 if buckets is None else np.uint64)
        for level, size in enumerate(self.codebook_sizes):
            code = self.codes[:, level].astype(number.dtype)
            number = number * size + code if buckets is None else _mixed(number + code)
            columns[f"prefix_{level + 1}"] = pa.array(
                number if buckets is None else (number % np.uint64(buckets)).astype(np.int64)
            )
        return pa.table(columns)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        codes = self.codes if self.more_codes is None else self.views
        tensors = {"codes": codes, "popularity": self.popularity, "live": self.live.astype(np.uint8)}
        tensors |= {f"code_vectors.{level}": vectors for level, vectors in enumerate(self.code_vectors)}
        save_file(tensors, folder / "catalog.safetensors")
        pq.write_table(self.items, folder / "items.parquet")
        description = {
            "codebook_sizes": list(self.codebook_sizes),
            "items": len(self),
            "live_items": int(self.live.sum()),
            "collisions": self.collisions,
            "fingerprint": self.fingerprint,
        }
        if self.more_codes is not None:
            description["views"] = len(self.views)
        write_json(folder / "catalog.json", description)

    @classmethod
    def load(cls, path: str | Path, revision: str | None = None, *, several_views: bool = False) -> "SidCatalog":
        """Reads a catalog from a folder or from a Hub repo, and checks its fingerprint.

        A reader that knows one view is not given several: they are refused unless it says `several_views`.
        """
        folder = local_folder(path, revision=revision, files=CATALOG_FILES)
        description = read_json(folder / "catalog.json")
        if description.get("views", 1) > 1 and not several_views:
            raise HfGrError(
                f"{folder} holds {description['views']} views of codes, of which one is read here; save one of them: "
                "SidCatalog.load(FOLDER, several_views=True).view(0).save(OTHER)."
            )
        for name in CATALOG_FILES[1:]:
            if not (folder / name).is_file():
                raise HfGrError(f"{folder / name} is missing; write the catalog again with `hf-gr quantize`.")
        with safe_open(folder / "catalog.safetensors", framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_sizes(folder, description, shapes)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        vectors = sum(name.startswith("code_vectors.") for name in tensors)
        catalog = cls(
            tensors["codes"] if tensors["codes"].ndim == 2 else tensors["codes"][0],
            tuple(description["codebook_sizes"]),
            check_items(pq.read_table(folder / "items.parquet"), folder / "items.parquet"),
            tensors["popularity"],
            tensors["live"].astype(bool),
            tuple(tensors[f"code_vectors.{level}"] for level in range(vectors)),
            description.get("collisions", "keep"),  # catalogs of the first version do not say
            None if tensors["codes"].ndim == 2 else tensors["codes"][1:],
        )
        if catalog.fingerprint != description["fingerprint"]:
            raise HfGrError(
                f"{folder}: items.parquet and catalog.safetensors do not belong together (fingerprint "
                f"{catalog.fingerprint}, expected {description['fingerprint']}); write the catalog again."
            )
        return catalog


def _check_sizes(folder: Path, description: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises [`HfGrError`] unless the tables are of the sizes that `catalog.json` tells, before any of them is read: a
    few bytes of Parquet may say millions of rows."""
    items, sizes = description["items"], description["codebook_sizes"]
    rows = pq.read_metadata(folder / "items.parquet").num_rows
    views = description.get("views", 1)
    codes = (items, len(sizes)) if views == 1 else (views, items, len(sizes))
    expected = {"codes": codes, "popularity": (items,), "live": (items,)}
    found = {name: shapes.get(name) for name in expected} | {"items.parquet": (rows,)}
    expected["items.parquet"] = (items,)
    vectors = [name for name in shapes if name.startswith("code_vectors.")]
    for level, size in enumerate((sizes * views)[: len(vectors)]):
        name = f"code_vectors.{level}"
        expected[name], found[name] = (size,), (shapes.get(name) or (None,))[:1]
    for name, shape in expected.items():
        if found[name] != shape:
            raise HfGrError(
                f"{folder}: {name} is of size {found[name]}, but catalog.json tells {shape}; write the catalog again."
            )


def _by_view(code_vectors: Sequence[np.ndarray], views: int) -> list[Sequence[np.ndarray]]:
    """The code vectors of every view."""
    levels, rest = divmod(len(code_vectors), views)
    if rest:
        raise HfGrError(f"there are {len(code_vectors)} tables of code vectors for {views} views; give each as many.")
    return [code_vectors[view * levels : (view + 1) * levels] for view in range(views)]


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads neighbours: the step of SplitMix64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _some(names: Collection[str]) -> str:
    return ", ".join(map(repr, list(names)[:5])) + (", …" if len(names) > 5 else "") if names else "none"
