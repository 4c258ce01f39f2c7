"""The classifier of interests: how likely an interest tells what users take next."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from ..artifacts import read_json, write_json
from ..errors import HfGrError, first_line
from .evidence import Evidence


WEIGHTS_FILE = "classifier.safetensors"
CONFIG_FILE = "classifier.json"
SCALARS = ("cosine", "generality", "subject_generality", "confidence", "models", "idf", "of_user")

_REGULARISATION = 1e-3  # C of scikit-learn: examples of one user are much alike, so they count for little
_PRIOR = 10.0  # examples that the classifier's word is worth beside a row's own
_MOST_ROWS = 50_000  # that it is fitted on
_CHUNK = 8192
_EDGE = 1e-6


@dataclass(frozen=True, eq=False)
class Description:
    """What the classifier is told of R interests; nothing of it knows what users took beyond the training part.

    Attributes:
        interests: float32 [R, d], a vector of length 1 per interest.
        subjects: float32 [R, d], of its item, or the mean of the items of its user's history.
        generality: float32 [d], the mean vector of the items of training events: what cosines are by popularity.
        confidence: float32 [R], of the miners.
        models: int64 [R], how many miners found it.
        idf: float32 [R], log(items / items with the interest).
        of_user: bool [R], whether it is a user's.
    """

    interests: np.ndarray
    subjects: np.ndarray
    generality: np.ndarray
    confidence: np.ndarray
    models: np.ndarray
    idf: np.ndarray
    of_user: np.ndarray

    def __len__(self) -> int:
        return len(self.interests)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """float32 [rows, 3d + 7]: both vectors, their product by place, and `SCALARS`."""
        interests, subjects = self.interests[rows], self.subjects[rows]
        product = interests * subjects
        columns = [product.sum(axis=1), interests @ self.generality, subjects @ self.generality]
        columns += [values[rows] for values in (self.confidence, self.models, self.idf, self.of_user)]
        scalars = np.stack(columns, axis=1).astype(np.float32)
        return np.concatenate([interests, subjects, product, scalars], axis=1)


@dataclass(frozen=True, eq=False)
class InterestClassifier:
    """Logistic regression on the features of [`Description`], then the examples of each row, then calibration.

    p₀ = σ(w·f + b). With k positive of n examples among the users it was fitted on, a row's label averaged over them
    is drawn towards p₀: p₁ = (k + m·p₀) / (n + m), so that an item that nobody took keeps p₀. The probability is
    σ(a·logit p₁ + c), a and c of other users (Platt scaling). A light, calibrated classifier and labels averaged over
    users are the authors' [known]; the form is ours.

    Attributes:
        weights: w, float64 [F].
        intercept: b.
        prior: m, in examples.
        slope: a.
        offset: c.
    """

    weights: np.ndarray
    intercept: float
    prior: float = _PRIOR
    slope: float = 1.0
    offset: float = 0.0

    def probability(self, description: Description, positive: np.ndarray, count: np.ndarray) -> np.ndarray:
        """float64 [R].

        Args:
            description: R interests.
            positive: Positive examples of each among the users it was fitted on, float64 [R].
            count: All their examples of each, float64 [R].
        """
        return expit(self.slope * self._score(description, positive, count) + self.offset)

    def save(self, folder: Path) -> None:
        """Writes `classifier.safetensors` (the weights) and `classifier.json` (the numbers, names of the features)."""
        save_file({"weights": self.weights}, folder / WEIGHTS_FILE)
        numbers = {name: value for name, value in asdict(self).items() if name != "weights"}
        dim = (len(self.weights) - len(SCALARS)) // 3
        features = {"interest": dim, "subject": dim, "interest × subject": dim} | dict.fromkeys(SCALARS, 1)
        write_json(folder / CONFIG_FILE, numbers | {"features": [list(pair) for pair in features.items()]})

    @classmethod
    def load(cls, folder: Path) -> "InterestClassifier":
        """Reads both files; raises [`HfGrError`] if one is missing or broken."""
        found = read_json(folder / CONFIG_FILE)
        numbers = {name: found[name] for name in ("intercept", "prior", "slope", "offset")}
        try:
            return cls(load_file(folder / WEIGHTS_FILE)["weights"], **numbers)
        except (FileNotFoundError, SafetensorError) as error:
            reason = first_line(error)
            raise HfGrError(f"{folder / WEIGHTS_FILE} cannot be read ({reason}); run `hf-gr label` again.") from None

    def _score(self, description: Description, positive: np.ndarray, count: np.ndarray) -> np.ndarray:
        raw = np.empty(len(description))
        for rows in _chunks(len(description)):
            raw[rows] = description.features(rows) @ self.weights + self.intercept
        drawn = (positive + self.prior * expit(raw)) / (count + self.prior)
        return logit(np.clip(drawn, _EDGE, 1 - _EDGE))


def fit_classifier(
    description: Description, training: Evidence, calibration: Evidence, *, seed: int
) -> InterestClassifier:
    """Fits on the examples of some users and calibrates on those of others; both need positive and negative ones.

    Args:
        description: R interests.
        training: Examples of the users that teach.
        calibration: Examples of other users.
        seed: Of the choice of rows where there are more than 50 thousand.
    """
    positive, count = training.counts(len(description))
    rows = np.flatnonzero(count)
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MOST_ROWS, replace=False))
    features = description.features(rows)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < _EDGE] = 1  # what is the same for all
    features = (features - mean) / scale
    good, bad = np.flatnonzero(positive[rows]), np.flatnonzero(positive[rows] < count[rows])
    labels = np.repeat([True, False], [len(good), len(bad)])
    weights = np.concatenate([positive[rows][good], (count - positive)[rows][bad]])
    regression = LogisticRegression(C=_REGULARISATION, max_iter=300)
    regression.fit(features[np.concatenate([good, bad])], labels, sample_weight=weights)
    coefficients = regression.coef_[0].astype(np.float64) / scale
    fitted = InterestClassifier(coefficients, float(regression.intercept_[0] - coefficients @ mean))
    scores = fitted._score(description, positive, count)[calibration.rows][:, None]
    platt = LogisticRegression(C=1 / _EDGE).fit(scores, calibration.labels)
    numbers = (float(platt.coef_[0, 0]), float(platt.intercept_[0]))
    return InterestClassifier(fitted.weights, fitted.intercept, fitted.prior, *numbers)


def _chunks(rows: int) -> Iterator[np.ndarray]:
    for start in range(0, rows, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, rows))
