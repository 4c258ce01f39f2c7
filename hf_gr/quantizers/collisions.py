"""Items that share a SID: how many there are, and how to tell them apart."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from ..errors import HfGrError
from .base import Quantizer, check_codes


CollisionMethod = Literal["none", "greedy"]


def collision_report(
    codes: np.ndarray,
    codebook_sizes: Sequence[int],
    targets: np.ndarray | None = None,
    popularity: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measures how well a set of SIDs tells items apart.

    Args:
        codes: int [N, L].
        codebook_sizes: K_l of each level.
        targets: int [T], item rows of test targets; only counted.
        popularity: int [N], training events per item.

    Returns:
        JSON-serialisable dict:
            `items`, `distinct_sids`: counts;
            `collision_rate`: share of items that share their SID with another item;
            `largest_bucket`: most items on one SID;
            `levels`: per level `size`, `used` (codes that at least one item has), `use` (their share) and `perplexity`
                (exp of the entropy of the codes, between 1 and `size`);
            `targets_on_shared_sid`: share of the targets whose SID is shared (with `targets`);
            `events_on_shared_sid`: share of training events whose item's SID is shared (with `popularity`).
    """
    check_codes(codes, list(codebook_sizes))
    _, bucket, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
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
    perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
    return {"size": size, "used": len(shares), "use": len(shares) / size, "perplexity": perplexity}


def print_collisions(report: dict[str, Any]) -> None:
    """Prints what [`collision_report`] found."""
    print(
        f"{report['items']:,} items on {report['distinct_sids']:,} SIDs; {report['collision_rate']:.2%} of items "
        f"share theirs, at most {report['largest_bucket']} one SID"
    )
    names = {"targets_on_shared_sid": "test targets", "events_on_shared_sid": "training events"}
    for key, name in names.items():
        if key in report:
            print(f"{report[key]:.2%} of {name} are on a shared SID")
    for number, level in enumerate(report["levels"]):
        print(
            f"level {number}: {level['used']} of {level['size']} codes used ({level['use']:.1%}), "
            f"perplexity {level['perplexity']:.1f}",
            flush=True,
        )


def resolve_collisions(
    codes: np.ndarray, vectors: np.ndarray, quantizer: Quantizer, method: CollisionMethod = "greedy"
) -> np.ndarray:
    """Gives items that share a SID another code on the last level, where one is free.

    `"greedy"`: of the items on one SID the nearest to it stays. Of all others below one prefix (the codes before the
    last), the one furthest from its code moves first, to the nearest last-level code that no item below this prefix
    has; when none is left, the remaining items stay where they are and share. Ties go to the lower row and the lower
    code. The idea is known, the order is ours. `"none"`: the codes as they are.

    Args:
        codes: int32 [N, L] of `quantizer`.
        vectors: float32 [N, d], the vectors that were encoded.
        quantizer: Gives the distances to the codes of the last level.
        method: `"none"` or `"greedy"`.

    Returns:
        int32 [N, L], a copy; no two items below one prefix share a SID while a code there is free.
    """
    if method not in get_args(CollisionMethod):
        raise HfGrError(f"collisions {method!r} is unknown; use one of {', '.join(get_args(CollisionMethod))}.")
    quantizer.check_codes(codes)
    resolved = codes.copy()
    if method == "none":
        return resolved
    for rows in _crowded_prefixes(codes):
        distances = quantizer.distances(vectors[rows], codes[rows], codes.shape[1] - 1)
        resolved[rows, -1] = _spread(codes[rows, -1], distances)
    return resolved


def _crowded_prefixes(codes: np.ndarray) -> list[np.ndarray]:
    """Rows, ascending, of the items below every prefix with a shared SID."""
    _, prefix = np.unique(codes[:, :-1], axis=0, return_inverse=True)
    _, bucket, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    crowded = np.unique(prefix[sizes[bucket] > 1])
    order = np.argsort(prefix, kind="stable")
    starts, ends = (np.searchsorted(prefix[order], crowded, side=side) for side in ("left", "right"))
    return [order[start:end] for start, end in zip(starts, ends, strict=True)]


def _spread(last: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """New last-level codes of the n items below one prefix.

    Args:
        last: int [n], their codes.
        distances: float32 [n, K], squared distance of every item to every code.
    """
    own = distances[np.arange(len(last)), last]
    free = np.ones(distances.shape[1], bool)
    free[last] = False
    movers, kept = [], set()
    for item in np.argsort(own, kind="stable").tolist():  # nearest first: the first on a code keeps it
        if last[item] in kept:
            movers.append(item)
        kept.add(last[item])
    result = last.copy()
    for item in sorted(movers, key=lambda item: (-own[item], item)):
        if not free.any():
            break
        result[item] = int(np.where(free, distances[item], np.inf).argmin())
        free[result[item]] = False
    return result
