"""The scorers that a model repo carries beside its weights: a folder each, and one file that says what each counts.

A new one is a class like [`SavedScorer`] and a line in `SAVED`; what loads, copies, uploads and grows model repos
follows.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa

from ..artifacts import read_json, write_json
from ..catalog import SidCatalog
from ..errors import HfGrError
from ..models.item_features import NOWHERE, RECIPE_PATTERNS, Sources
from ..scoring import Scorer
from ..search_config import MEMORY, SEMANTIC_ID, Mixture
from .memory import Memory
from .retriever import RetrieverScorer


class SavedScorer(Scorer, Protocol):
    """A scorer with a folder of its own in a model repo, which holds JSON and safetensors files alone."""

    @property
    def num_items(self) -> int:
        """N, items of the catalog that it was saved with."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what [`save`] wrote; raises [`HfGrError`] in one line where it cannot."""

    def save(self, folder: Path) -> None:
        """Writes its files into a folder, which is made."""

    def with_items(self, codes: np.ndarray, new: np.ndarray, items: pa.Table, sources: Sources) -> Self:
        """The scorer of a catalog with items at its end.

        Args:
            codes: int [N, L], SIDs of the items that it has.
            new: int [n, L], SIDs of the items that are added.
            items: Table of those.
            sources: Where what their features are made of lies.
        """


SAVED: dict[str, type[SavedScorer]] = {MEMORY: Memory, "retriever": RetrieverScorer}
MIXTURE_FILE = "scorers.json"
SAVED_FILES = (
    MIXTURE_FILE,
    *(f"{name}/*.{kind}" for name in SAVED for kind in ("json", "safetensors")),
    *(f"retriever/{pattern}" for pattern in RECIPE_PATTERNS),
)

_FORMAT = 1
_KEYS = {"format", "catalog_fingerprint", "weights", "rule", "smoothing"}
_REMEDY = "bring the model's own files back, or make it again: hf-gr blend, hf-gr remember."


def load_scorers(folder: str | Path, catalog: SidCatalog) -> tuple[dict[str, SavedScorer], Mixture | None]:
    """The scorers of a model folder by name, and what each counts; none and `None` where it carries none.

    Raises [`HfGrError`] where files are missing or broken, or belong to another catalog.
    """
    folder = Path(folder)
    mixture = read_mixture(folder, catalog)
    scorers = {name: kind.load(folder / name) for name, kind in SAVED.items() if (folder / name).is_dir()}
    for name, scorer in scorers.items():
        if scorer.num_items != len(catalog):
            raise HfGrError(
                f"{folder / name} knows {scorer.num_items} items, but the catalog has {len(catalog)}; {_REMEDY}"
            )
    return scorers, mixture


def read_mixture(folder: Path, catalog: SidCatalog) -> Mixture | None:
    """What each scorer of a model folder counts; `None` where it carries none.

    Raises [`HfGrError`] where the file is broken or of another catalog, or does not go with the folders.
    """
    file = folder / MIXTURE_FILE
    there = [name for name in SAVED if (folder / name).is_dir()]
    if not file.is_file():
        if there:
            raise HfGrError(f"{file} is missing, which says what {folder / there[0]} counts; {_REMEDY}")
        return None
    mixture = _parsed(file, read_json(file))
    said = read_json(file)["catalog_fingerprint"]
    if said != catalog.fingerprint:
        raise HfGrError(f"{file} is of catalog {said}, but the model's is {catalog.fingerprint}; {_REMEDY}")
    for name in dict(mixture.weights):
        if name in SAVED and name not in there:
            raise HfGrError(f"{folder / name} is missing, which {MIXTURE_FILE} gives a weight; {_REMEDY}")
    return mixture


def save_scorers(
    folder: str | Path, catalog: SidCatalog, scorers: Mapping[str, SavedScorer], mixture: Mixture
) -> None:
    """Writes scorers and what each counts into a model folder; those of a name take the place of earlier ones.

    Args:
        folder: Of the model, which these scorers' rows are of.
        catalog: Its catalog.
        scorers: By their names in `SAVED`.
        mixture: Weights of these, and of those that the model ranks by anyway.
    """
    for name, scorer in scorers.items():
        shutil.rmtree(Path(folder) / name, ignore_errors=True)  # not written over: its files may be links
        scorer.save(Path(folder) / name)
    told = asdict(mixture) | {"weights": dict(mixture.weights)}
    write_json(Path(folder) / MIXTURE_FILE, told | {"format": _FORMAT, "catalog_fingerprint": catalog.fingerprint})


def drop_scorer(folder: Path, name: str) -> None:
    """Takes a scorer out of a model folder, whole or broken; the others keep their weights."""
    shutil.rmtree(folder / name, ignore_errors=True)
    file = folder / MIXTURE_FILE
    if not file.is_file():
        return
    content = read_json(file)
    weights = {other: w for other, w in _parsed(file, content).by_name.items() if other != name and w > 0}
    if weights.keys() <= {SEMANTIC_ID}:
        file.unlink()
    else:
        write_json(file, content | {"weights": weights})


def copy_scorers(source: Path, folder: Path) -> None:
    """Copies the scorers of a model folder into that of another model of the same catalog."""
    for name in SAVED:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    if (source / MIXTURE_FILE).is_file():
        shutil.copy2(source / MIXTURE_FILE, folder / MIXTURE_FILE)


def grow_scorers(folder: Path, old: SidCatalog, new: SidCatalog, sources: Sources = NOWHERE) -> None:
    """Lets the scorers of a model folder know the items that a catalog has at its end and the old one has not."""
    scorers, mixture = load_scorers(folder, old)
    if mixture is not None and len(new) > len(old):
        added = (new.codes[len(old) :], new.items.slice(len(old)), sources)
        grown = {name: scorer.with_items(old.codes, *added) for name, scorer in scorers.items()}
        save_scorers(folder, new, grown, mixture)


def _parsed(file: Path, said: Any) -> Mixture:
    if not isinstance(said, dict) or said.get("format") != _FORMAT or said.keys() != _KEYS:
        raise HfGrError(f"{file} is not what this release reads (keys {', '.join(sorted(_KEYS))}); {_REMEDY}")
    try:
        mixture = Mixture(said["weights"], said["rule"], said["smoothing"])
    except HfGrError as error:
        raise HfGrError(f"{file}: {str(error).partition(';')[0].rstrip('.')}; {_REMEDY}") from None
    if mixture.rule is None:
        raise HfGrError(f"{file} says no rule of mixing; {_REMEDY}")
    known = {SEMANTIC_ID, "vectors", *SAVED}
    if unknown := dict(mixture.weights).keys() - known:
        raise HfGrError(f"{file} weighs {min(unknown)!r}, but scorers are {', '.join(sorted(known))}; {_REMEDY}")
    return mixture
