"""Items by inner product with faiss: exact, by inverted lists, or by a graph of neighbors.

`flat` is every product. `ivf` sorts items into about 4 √N lists by k-means and looks into the nearest ones. `hnsw`
walks a graph of neighbors: faster at the same recall, but dearer to build and to store. How far an approximate index
looks (lists, or width of the walk) is the least power of two that finds a share of the true best on sample queries.
An index is stored in faiss's own binary form; nothing is unpickled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from ..artifacts import read_json, write_json
from ..errors import HfGrError, first_line


IndexKind = Literal["auto", "flat", "ivf", "hnsw"]
INDEX_FILES = ("index.faiss", "index.json")
LARGEST_FLAT = 200_000  # items up to which `auto` takes every product
RECALL_AT = 50

_NEIGHBORS, _BUILD_WIDTH = 32, 100  # of a node of the graph; of the walk that finds them
_PER_LIST = 64  # items that k-means sees of each list
_SEED = 1234


def kind_for(kind: IndexKind, num_items: int) -> IndexKind:
    """What `auto` means for so many items."""
    if kind != "auto":
        return kind
    return "flat" if num_items <= LARGEST_FLAT else "ivf"


@dataclass(eq=False)
class VectorIndex:
    """N vectors, to be searched by inner product.

    Attributes:
        kind: flat, ivf or hnsw.
        index: Of faiss.
        effort: Lists that are looked into, or width of the walk; 0 of a flat one.
        recall: Share of the true best 50 found on the sample queries; 1 of a flat one.
    """

    kind: IndexKind
    index: Any
    effort: int = 0
    recall: float = 1.0

    @classmethod
    def build(cls, vectors: np.ndarray, kind: IndexKind, queries: np.ndarray, recall: float = 0.98) -> "VectorIndex":
        """Makes an index.

        Args:
            vectors: float32 [N, d].
            kind: Which one.
            queries: float32 [Q, d], like those that it will be asked.
            recall: That it shall reach on them at 50; where it cannot, it looks as far as there is something to see.
        """
        vectors, kind = _rows(vectors), kind_for(kind, len(vectors))
        made = cls(kind, _made(kind, vectors))
        made.index.add(vectors)
        if kind != "flat":
            made._tune(vectors, _rows(queries), recall)
        return made

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def most_effort(self) -> int:
        """Beyond which there is nothing more to see."""
        return int(self.index.nlist) if self.kind == "ivf" else len(self) if self.kind == "hnsw" else 0

    def search(self, queries: np.ndarray, k: int, effort: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best k of N by inner product: float32 and int64 [Q, k], best first; −inf and −1 behind the last found.

        Args:
            queries: float32 [Q, d].
            k: At most N.
            effort: Instead of the index's own.
        """
        effort = min(self.effort if effort is None else effort, self.most_effort)
        settings = None
        if self.kind == "ivf":
            settings = faiss.SearchParametersIVF(nprobe=effort)  # type: ignore[call-arg]  # its stubs lack it
        elif self.kind == "hnsw":
            settings = faiss.SearchParametersHNSW(efSearch=max(effort, k))  # type: ignore[attr-defined]
        scores, items = self.index.search(_rows(queries), k, params=settings)
        scores[items < 0] = -np.inf
        return scores, items.astype(np.int64)

    def add(self, vectors: np.ndarray) -> None:
        """Puts more vectors at the end, without training."""
        self.index.add(_rows(vectors))

    def said(self) -> str:
        """What it is and how good, for the log."""
        if self.kind == "flat":
            return f"index: flat, {len(self):,} items, exact"
        looks = "lists" if self.kind == "ivf" else "wide"
        return (
            f"index: {self.kind}, {len(self):,} items, {self.effort} {looks}, recall@{RECALL_AT} {self.recall:.4f} of "
            "every product"
        )

    def save(self, folder: Path) -> None:
        faiss.write_index(self.index, str(folder / INDEX_FILES[0]))
        facts = {"kind": self.kind, "effort": self.effort, "recall": self.recall, "items": len(self)}
        write_json(folder / INDEX_FILES[1], facts)

    @classmethod
    def load(cls, folder: Path) -> "VectorIndex":
        """Raises [`HfGrError`] where a file is missing or broken."""
        file, facts = folder / INDEX_FILES[0], read_json(folder / INDEX_FILES[1])
        try:
            index = faiss.read_index(str(file))
        except RuntimeError as error:
            raise HfGrError(
                f"{file} is no index ({first_line(error)}); bring the model's own file back, or delete both files of "
                "the index: every product is then taken."
            ) from None
        if index.ntotal != facts["items"]:
            raise HfGrError(f"{file} holds {index.ntotal} items, but {facts['items']} are said; copy both files.")
        return cls(facts["kind"], index, facts["effort"], facts["recall"])

    def _tune(self, vectors: np.ndarray, queries: np.ndarray, recall: float) -> None:
        k = min(RECALL_AT, len(vectors))
        exact = exact_best(vectors, queries, k)
        self.effort = 1 if self.kind == "ivf" else 16
        while True:
            self.recall = recall_of(self.search(queries, k)[1], exact)
            if self.recall >= recall or self.effort >= self.most_effort:
                return
            self.effort = min(2 * self.effort, self.most_effort)


def exact_best(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The best k by every product, int64 [Q, k]."""
    return faiss.knn(_rows(queries), _rows(vectors), k, metric=faiss.METRIC_INNER_PRODUCT)[1].astype(np.int64)


def recall_of(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of the true best, int64 [Q, k], that is among what was found, int64 [Q, ≥ k]."""
    shares = [np.isin(best, there).mean() for best, there in zip(exact, found, strict=True)]
    return float(np.mean(shares))


def _made(kind: IndexKind, vectors: np.ndarray) -> Any:
    """An empty index, trained where it needs that."""
    makers: dict[str, Callable[[int], Any]] = {
        "flat": faiss.IndexFlatIP,
        "hnsw": lambda d: faiss.IndexHNSWFlat(d, _NEIGHBORS, faiss.METRIC_INNER_PRODUCT),
    }
    if kind != "ivf":
        made = makers[kind](vectors.shape[1])
        if kind == "hnsw":
            made.hnsw.efConstruction = _BUILD_WIDTH
        return made
    lists = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 16))
    made = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    made.cp.max_points_per_centroid, made.cp.seed, made.cp.niter = _PER_LIST, _SEED, 10
    made.cp.min_points_per_centroid = 1  # small catalogs are no cause for a warning
    made.train(vectors)
    return made


def _rows(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors, np.float32)
