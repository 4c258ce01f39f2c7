"""How good predicted probabilities of clicks are: in order, and in size.

    AUC      = P(score of a click > score of a row without), equal scores count ½
    GAUC     = Σ_u n_u AUC_u / Σ_u n_u                       over users with rows of both kinds, n_u rows each
    log-loss = −mean(y ln p + (1 − y) ln(1 − p))
    ratio    = Σ p / Σ y                                     above 1: clicks are promised that do not come
    ECE      = Σ_b n_b/n |mean_b(p) − mean_b(y)|             over ten bins of p of equal width

Intervals are 95 % percentile intervals over bootstrap resamples of the users; all rows of a user are drawn together.
They hold the noise of the users drawn, not that of training.
"""

from typing import Any

import numpy as np


BINS = 10
_LEAST = 1e-7  # probabilities are held this far from 0 and 1 in the log-loss


class Ordered:
    """Rows in order of their scores, of which any weighing gives an AUC in linear time.

    Args:
        labels: float [n], 1 for a click.
        scores: float [n].
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray):
        self.order = np.argsort(scores, kind="stable")
        self.labels = labels[self.order] > 0.5
        ascending = scores[self.order]
        self.starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1])[: len(ascending)])

    def auc(self, weights: np.ndarray | None = None) -> float:
        """The AUC of rows that count `weights` (float [n]; 1 each if left out); NaN where one kind is missing."""
        weights = np.ones(len(self.order)) if weights is None else weights[self.order]
        if not len(weights):
            return float("nan")
        clicks = np.add.reduceat(weights * self.labels, self.starts)
        others = np.add.reduceat(weights * ~self.labels, self.starts)
        both = clicks.sum() * others.sum()
        return float(clicks @ (np.cumsum(others) - others / 2) / both) if both else float("nan")


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a click and a row without in which the click's score is higher; NaN without pairs."""
    return Ordered(labels, scores).auc()


def user_aucs(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The AUC and the number of rows of every user, float64 [U] each, NaN where one kind is missing.

    Args:
        labels, scores: float [n].
        users: int64 [n], from 0 to U − 1.
    """
    order = np.lexsort((scores, users))
    owners, ascending, clicked = users[order], scores[order], labels[order] > 0.5
    new = np.append(True, (owners[1:] != owners[:-1]) | (ascending[1:] != ascending[:-1]))[: len(order)]
    ties = np.cumsum(new) - 1
    place = np.arange(len(order), dtype=np.float64)
    ranks = (np.bincount(ties, place) / np.maximum(np.bincount(ties), 1))[ties]  # equal scores share their mean rank
    rows = np.bincount(owners)
    ranks -= (np.cumsum(rows) - rows)[owners]
    clicks = np.bincount(owners, clicked, minlength=len(rows))
    below = np.bincount(owners, ranks * clicked, minlength=len(rows)) - clicks * (clicks - 1) / 2
    pairs = clicks * (rows - clicks)
    return np.where(pairs > 0, below / np.maximum(pairs, 1), np.nan), rows.astype(np.float64)


def gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> float:
    """The mean AUC of users, weighed by their rows; NaN where no user has rows of both kinds."""
    return _weighed(*user_aucs(labels, scores, users))


def _weighed(aucs: np.ndarray, rows: np.ndarray, times: np.ndarray | None = None) -> float:
    there = ~np.isnan(aucs)
    weights = (rows if times is None else rows * times)[there]
    return float(weights @ aucs[there] / weights.sum()) if weights.sum() else float("nan")


def row_losses(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Log-loss of every row, float64 [n]."""
    kept = np.clip(scores.astype(np.float64), _LEAST, 1 - _LEAST)
    return -np.where(labels > 0.5, np.log(kept), np.log1p(-kept))


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Mean prediction, share of clicks and number of rows of each bin that holds any, lowest first."""
    places = np.minimum((scores * bins).astype(np.int64), bins - 1)
    counts = np.bincount(places, minlength=bins)
    found = []
    for place in np.flatnonzero(counts):
        mine = places == place
        predicted, observed = float(scores[mine].mean()), float(labels[mine].mean())
        found.append({"predicted": predicted, "observed": observed, "rows": int(counts[place])})
    return found


def expected_calibration_error(labels: np.ndarray, scores: np.ndarray, bins: int = BINS) -> float:
    """How far predictions are from shares of clicks, in the mean over rows."""
    parts = reliability(labels, scores, bins)
    return sum(part["rows"] * abs(part["predicted"] - part["observed"]) for part in parts) / max(len(labels), 1)


def summary(
    labels: np.ndarray, scores: np.ndarray, users: np.ndarray, *, seed: int = 0, samples: int = 500
) -> dict[str, Any]:
    """All of it, with intervals.

    Args:
        labels: float [n], 1 for a click; n ≥ 1.
        scores: float [n], probabilities.
        users: int64 [n], any numbers.
        seed: Of the bootstrap.
        samples: Resamples of the users.

    Returns:
        Counts of `rows`, `clicks`, `users`; `AUC`, `GAUC`, `log_loss` and `ratio`, a dict of `value`, `low` and
        `high` each; `predicted` and `observed`, means; `ECE`. `None` stands for what cannot be told.
    """
    people, users = np.unique(users, return_inverse=True)
    ordered, aucs = Ordered(labels, scores), user_aucs(labels, scores, users)
    sums = [np.bincount(users, column) for column in (row_losses(labels, scores), scores, labels)]

    def measured(times: np.ndarray) -> list[float]:
        losses, predicted, observed = (float(times @ column) for column in sums)
        ratio = predicted / observed if observed else float("nan")
        return [ordered.auc(times[users]), _weighed(*aucs, times), losses / float(times @ aucs[1]), ratio]

    random = np.random.default_rng(seed)
    drawn = (
        np.bincount(random.integers(len(people), size=len(people)), minlength=len(people)) for _ in range(samples)
    )
    resampled = np.array([measured(times.astype(np.float64)) for times in drawn]).reshape(samples, 4)
    found: dict[str, Any] = {"rows": len(labels), "clicks": int(labels.sum()), "users": len(people)}
    values = measured(np.ones(len(people)))
    for name, value, column in zip(("AUC", "GAUC", "log_loss", "ratio"), values, resampled.T, strict=True):
        there = column[~np.isnan(column)]
        low, high = np.quantile(there, (0.025, 0.975)) if len(there) else (np.nan, np.nan)
        found[name] = {"value": _number(value), "low": _number(low), "high": _number(high)}
    found |= {"predicted": float(scores.mean()), "observed": float(labels.mean())}
    return found | {"ECE": expected_calibration_error(labels, scores)}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
