import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hf_gr.interests.figures import RankedScores, auc, calibration_error, interval, judged, reliability


def world(seed=0, n=300):
    random = np.random.default_rng(seed)
    scores = np.round(random.random(n), 1)  # many ties
    return random.random(n) < scores, scores, random.integers(0, 4, n).astype(float), random


def test_auc_is_that_of_scikit_learn_with_ties_and_weights():
    labels, scores, weights, _ = world()
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert RankedScores(labels, scores).auc(weights) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(auc(np.ones(3, bool), np.arange(3.0)))


def test_auc_within_groups_compares_pairs_of_one_group():
    labels, scores, weights, random = world(1, 120)
    groups = random.integers(0, 15, 120) * 7
    won = pairs = 0.0
    for good in np.flatnonzero(labels):
        for bad in np.flatnonzero(~labels):
            if groups[good] == groups[bad]:
                weight = weights[good] * weights[bad]
                pairs += weight
                won += weight * ((scores[good] > scores[bad]) + 0.5 * (scores[good] == scores[bad]))
    assert RankedScores(labels, scores, groups).auc(weights) == pytest.approx(won / pairs, abs=1e-12)


def test_calibration_error_is_that_of_a_plain_loop():
    random = np.random.default_rng(2)
    probabilities = np.concatenate([random.random(500), [0.0, 1.0, 1 / 15, 14 / 15]])
    labels = random.random(504) < probabilities**2
    bins = [[] for _ in range(15)]
    for label, probability in zip(labels, probabilities, strict=True):
        bins[min(int(probability * 15), 14)].append((label, probability))
    gaps = [abs(sum(y for y, _ in found) - sum(p for _, p in found)) for found in bins]
    assert calibration_error(labels, probabilities) == pytest.approx(sum(gaps) / 504, abs=1e-12)
    found = reliability(labels, probabilities)
    assert found["count"] == [len(own) for own in bins if own]
    assert found["positive"][-1] == pytest.approx(np.mean([y for y, _ in bins[-1]]))


def test_perfect_and_wrong_probabilities():
    labels = np.array([True, False] * 50)
    assert calibration_error(labels, labels.astype(float)) == 0
    assert calibration_error(labels, 1 - labels) == 1
    assert calibration_error(labels, np.full(100, 0.5)) == 0


def test_intervals_sample_users_not_examples():
    users = np.repeat(np.arange(25), 40)
    values = np.repeat(np.random.default_rng(3).normal(size=25), 40)  # all examples of a user are alike

    def mean(weights):
        return float(weights @ values / weights.sum())

    found = interval(mean, users, seed=0)
    error = values[::40].std() / 5
    assert found["value"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found == interval(mean, users, seed=0) != interval(mean, users, seed=1)
    assert interval(lambda weights: float("nan"), users, 0) == {"value": None, "low": None, "high": None}


def test_judged_at_a_threshold_and_beside_the_confidence():
    labels, scores, _, random = world(4)
    users, events = np.arange(300) // 10, np.arange(300) // 5
    found = judged(labels, scores, random.random(300), users, events, threshold=0.5, seed=0)
    accepted = [label for label, score in zip(labels, scores, strict=True) if score >= 0.5]
    assert found["precision"] == pytest.approx(sum(accepted) / len(accepted))
    assert found["recall"] == pytest.approx(sum(accepted) / labels.sum())
    assert found["accepted"] == pytest.approx(len(accepted) / 300)
    assert found["auc_gain"]["low"] > 0
    difference = found["auc"]["value"] - found["auc_of_confidence"]["value"]
    assert found["auc_gain"]["value"] == pytest.approx(difference)
    assert found["thresholds"][-1]["threshold"] == pytest.approx(0.95)
    nothing = judged(labels, scores / 3, scores, users, events, threshold=0.5, seed=0)
    assert nothing["precision"] is None and nothing["recall"] == 0 and nothing["auc_gain"]["value"] == 0
