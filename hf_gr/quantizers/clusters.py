"""What codes mean: the words and titles of the items that share a coarse SID prefix."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer

from ..catalog import SidCatalog
from .metrics import unit_rows


_READ = 200_000  # items whose texts are read at most; a sample beyond, which names large clusters as well
_WORD = r"(?u)\b[^\W\d_]{3,}\b"  # letters alone, of any script


@dataclass(frozen=True)
class Cluster:
    """Items with the same first codes.

    Attributes:
        prefix: The codes they share.
        items: How many they are.
        words: What tells them from the clusters beside them, the most telling first.
        titles: Of some of them, the most typical first.
        below: The largest clusters within, by one code more.
    """

    prefix: tuple[int, ...]
    items: int
    words: list[str]
    titles: list[str]
    below: list["Cluster"] = field(default_factory=list)


def largest_clusters(
    catalog: SidCatalog, vectors: np.ndarray | None = None, *, top: int = 12, below: int = 3, seed: int = 0
) -> list[Cluster]:
    """The first-level codes with the most items, and the largest second-level ones below each.

    Args:
        catalog: Its items' titles, categories and descriptions are read.
        vectors: float32 [N, d] of its items: typical titles are those nearest to the centroid, else the most popular.
        top: First-level codes.
        below: Second-level codes of each.
        seed: Of the sample of items that is read of large catalogs.
    """
    everything = np.arange(len(catalog))
    read = _read(catalog, seed)
    clusters = _clusters(catalog, vectors, read, everything, (), top)
    if catalog.num_levels == 1:
        return [cluster for cluster, _ in clusters]
    return [
        Cluster(
            cluster.prefix,
            cluster.items,
            cluster.words,
            cluster.titles,
            [inner for inner, _ in _clusters(catalog, vectors, read, members, cluster.prefix, below)],
        )
        for cluster, members in clusters
    ]


def clusters_by_codebook(
    catalog: SidCatalog, levels: int, vectors: np.ndarray | None = None, *, top: int = 6, seed: int = 0
) -> list[list[Cluster]]:
    """Of each of the first `levels` codebooks by itself, the codes with the most items; for codes without an order.

    Arguments are those of [`largest_clusters`]. The prefix of a cluster is its one code.
    """
    everything, read = np.arange(len(catalog)), _read(catalog, seed)
    found = (_clusters(catalog, vectors, read, everything, (), top, level) for level in range(levels))
    return [[cluster for cluster, _ in clusters] for clusters in found]


def sampled(rows: np.ndarray, seed: int) -> np.ndarray:
    """Of the rows of items, ascending, those whose texts are read: all, or a seeded sample of very many."""
    if len(rows) <= _READ:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, _READ, replace=False))


def telling_words(
    counts: sp.csr_array, classes: np.ndarray, words: Sequence[str], wanted: Sequence[int], top: int = 8
) -> list[list[str]]:
    """Class-based TF-IDF (Grootendorst, BERTopic, 2022) [known]: words that are many in a class and rare in others.

    tf·log(1 + A/f): tf the share of a word among the class's, f its count in all classes, A the mean number of words
    of a class. A word counts once an item, so that no long description speaks for its neighbours, and words of one
    item alone tell nothing of a class [ours].

    Args:
        counts: 0/1 [n, V], which item has which word.
        classes: int [n], class of every item, 0 … m − 1.
        words: The V words.
        wanted: Classes to be told.
        top: Words a class.

    Returns:
        For every wanted class its words, the most telling first, ties in the order of `words`.
    """
    shape = (max([*wanted, int(classes.max(initial=0))]) + 1, len(classes))
    by_class = sp.csr_array((np.ones(len(classes)), (classes, np.arange(len(classes)))), shape=shape) @ counts
    frequency, mean_words = by_class.sum(axis=0), by_class.sum() / max(len(np.unique(classes)), 1)
    own = by_class[list(wanted)].toarray()
    weights = own / np.maximum(own.sum(axis=1, keepdims=True), 1) * np.log1p(mean_words / np.maximum(frequency, 1))
    weights[own < 2] = 0
    best = np.argsort(-weights, axis=1, kind="stable")[:, :top]
    return [[words[word] for word in row if weights[number, word] > 0] for number, row in enumerate(best.tolist())]


@dataclass(frozen=True, eq=False)
class _Read:
    rows: np.ndarray  # int64 [n], ascending: items that were read
    counts: sp.csr_array  # 0/1 [n, V]
    words: list[str]


def _read(catalog: SidCatalog, seed: int) -> _Read:
    rows = sampled(np.arange(len(catalog)), seed)
    return _Read(rows, *word_counts(catalog.items.take(rows)))


def _clusters(
    catalog: SidCatalog,
    vectors: np.ndarray | None,
    read: _Read,
    members: np.ndarray,
    prefix: tuple[int, ...],
    top: int,
    level: int | None = None,
) -> list[tuple[Cluster, np.ndarray]]:
    """The largest clusters among the items `members` of a prefix, by the next code, and the rows of their items."""
    level = len(prefix) if level is None else level
    codes = catalog.codes[members, level]
    sizes = np.bincount(codes)
    wanted = [code for code in np.argsort(-sizes, kind="stable")[:top].tolist() if sizes[code]]
    read_here = np.isin(read.rows, members, assume_unique=True)
    spoken = catalog.codes[read.rows[read_here], level]
    words = telling_words(read.counts[np.flatnonzero(read_here)], spoken, read.words, wanted)
    clusters = []
    for code, told in zip(wanted, words, strict=True):
        rows = members[codes == code]
        clusters.append((Cluster((*prefix, code), len(rows), told, _typical(catalog, vectors, rows)), rows))
    return clusters


def word_counts(items: pa.Table) -> tuple[sp.csr_array, list[str]]:
    """Which item has which word in its title, brand, categories and description: 0/1 [n, V], and the V words.

    Columns that the table lacks are not read. A word is of three letters or more, in lower case.
    """
    texts = [_text(item) for item in items.select(_columns(items)).to_pylist()]
    counter = CountVectorizer(binary=True, stop_words="english", token_pattern=_WORD, max_features=20_000)
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # no text has a word
        return sp.csr_array((len(texts), 0)), []
    return sp.csr_array(counts), counter.get_feature_names_out().tolist()


def _columns(items: pa.Table) -> list[str]:
    return [name for name in ("title", "brand", "categories", "description") if name in items.column_names]


def _text(item: dict[str, str | list[str] | None]) -> str:
    parts = (" ".join(value) if isinstance(value, list) else value or "" for value in item.values())
    return " ".join(parts)


def _typical(catalog: SidCatalog, vectors: np.ndarray | None, rows: np.ndarray, top: int = 4) -> list[str]:
    if vectors is None:
        likeness = catalog.popularity[rows].astype(np.float64)
    else:
        units = unit_rows(vectors[rows])
        likeness = units @ units.mean(axis=0)
    order = rows[np.argsort(-likeness, kind="stable")[: 10 * top]]
    titles = dict.fromkeys(catalog.items["title"].take(order).to_pylist())  # a title may stand on several items
    return list(titles)[:top]
