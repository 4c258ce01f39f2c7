"""Features of a training's items: from its dataset, its item vectors and its catalog of semantic IDs."""

import shutil
from pathlib import Path

import numpy as np

from ..artifacts import read_json
from ..catalog import SidCatalog
from ..dataset import InteractionDataset
from ..embedding.new_items import RECIPE_FILES
from ..embedding.store import INFO_FILE, ItemVectors, items_fingerprint
from ..errors import HfGrError
from ..models.item_features import FeatureRecipe, ItemFeatures, split_parts


def training_features(
    names: list[str], dataset: InteractionDataset, vectors: str | None, catalog: str | None
) -> tuple[FeatureRecipe, ItemFeatures]:
    """What an item tower reads of every item of a dataset, and how.

    Args:
        names: `item_features`.
        dataset: Its items.
        vectors: Folder of `hf-gr embed`, of the same items.
        catalog: Folder of `hf-gr quantize`, of the same items and, where both are given, the same vectors.

    Raises:
        HfGrError: Where a folder is of other items, or lacks what is asked for.
    """
    parts: dict[str, np.ndarray] = {}
    codes, sizes = (None, ()) if catalog is None else _codes(catalog, dataset, vectors)
    if vectors is not None:
        found = ItemVectors.load(vectors)
        if found.info.get("items_fingerprint") != items_fingerprint(dataset.item_ids):
            raise HfGrError(f"{vectors} holds vectors of other items than {dataset.path}; embed this dataset.")
        parts = split_parts(found.vectors, found.info)
    recipe = FeatureRecipe.of(names, dataset.items, {name: part.shape[1] for name, part in parts.items()}, sizes)
    return recipe, recipe.features(dataset.items, parts, codes)


def carry_recipe(folder: Path, recipe: FeatureRecipe, vectors: str | None, catalog: str | None) -> None:
    """Writes into a model folder what features of new items are made by."""
    recipe.save(folder)
    if vectors is not None:
        (folder / "embedder").mkdir()
        for name in RECIPE_FILES:
            if (Path(vectors) / name).is_file():
                shutil.copy2(Path(vectors) / name, folder / "embedder" / name)
    if catalog is not None:
        for name in ("quantizer", *(() if vectors is not None else ("embedder",))):
            if (Path(catalog) / name).is_dir():
                shutil.copytree(Path(catalog) / name, folder / name)


def _codes(folder: str, dataset: InteractionDataset, vectors: str | None) -> tuple[np.ndarray | None, tuple[int, ...]]:
    """Codes int32 [N, L] in rows of the dataset, without a level that only counts, and the codebooks' sizes."""
    catalog = SidCatalog.load(folder)
    unknown = next((item_id for item_id in dataset.item_ids if item_id not in catalog.row_of), None)
    if unknown is not None:
        raise HfGrError(f"{folder} has no semantic ID of item {unknown!r}; quantize the items of {dataset.path}.")
    made = Path(folder) / "embedder" / INFO_FILE
    if vectors is not None and made.is_file():
        of, here = read_json(made).get("fingerprint"), read_json(Path(vectors) / INFO_FILE).get("fingerprint")
        if of != here:
            raise HfGrError(
                f"catalog {folder} was made of other vectors ({of}) than those of {vectors} ({here}), and new items "
                "get one vector for both; give the vectors that the catalog was made of."
            )
    levels = catalog.num_levels - (catalog.collisions == "digit")
    rows = [catalog.row_of[item_id] for item_id in dataset.item_ids]
    return catalog.codes[rows, :levels], catalog.codebook_sizes[:levels]
