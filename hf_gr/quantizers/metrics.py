"""How good a codebook is, told without training a recommender.

Sizes are those of catalogs of 10 million items: vectors may be memory-mapped, and are read in chunks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import faiss
import numpy as np
import scipy.sparse as sp

from ..neighbors import largest_in_rows
from .base import Quantizer, check_codes
from .redundancy import redundancy, redundancy_by_group
from .vectors import CHUNK


_PAIRS = 4_000_000_000  # similarities that a search for nearest neighbours may compute: about a minute of one core
_QUERIES = 2_000  # items whose neighbours are searched at least; the error of a share over so many is below 0.01


def codebook_report(
    codes: np.ndarray,
    codebook_sizes: Sequence[int],
    *,
    vectors: np.ndarray | None = None,
    quantizer: Quantizer | None = None,
    graph: sp.csr_array | None = None,
    targets: np.ndarray | None = None,
    popularity: np.ndarray | None = None,
    k: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that can be said of a codebook with what is given.

    Cohesion, discrimination and neighbours are told in the space of the item vectors themselves, so that methods
    compare; the error in the space that the method quantizes, `quantizer.align(vectors, graph)`.

    Args:
        codes: int [N, L]. With a quantizer of fewer levels (a digit was added to tell items apart), what concerns
            vectors is told of the quantizer's levels.
        codebook_sizes: K_l of each level.
        vectors: float32 [N, d], vectors of the items.
        quantizer: What the codes are decoded by.
        graph: Co-occurrence of the items [N, N], of the training part alone.
        targets: int [T], item rows of test targets; only counted.
        popularity: int [N], training events per item.
        k: Neighbours of an item.
        seed: Of the sample of items whose neighbours are searched, where there are too many for all.

    Returns:
        JSON-serialisable: [`collision_report`], `distinct_set_rate` (SIDs that differ ÷ items, 1 is best),
        `bucket_sizes` ([items on one SID, such SIDs], ascending) and [`redundancy`] (`None` for one codebook); with a
        quantizer whose codebooks are of groups [`redundancy_by_group`]; with
        `vectors` the lists by level `semantic_cohesion` and `preference_discrimination`, the number `mean_cosine` (of
        all pairs of items: what clusters at random have for both), and `nearest_overlap` ([`neighbour_overlap`]);
        with `quantizer` too `error` and `error_of_codes` ([`reconstruction_error`]; not without the graph for a method
        that uses it); with `graph` `cooccurrence_overlap`.
    """
    report = collision_report(codes, codebook_sizes, targets, popularity)
    report["distinct_set_rate"] = report["distinct_sids"] / report["items"]
    report["bucket_sizes"] = bucket_sizes(codes)
    levels = len(codebook_sizes) if quantizer is None else quantizer.num_levels
    codes = codes[:, :levels]
    report["redundancy"] = redundancy(codes, seed)
    if quantizer is not None and quantizer.groups:
        report["redundancy_by_group"] = redundancy_by_group(codes, quantizer.groups, seed)
    if vectors is not None:
        by_level = [_cohesion_and_discrimination(codes[:, : level + 1], vectors) for level in range(levels)]
        report["mean_cosine"] = semantic_cohesion(np.zeros((len(codes), 1), np.int32), vectors)
        report["semantic_cohesion"] = [cohesion for cohesion, _ in by_level]
        report["preference_discrimination"] = [discrimination for _, discrimination in by_level]
        report["nearest_overlap"] = neighbour_overlap(codes, *nearest_neighbours(vectors, k, seed))
        if quantizer is not None and (graph is not None or not quantizer.uses_graph):
            report |= reconstruction_error(quantizer, quantizer.align(vectors, graph), codes)
    if graph is not None:
        report["cooccurrence_overlap"] = neighbour_overlap(codes, *cooccurrence_neighbours(graph, k))
    return report


def collision_report(
    codes: np.ndarray,
    codebook_sizes: Sequence[int],
    targets: np.ndarray | None = None,
    popularity: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measures how well a set of SIDs tells items apart [known].

    Args:
        codes: int [N, L].
        codebook_sizes: K_l of each level.
        targets: int [T], item rows of test targets; only counted.
        popularity: int [N], training events per item.

    Returns:
        JSON-serialisable dict:
            `items`, `distinct_sids`: counts;
            `collision_rate`: share of items that share their SID with another item, 0 is best;
            `largest_bucket`: most items on one SID, 1 is best;
            `levels`: per level `size`, `used` (codes that at least one item has), `use` (their share, 1 is best),
                `perplexity` (exp of the entropy of the codes, between 1 and `size`, which is best) and `skew` (items
                on the fullest code ÷ items on a code on average, between 1, which is best, and `size`);
            `targets_on_shared_sid`: share of the targets whose SID is shared (with `targets`);
            `events_on_shared_sid`: share of training events whose item's SID is shared (with `popularity`).
    """
    check_codes(codes, list(codebook_sizes))
    bucket = _clusters(codes)
    sizes = np.bincount(bucket)
    shared = sizes[bucket] > 1
    report: dict[str, Any] = {
        "items": len(codes),
        "distinct_sids": len(sizes),
        "collision_rate": float(shared.mean()),
        "largest_bucket": int(sizes.max()),
        "levels": [_level_report(codes[:, level], size) for level, size in enumerate(codebook_sizes)],
    }
    if targets is not None:
        report["targets_on_shared_sid"] = float(shared[targets].mean())
    if popularity is not None:
        report["events_on_shared_sid"] = float(popularity[shared].sum() / max(popularity.sum(), 1))
    return report


def _level_report(codes: np.ndarray, size: int) -> dict[str, Any]:
    counts = np.bincount(codes, minlength=size)
    shares = counts[counts > 0] / len(codes)
    return {
        "size": size,
        "used": len(shares),
        "use": len(shares) / size,
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
        "skew": float(shares.max() * size),
    }


def bucket_sizes(codes: np.ndarray) -> list[list[int]]:
    """How many SIDs hold 1, 2, 3, … items: [items on one SID, such SIDs], ascending, those that occur."""
    items, sids = np.unique(np.bincount(_clusters(codes)), return_counts=True)
    return np.stack([items, sids], 1).tolist()


def semantic_cohesion(codes_prefix: np.ndarray, vectors: np.ndarray) -> float | None:
    """SC, how alike the items of one SID prefix are; higher is better (R3-VAE) [known: role; form ours].

    Σ_c n_c·cos_c / Σ_c n_c over the prefixes c with n_c ≥ 2 items, cos_c the mean cosine of the pairs of its items:
    (‖Σᵢ uᵢ‖² − Σᵢ ‖uᵢ‖²) / (n_c(n_c − 1)) with uᵢ = xᵢ/‖xᵢ‖, in O(N). Between −1 and 1. It rises with the number of
    codes, and a zero vector is unlike everything.

    Args:
        codes_prefix: int [N, l], the first l codes of every item.
        vectors: float32 [N, d].

    Returns:
        `None` if no two items share a prefix.
    """
    return _cohesion_and_discrimination(codes_prefix, vectors)[0]


def preference_discrimination(codes_prefix: np.ndarray, vectors: np.ndarray) -> float | None:
    """PD, how alike different SID prefixes are; lower is better (R3-VAE) [known: role; form ours].

    Mean cosine of the pairs of centroids of prefixes, m of them: (‖Σ_c û_c‖² − Σ_c ‖û_c‖²) / (m(m − 1)), û_c the
    centroid of the uᵢ of prefix c, at length 1. Between −1 and 1.

    Args:
        codes_prefix: int [N, l], the first l codes of every item.
        vectors: float32 [N, d].

    Returns:
        `None` if there is one prefix only.
    """
    return _cohesion_and_discrimination(codes_prefix, vectors)[1]


def reconstruction_error(quantizer: Quantizer, vectors: np.ndarray, codes: np.ndarray) -> dict[str, list[float]]:
    """What the first 1, 2, … L codes leave of the vectors: Σ‖x − x̂_l‖² / Σ‖x − μ‖² [known]; lower is better.

    0 is lossless, 1 as good as the mean μ of all vectors.

    Args:
        quantizer: With `decode` of prefixes.
        vectors: float32 [N, d], what it quantizes.
        codes: int [N, L], its codes or the codes that took their place.

    Returns:
        `error`: by level, decoded with [`Quantizer.side`] of every item (which most methods do not have).
        `error_of_codes`: by level, decoded with the mean of the side, as who knows the codes alone must.
    """
    total, squares, count = np.zeros(vectors.shape[1]), 0.0, len(vectors)
    lost = np.zeros((2, quantizer.num_levels))
    for start in range(0, count, CHUNK):
        chunk, chosen = np.asarray(vectors[start : start + CHUNK]), codes[start : start + CHUNK]
        total += chunk.sum(axis=0, dtype=np.float64)
        squares += float(np.square(chunk, dtype=np.float64).sum())
        side = quantizer.side(chunk, chosen) if quantizer.side_width else None
        for level in range(quantizer.num_levels):
            lost[1, level] += _squared(chunk - quantizer.decode(chosen[:, : level + 1]))
            if side is None:
                lost[0, level] = lost[1, level]
            else:
                lost[0, level] += _squared(chunk - quantizer.decode(chosen[:, : level + 1], side))
    spread = squares - float(np.square(total).sum()) / count
    error, of_codes = (lost / max(spread, np.finfo(np.float64).tiny)).tolist()
    return {"error": error, "error_of_codes": of_codes}


def _squared(difference: np.ndarray) -> float:
    return float(np.square(difference).sum(dtype=np.float64))


def neighbour_overlap(codes: np.ndarray, rows: np.ndarray, neighbours: np.ndarray) -> dict[str, Any]:
    """How many of an item's neighbours share its first 1, 2, … L codes [known in kind; `gain` ours].

    Args:
        codes: int [N, L].
        rows: int [n], items asked about.
        neighbours: int [n, k], rows of their neighbours; -1 where one has fewer. Items that have none are left out.

    Returns:
        `items` (asked about, with a neighbour) and, by prefix length,
            `overlap`: the mean over items of the share of their neighbours that have the same prefix; 0 to 1, but
                few, fat codes make it high by themselves;
            `chance`: what it would be on average if the same SIDs were dealt to the items at random,
                Σ_c n_c(n_c − 1) / (N(N − 1)) over prefixes c;
            `lift`: overlap ÷ chance; 1 is chance; favours many codes (`None` if no two items share a prefix);
            `gain`: log(overlap/chance) / log(1/chance), the share of the way from chance (0) to perfect (1) on the
                scale of logarithms: the one to compare codebooks of different sizes by (`None` likewise, or where
                overlap is 0).
        Higher is better, of all but chance.
    """
    shared, asked = np.zeros(codes.shape[1]), 0
    for start in range(0, len(rows), CHUNK):
        found = neighbours[start : start + CHUNK]
        real = found >= 0
        counts = real.sum(axis=1)
        same = (codes[found] == codes[rows[start : start + CHUNK], None]) & real[:, :, None]
        per_item = np.logical_and.accumulate(same, axis=2).sum(axis=1)[counts > 0]
        shared += (per_item / counts[counts > 0, None]).sum(axis=0)
        asked += int((counts > 0).sum())
    overlap = (shared / max(asked, 1)).tolist()
    chance = [_chance(codes[:, : level + 1]) for level in range(codes.shape[1])]
    both = list(zip(overlap, chance, strict=True))
    return {
        "items": asked,
        "overlap": overlap,
        "chance": chance,
        "lift": [got / random if random else None for got, random in both],
        "gain": [float(1 - np.log(got) / np.log(random)) if got and 0 < random < 1 else None for got, random in both],
    }


def _chance(codes_prefix: np.ndarray) -> float:
    counts = np.bincount(_clusters(codes_prefix)).astype(np.float64)
    count = len(codes_prefix)
    return float((counts * (counts - 1)).sum() / max(count * (count - 1), 1))


def nearest_neighbours(vectors: np.ndarray, k: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The k items of the highest cosine for every item, or for a sample of them beyond some 60 thousand; exact.

    Args:
        vectors: float32 [N, d].
        k: Neighbours; at most N − 1.
        seed: Of the sample.

    Returns:
        Rows asked about, int64 [n], ascending; zero vectors, which are near nothing, are not among them. And rows of
        their neighbours, int64 [n, k], nearest first; never an item itself.
    """
    count = len(vectors)
    asked = min(count, max(_QUERIES, _PAIRS // count))
    rows = np.sort(np.random.default_rng(seed).choice(count, asked, replace=False)) if asked < count else None
    rows = np.arange(count) if rows is None else rows
    queries = unit_rows(vectors[rows])
    rows, queries = rows[queries.any(axis=1)], queries[queries.any(axis=1)]
    near = np.empty((len(rows), 0), np.int64)
    cosines = np.empty((len(rows), 0), np.float32)
    for start in range(0, count if len(rows) else 0, CHUNK):
        chunk = unit_rows(vectors[start : start + CHUNK])
        values, found = faiss.knn(queries, chunk, min(k + 1, len(chunk)), metric=faiss.METRIC_INNER_PRODUCT)
        found = found + start
        values[found == rows[:, None]] = -np.inf  # the item itself, which goes last
        near, cosines = np.concatenate([near, found], 1), np.concatenate([cosines, values], 1)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, : min(k, count - 1)]
        near, cosines = np.take_along_axis(near, best, 1), np.take_along_axis(cosines, best, 1)
    return rows, near


def cooccurrence_neighbours(graph: sp.csr_array, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """The k items most strongly used together with each item.

    Args:
        graph: Symmetric counts [N, N], such as [`~hf_gr.embedding.behavior.cooccurrence`] gives.
        k: Neighbours.

    Returns:
        Rows int64 [N], all of them, and rows of their neighbours, int64 [N, k], strongest first, ties (in float32)
        to the lower row, filled up by -1.
    """
    neighbours = np.empty((graph.shape[0], k), np.int64)
    for start in range(0, graph.shape[0], CHUNK):
        block = sp.csr_array(graph[start : start + CHUNK])
        block.data[np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)) + start == block.indices] = 0
        neighbours[start : start + CHUNK] = largest_in_rows(block, k)[0]
    return np.arange(len(neighbours)), neighbours


def print_collisions(report: dict[str, Any]) -> None:
    """Prints what [`collision_report`] found."""
    shared = f"{report['collision_rate']:.2%} of items share theirs, at most {report['largest_bucket']} the same one"
    if report["collision_rate"] == 0:
        shared = "every item has its own"
    print(f"{report['items']:,} items on {report['distinct_sids']:,} SIDs; {shared}")
    names = {"targets_on_shared_sid": "test targets", "events_on_shared_sid": "training events"}
    for key, name in names.items():
        if key in report:
            print(f"{report[key]:.2%} of {name} are on a shared SID")
    for number, level in enumerate(report["levels"]):
        print(
            f"level {number}: {level['used']} of {level['size']} codes used ({level['use']:.1%}), "
            f"perplexity {level['perplexity']:.1f}, skew {level['skew']:.1f}",
            flush=True,
        )


def _clusters(codes_prefix: np.ndarray) -> np.ndarray:
    """int64 [N]: number of every item's prefix among those that occur, in the order of prefixes."""
    cluster = np.zeros(len(codes_prefix), np.int64)
    for column in codes_prefix.T:  # sorts of single numbers, which are quicker than one of rows
        cluster = np.unique(cluster * (int(column.max()) + 1) + column, return_inverse=True)[1]
    return cluster


def _cohesion_and_discrimination(codes_prefix: np.ndarray, vectors: np.ndarray) -> tuple[float | None, float | None]:
    """Both in one pass over the vectors; see [`semantic_cohesion`] and [`preference_discrimination`]."""
    cluster = _clusters(codes_prefix)
    sizes = np.bincount(cluster).astype(np.float64)
    cohesion, first = 0.0, 0
    centroids, directions = np.zeros(vectors.shape[1]), 0
    for sums, squares in _cluster_sums(cluster, vectors):
        lengths = np.linalg.norm(sums, axis=1)
        size = sizes[first : first + len(sums)]
        paired = size > 1
        cohesion += float(((np.square(lengths) - squares)[paired] / (size[paired] - 1)).sum())
        pointing = lengths > 1e-9
        centroids += (sums[pointing] / lengths[pointing, None]).sum(axis=0)
        directions += int(pointing.sum())
        first += len(sums)
    paired_items, count = float(sizes[sizes > 1].sum()), len(sizes)
    return (
        cohesion / paired_items if paired_items else None,
        float(centroids @ centroids - directions) / (count * (count - 1)) if count > 1 else None,
    )


def _cluster_sums(cluster: np.ndarray, vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For runs of clusters, ascending: Σᵢ uᵢ, float64 [m, d], and Σᵢ ‖uᵢ‖², float64 [m], of the items of each.

    Items are read in the order of their clusters, so that memory holds one chunk whatever their number.
    """
    order = np.argsort(cluster, kind="stable")
    held = np.zeros((0, vectors.shape[1] + 1))  # the cluster that the chunk before may have left open
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        units = unit_rows(vectors[rows])
        ends = np.append(np.flatnonzero(np.diff(cluster[rows])) + 1, len(rows))
        members = sp.csr_array((np.ones(len(rows)), np.arange(len(rows)), np.append(0, ends)))  # a cluster a row
        sums = np.column_stack([members @ units, members @ np.square(units).sum(axis=1)])
        if start and cluster[rows[0]] == cluster[order[start - 1]]:
            sums[0] += held[0]
        elif start:
            yield held[:, :-1], held[:, -1]
        yield sums[:-1, :-1], sums[:-1, -1]
        held = sums[-1:]
    yield held[:, :-1], held[:, -1]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """The vectors [n, d] at length 1, float32, zero vectors as they are."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
