"""How good a codebook is, told without training a recommender."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import check_codes


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
