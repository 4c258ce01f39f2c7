"""What an item tower reads of items, and how the same is made of items that come later.

Three kinds of features: the item's own id, tags (category, brand, codes of a semantic ID: none, one or several of a
vocabulary), and vectors (parts of item vectors, such as text, image and behavior).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..artifacts import read_json, write_json
from ..embedding.fusion import unit_rows
from ..embedding.new_items import embed_new_items
from ..errors import HfGrError
from ..quantizers.loading import load_quantizer


RECIPE_FILE = "features.json"
ID, SID = "id", "sid"
TAG_COLUMNS = {"category": "categories", "brand": "brand"}  # of the items' table
RECIPE_PATTERNS = (RECIPE_FILE, *(f"{folder}/*.{kind}" for folder in ("embedder", "quantizer") for kind in
                                  ("json", "safetensors")))  # fmt: skip
_SHARED = 2  # items that a tag needs: one that a single item has is a second id


@dataclass(frozen=True)
class Sources:
    """Where features of new items come from, as `hf-gr add-items` is told.

    Attributes:
        images_root: Folder that paths of images start from.
        vectors_file: Vectors of new items, where those of the old ones came from a file.
        device: Of the encoders; chosen if left out.
    """

    images_root: str | Path | None = None
    vectors_file: str | Path | None = None
    device: str | None = None


NOWHERE = Sources()


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """Features of n items, but for their ids.

    Attributes:
        tags: Name → int64 [n, w], numbers of tags from 1 on, 0 where there are fewer than w.
        vectors: Name → float32 [n, d], rows of length 1, or of zeros where nothing is known.
    """

    tags: Mapping[str, torch.Tensor]
    vectors: Mapping[str, torch.Tensor]

    def take(self, rows: torch.Tensor | slice) -> "ItemFeatures":
        """Features of some items, on the device of their rows; int64 [m]."""
        return ItemFeatures(
            {name: tags[rows] for name, tags in self.tags.items()}, {name: v[rows] for name, v in self.vectors.items()}
        )

    def to(self, device: torch.device) -> "ItemFeatures":
        return ItemFeatures(
            {name: tags.to(device) for name, tags in self.tags.items()},
            {name: vectors.to(device) for name, vectors in self.vectors.items()},
        )


@dataclass(frozen=True)
class FeatureRecipe:
    """How features are made of items; travels with the model as `features.json`.

    Attributes:
        names: Features in the order of `item_features`.
        dims: Width of every vector feature.
        codebook_sizes: Of the levels of the semantic ID that are read; none without the feature `sid`.
        vocabularies: Tag feature → the tags that are known, those of at least two items.
    """

    names: tuple[str, ...]
    dims: dict[str, int] = field(default_factory=dict)
    codebook_sizes: tuple[int, ...] = ()
    vocabularies: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, names: Sequence[str], items: pa.Table, dims: Mapping[str, int], codebook_sizes: Sequence[int] = ()
    ) -> "FeatureRecipe":
        """The recipe of a training's items.

        Args:
            names: `item_features`.
            items: Table of the items.
            dims: Widths of the parts of the item vectors there are.
            codebook_sizes: Of the catalog, if `sid` is among the names.

        Raises:
            HfGrError: On a feature that there is nothing of.
        """
        vocabularies = {name: _shared_tags(name, items) for name in names if name in TAG_COLUMNS}
        widths = {}
        for name in names:
            if name in (ID, SID, *TAG_COLUMNS):
                continue
            if name not in dims:
                told = f"these hold {', '.join(dims)}" if dims else "vectors is not set"
                raise HfGrError(
                    f"item_features names {name!r}, a part of item vectors, but {told}; set vectors to a folder of "
                    "`hf-gr embed` with that source, or leave the feature out."
                )
            widths[name] = int(dims[name])
        return cls(tuple(names), widths, tuple(codebook_sizes) if SID in names else (), vocabularies)

    @property
    def tag_sizes(self) -> dict[str, int]:
        """Rows of the table of every tag feature: its tags, and none."""
        sizes = {name: len(tags) + 1 for name, tags in self.vocabularies.items()}
        return sizes | ({SID: sum(self.codebook_sizes) + 1} if SID in self.names else {})

    def features(
        self, items: pa.Table, parts: Mapping[str, np.ndarray], codes: np.ndarray | None = None
    ) -> ItemFeatures:
        """Features of n items.

        Args:
            items: Their table; a column that it lacks counts as nothing known.
            parts: Parts of their vectors, float [n, d] each.
            codes: int [n, L], their semantic IDs; further levels are left out.
        """
        tags = {name: _numbers(_values(name, items), known) for name, known in self.vocabularies.items()}
        if SID in self.names:
            if codes is None:
                raise HfGrError("the item tower reads semantic IDs, but there are none of these items.")
            levels = len(self.codebook_sizes)
            offsets = 1 + np.concatenate([[0], np.cumsum(self.codebook_sizes[:-1])]).astype(np.int64)
            tags[SID] = torch.from_numpy(codes[:, :levels].astype(np.int64) + offsets)
        vectors = {name: torch.from_numpy(unit_rows(parts[name]).astype(np.float32)) for name in self.dims}
        return ItemFeatures(tags, vectors)

    def save(self, folder: Path) -> None:
        write_json(folder / RECIPE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "FeatureRecipe":
        """Raises [`HfGrError`] where the file is missing or is not what [`save`] writes."""
        file = folder / RECIPE_FILE
        if not file.is_file():
            raise HfGrError(f"{file} is missing, which new items need; it travels with the model: copy the folder.")
        content = read_json(file)
        if not isinstance(content, dict) or content.keys() != set(cls.__dataclass_fields__):
            raise HfGrError(f"{file} is not what this release reads; bring the model's own file back.")
        tags = {name: tuple(known) for name, known in content["vocabularies"].items()}
        return cls(tuple(content["names"]), content["dims"], tuple(content["codebook_sizes"]), tags)


def split_parts(vectors: np.ndarray, info: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parts of item vectors [N, d] by their names, views of them; `info` is what `embeddings.json` says."""
    dims = {source: int(info["dims"][source]) for source in info["sources"]}
    ends = np.cumsum(list(dims.values()))
    return {name: vectors[:, end - dim : end] for (name, dim), end in zip(dims.items(), ends, strict=True)}


def new_features(folder: Path, items: pa.Table, sources: Sources, codes: np.ndarray | None = None) -> ItemFeatures:
    """Features of items that came after the training, in the way those of the old ones were made.

    Args:
        folder: Of the model, with `features.json` and, where vectors or codes are read, `embedder/` and `quantizer/`.
        items: Table of n new items.
        sources: Where what their vectors are made of lies.
        codes: int [n, L], their semantic IDs, where a catalog has given them; else the quantizer gives the codes
            nearest to their vectors.

    Raises:
        HfGrError: If something is missing for it.
    """
    recipe = FeatureRecipe.load(folder)
    encodes = SID in recipe.names and codes is None
    parts: dict[str, np.ndarray] = {}
    if recipe.dims or encodes:
        _check_there(folder / "embedder", "vectors")
        fused = embed_new_items(folder / "embedder", items, sources.images_root, sources.vectors_file, sources.device)
        parts = split_parts(fused, read_json(folder / "embedder" / "embeddings.json"))
        if encodes:
            _check_there(folder / "quantizer", "catalog")
            codes = load_quantizer(folder / "quantizer").encode(fused)
    return recipe.features(items, parts, codes)


def _check_there(folder: Path, option: str) -> None:
    if not folder.is_dir():
        raise HfGrError(
            f"{folder} is missing, which new items need; copy it from the folder that was the option {option} of "
            "`hf-gr retrieve`."
        )


def _shared_tags(name: str, items: pa.Table) -> tuple[str, ...]:
    """Tags that at least two items have, in order. Raises [`HfGrError`] where there is none."""
    counts: dict[str, int] = {}
    for values in _values(name, items):
        for value in set(values):
            counts[value] = counts.get(value, 0) + 1
    shared = tuple(sorted(value for value, count in counts.items() if count >= _SHARED))
    if not shared:
        raise HfGrError(
            f"item_features names {name!r}, but no two items share a value of the column {TAG_COLUMNS[name]!r}; leave "
            "the feature out."
        )
    return shared


def _values(name: str, items: pa.Table) -> list[list[str]]:
    column = TAG_COLUMNS[name]
    if column not in items.column_names:
        return [[] for _ in range(items.num_rows)]
    values = items[column].to_pylist()
    return [value if isinstance(value, list) else [value] if value else [] for value in values]


def _numbers(values: list[list[str]], known: Sequence[str]) -> torch.Tensor:
    """Numbers of tags from 1 on, int64 [n, w], 0 behind the last; unknown ones are left out."""
    number = {tag: place for place, tag in enumerate(known, start=1)}
    rows = [sorted({number[value] for value in own if value in number}) for own in values]
    filled = np.zeros((len(rows), max([1, *map(len, rows)])), np.int64)
    for row, own in enumerate(rows):
        filled[row, : len(own)] = own
    return torch.from_numpy(filled)
