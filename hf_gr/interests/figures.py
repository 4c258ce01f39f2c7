"""How good a classifier's probabilities are, with intervals over users."""

from collections.abc import Callable
from typing import Any

import numpy as np


BINS = 15
_RESAMPLES = 500


class RankedScores:
    """Labels in the order of their scores, so that many weighted AUCs cost little.

    Args:
        labels: bool [n].
        scores: float [n].
        groups: int64 [n]; only pairs within one group are compared. One group if left out.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray, groups: np.ndarray | None = None) -> None:
        _, self._group = np.unique(np.zeros(len(labels)) if groups is None else groups, return_inverse=True)
        _, level = np.unique(scores, return_inverse=True)
        distinct, self._place = np.unique(self._group * len(labels) + level, return_inverse=True)
        self._of_place = distinct // len(labels)
        self._labels = labels.astype(np.float64)

    def auc(self, weights: np.ndarray) -> float:
        """Area under the ROC curve: the share of (positive, negative) pairs in which the positive scores higher, ties
        counting a half, examples weighted; NaN where there are no such pairs."""
        positive, negative = (
            np.bincount(self._place, weights * labels, len(self._of_place))
            for labels in (self._labels, 1 - self._labels)
        )
        positives, negatives = (np.bincount(self._of_place, values) for values in (positive, negative))
        before = np.cumsum(negatives) - negatives  # of earlier groups
        below = np.cumsum(negative) - negative / 2 - before[self._of_place]
        pairs = positives @ negatives
        return float(positive @ below / pairs) if pairs else float("nan")


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """[`RankedScores.auc`] with equal weights; NaN without examples."""
    return RankedScores(labels, scores).auc(np.ones(len(labels))) if len(labels) else float("nan")


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> dict[str, list[float]]:
    """Examples by equally wide bins of probability: [i/bins, (i + 1)/bins), the last with its end.

    Returns:
        `count`, and for the bins that are not empty `mean_probability` and `positive` (their share of positive
        examples), each a list with an entry per bin that is not empty.
    """
    place = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    kept = count > 0
    means = [np.bincount(place, values, bins)[kept] / count[kept] for values in (probabilities, labels)]
    return {"count": count[kept].tolist(), "mean_probability": means[0].tolist(), "positive": means[1].tolist()}


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: Σ_b n_b/n · |mean probability − share of positive examples| over the bins of
    [`reliability`] (Guo et al., 2017) [known]."""
    found = {name: np.array(values) for name, values in reliability(labels, probabilities, bins).items()}
    gaps = np.abs(found["mean_probability"] - found["positive"])
    return float(found["count"] @ gaps / len(labels)) if len(labels) else float("nan")


def interval(statistic: Callable[[np.ndarray], float], users: np.ndarray, seed: int) -> dict[str, float | None]:
    """A statistic with its 95 % interval: percentiles of 500 bootstrap samples of users.

    Args:
        statistic: Of weights of the examples, float64 [n].
        users: int64 [n], whose example each is.
        seed: Of the samples.

    Returns:
        `value`, `low`, `high`; `None` each where the statistic is NaN. Samples in which it is NaN are left out.
    """
    value = statistic(np.ones(len(users)))
    if np.isnan(value):
        return {"value": None, "low": None, "high": None}
    random = np.random.default_rng(seed)
    _, of_user = np.unique(users, return_inverse=True)
    count = int(of_user.max()) + 1
    drawn = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(_RESAMPLES))
    found = [statistic(weights[of_user].astype(np.float64)) for weights in drawn]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def judged(
    labels: np.ndarray,
    probabilities: np.ndarray,
    confidence: np.ndarray,
    users: np.ndarray,
    events: np.ndarray,
    *,
    threshold: float,
    seed: int,
) -> dict[str, Any]:
    """All figures of examples of held-out users, n of them.

    Args:
        labels: bool [n].
        probabilities: float64 [n], of the classifier.
        confidence: float [n], of the miners: what the classifier is to beat.
        users: int64 [n], whose example each is.
        events: int64 [n], the event that each is of.
        threshold: Probability from which an interest is accepted.
        seed: Of the bootstrap.

    Returns:
        `auc`, `auc_of_confidence` and their paired difference `auc_gain`, each with its interval, and the
        first two among the interests of one event (`auc_within`, `auc_of_confidence_within`); `precision`, `recall`,
        `accepted` (share) at the threshold, `positive` (share); `ece` and `reliability`; `thresholds` with precision
        and recall at each.
    """
    ours, theirs = RankedScores(labels, probabilities), RankedScores(labels, confidence)
    within = [RankedScores(labels, scores, events) for scores in (probabilities, confidence)]
    return {
        "examples": len(labels),
        "users": len(np.unique(users)),
        "positive": float(labels.mean()),
        "auc": interval(ours.auc, users, seed),
        "auc_of_confidence": interval(theirs.auc, users, seed),
        "auc_gain": interval(lambda weights: ours.auc(weights) - theirs.auc(weights), users, seed),
        "auc_within": interval(within[0].auc, users, seed),
        "auc_of_confidence_within": interval(within[1].auc, users, seed),
        "ece": calibration_error(labels, probabilities),
        "reliability": reliability(labels, probabilities),
        **at_threshold(labels, probabilities, threshold),
        "thresholds": [at_threshold(labels, probabilities, edge) for edge in np.linspace(0.05, 0.95, 37)],
    }


def at_threshold(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Precision and recall of what is accepted at a threshold; `None` where they are of nothing."""
    accepted = probabilities >= threshold
    hits, accepts, positives = int((accepted & labels).sum()), int(accepted.sum()), int(labels.sum())
    return {
        "threshold": float(threshold),
        "accepted": accepts / len(labels),
        "precision": hits / accepts if accepts else None,
        "recall": hits / positives if positives else None,
    }
