"""What there is to say about lists of recommendations: one system by itself, and several side by side."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..dataset import Cases, Histories, in_history, popularity
from ..errors import HfGrError
from . import metrics as m


BUCKETS = ("head", "mid", "tail", "unseen")
_FAMILIES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"HR": m.hit_rate, "NDCG": m.ndcg, "MRR": m.mrr}


def judge(
    recommended: np.ndarray,
    cases: Cases,
    train: Histories,
    num_items: int,
    *,
    codes: np.ndarray | None = None,
    ks: tuple[int, ...] = m.KS,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything there is to say about one system's lists; JSON-serialisable.

    Args:
        recommended: int64 [cases, K], best first, -1 where a list has ended.
        cases: Histories and targets.
        train: Training part; decides on popularity and on what is unseen.
        num_items: Size of the catalog.
        codes: int [items, levels], semantic IDs (negative: none), for the SID-level numbers.
        ks: Cut-offs; those above K are left out.
        seed: Seed of the bootstrap over users.

    Returns:
        `cases`, `users`; `item` and (with codes) `sid`: metric → `{"value", "low", "high"}` with 95 % intervals;
        `by_popularity` (`head`, `mid`, `tail`: a third of the training events each, `unseen`: none at all) and
        `by_history_length`: group → `{"cases", metric …}`; `unseen`; `coverage` and `gini` by K; `invalid_rate`,
        `duplicate_rate` and `mean_length` of the lists; `seen_first`, the share of lists whose first item stands in
        the history.
    """
    ks = usable_ks(ks, recommended.shape[1])
    ranks = m.target_ranks(recommended, cases.targets)
    users = user_numbers(cases)
    counts = popularity(train, num_items)
    result: dict[str, Any] = {
        "cases": len(cases),
        "users": len(np.unique(users)),
        "item": _summary(ranks, users, ks, seed),
    }
    if codes is not None:
        result["sid"] = _summary(m.sid_ranks(recommended, cases.targets, m.sid_numbers(codes)), users, ks, seed)
    bucket = popularity_buckets(counts)[cases.targets]
    result["by_popularity"] = _by_group(ranks, users, bucket, list(BUCKETS), ks, seed)
    bins, labels = length_bins(cases.ends)
    result["by_history_length"] = _by_group(ranks, users, bins, labels, ks, seed)
    shown = m.exposures(recommended, num_items)
    result["unseen"] = {
        "items": int((counts == 0).sum()),
        "targets": int((counts[cases.targets] == 0).sum()),
        "share_of_lists": float(shown[counts == 0].sum() / max(shown.sum(), 1)),
    }
    result["coverage"] = {str(k): m.catalog_coverage(recommended[:, :k], num_items) for k in ks}
    result["gini"] = {str(k): m.gini(recommended[:, :k], num_items) for k in ks}
    result["invalid_rate"] = m.invalid_rate(recommended, num_items)
    result["duplicate_rate"] = m.duplicate_rate(recommended)
    result["mean_length"] = float((recommended != m.MISSING).sum(axis=1).mean())
    result["seen_first"] = float(in_history(cases, recommended[:, 0]).mean())
    return result


def popularity_buckets(counts: np.ndarray) -> np.ndarray:
    """Index into `BUCKETS` for every item, int64 [items].

    Items are lined up from the most popular on (ties in the catalog's order); an item is head, mid or tail as the
    share of the training events taken by those before it is below 1/3, below 2/3 or above. Without events: unseen.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    buckets = np.empty(len(counts), np.int64)
    buckets[order] = np.minimum(3 * before // max(counts.sum(), 1), 2)
    buckets[counts == 0] = BUCKETS.index("unseen")
    return buckets


def length_bins(lengths: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Quartiles of the history lengths: bin of every case, int64 [cases], and the bins' labels, such as `"5-8"`."""
    edges = np.unique(np.quantile(lengths, (0.25, 0.5, 0.75), method="inverted_cdf"))
    raw = np.searchsorted(edges, lengths)  # equal lengths share a bin
    used, bins = np.unique(raw, return_inverse=True)
    spans = [(lengths[raw == b].min(), lengths[raw == b].max()) for b in used]
    return bins, [f"{low}-{high}" if low < high else f"{low}" for low, high in spans]


def metric_names(ks: tuple[int, ...]) -> list[str]:
    """Names of the columns of [`per_case`]: `HR@1`, …, `MRR@50`."""
    return [f"{family}@{k}" for family in _FAMILIES for k in ks]


def per_case(ranks: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """All metrics of all cases, float64 [cases, metrics]."""
    return np.stack([metric(ranks, k) for metric in _FAMILIES.values() for k in ks], axis=1)


def user_numbers(cases: Cases) -> np.ndarray:
    """A number for the user of every case, int64 [cases]; equal for cases of one user."""
    return np.unique(cases.user_ids.astype(object), return_inverse=True)[1]  # as objects: ids differ in length


def usable_ks(ks: tuple[int, ...], width: int) -> tuple[int, ...]:
    """The cut-offs that lists of this width can answer; raises [`HfGrError`] if there are none."""
    usable = tuple(k for k in ks if k <= width)
    if not usable:
        raise HfGrError(f"lists of {width} are too short for K = {min(ks)}; ask for a larger top_k.")
    return usable


def _summary(ranks: np.ndarray, users: np.ndarray, ks: tuple[int, ...], seed: int) -> dict[str, dict[str, float]]:
    values = per_case(ranks, ks)
    low, high = m.bootstrap_interval(values, seed, groups=users)
    rows = zip(metric_names(ks), values.mean(axis=0), low, high, strict=True)
    return {name: {"value": float(v), "low": float(a), "high": float(b)} for name, v, a, b in rows}


def _by_group(
    ranks: np.ndarray, users: np.ndarray, group: np.ndarray, labels: list[str], ks: tuple[int, ...], seed: int
) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for index, label in enumerate(labels):
        inside = group == index
        result[label] = {"cases": int(inside.sum())}
        if inside.any():
            result[label] |= _summary(ranks[inside], users[inside], ks, seed)
    return result


def compare(lists: dict[str, np.ndarray], cases: Cases, ks: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Paired comparison of several systems on the same cases.

    Returns:
        `best`: metric → the system that is ahead of every other one with a 95 % interval above 0, or `None`;
        `differences`: system → metric → `{"value", "low", "high"}` of the first system minus that one.
    """
    names, users = metric_names(ks), user_numbers(cases)
    values = {system: per_case(m.target_ranks(rows, cases.targets), ks) for system, rows in lists.items()}
    first, *others = values
    ahead = {name: set(values) for name in names}
    differences: dict[str, Any] = {}
    for a in values:
        for b in values:
            if a == b:
                continue
            difference, low, high = m.paired_bootstrap(values[a], values[b], seed, groups=users)
            for name, above in zip(names, low > 0, strict=True):
                if not above:
                    ahead[name].discard(a)
            if a == first:
                triples = zip(names, difference, low, high, strict=True)
                differences[b] = {n: {"value": float(d), "low": float(x), "high": float(y)} for n, d, x, y in triples}
    best = {name: next(iter(left), None) if others else None for name, left in ahead.items()}
    return {"best": best, "differences": differences}
