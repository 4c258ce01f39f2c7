"""Rows of finished cells in Parquet, and what is told of them: means, paired differences, intervals of a next run."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import t as student

from ..artifacts import replacing
from ..errors import HfGrError
from ..evaluation.metrics import MISS, hit_rate, ndcg


METRICS = ("HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10")
UNSEEN = "unseen_"  # before the name of a metric: of lists without the items of the history
_OUT = np.iinfo(np.int16).max  # of a rank in a file: the target is not in the list
_KEY = ("data", "method", "seed")


@dataclass(frozen=True)
class Figure:
    """Mean over seeds, and their standard deviation where there are several."""

    mean: float
    std: float | None
    runs: int

    @property
    def next_run(self) -> tuple[float, float] | None:
        """95 % prediction interval of one more run: mean ± t · s · √(1 + 1/n); `None` of a single run."""
        if self.std is None:
            return None
        reach = float(student.ppf(0.975, self.runs - 1)) * self.std * (1 + 1 / self.runs) ** 0.5
        return self.mean - reach, self.mean + reach


@dataclass(frozen=True)
class Difference:
    """Mean over users and shared seeds of one method less another, with its 95 % interval ([`interval`]).

    `trainings` counts the seeds: the interval of a single one knows nothing of the noise of training.
    """

    value: float
    low: float
    high: float
    relative: float | None
    trainings: int


class Results:
    """All rows of a suite, and the rank of every user's target.

    Attributes:
        rows: One a cell.
        ranks: (data, method, seed) → int64 [users], from 0, in the order of `users`.
        unseen: The same of lists without the items of the history, for the cells that were judged so.
        users: Data set → ids of its users.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ranks: dict[tuple[str, str, int], np.ndarray] = {}
        self.unseen: dict[tuple[str, str, int], np.ndarray] = {}
        self.users: dict[str, list[str]] = {}

    def add(
        self, row: Mapping[str, Any], users: list[str], ranks: np.ndarray, unseen: np.ndarray | None = None
    ) -> None:
        """Takes a row in the place of an earlier one of its cell; refuses one that contradicts itself, or other users
        than those of its data set ([`HfGrError`])."""
        check_consistent(row)
        key = (row["data"], row["method"], row["seed"])
        if self.users.setdefault(row["data"], users) != users:
            raise HfGrError(f"{'/'.join(map(str, key))} was judged on other users than the rest; run the suite anew.")
        self.rows = [old for old in self.rows if tuple(old[name] for name in _KEY) != key] + [dict(row)]
        self.ranks[key] = ranks
        self.unseen.pop(key, None)
        if unseen is not None:
            self.unseen[key] = unseen

    def parted(self, current: Callable[[Mapping[str, Any]], bool]) -> tuple["Results", "Results"]:
        """The rows that are `current`, and the others."""
        parts = (Results(), Results())
        for row in self.rows:
            key = (row["data"], row["method"], row["seed"])
            part = parts[0 if current(row) else 1]
            part.add(row, self.users[row["data"]], self.ranks[key], self.unseen.get(key))
        return parts

    def of(self, data: str, method: str) -> list[dict[str, Any]]:
        """The rows of a method, by seed."""
        found = [row for row in self.rows if (row["data"], row["method"]) == (data, method)]
        return sorted(found, key=lambda row: row["seed"])

    def figure(self, data: str, method: str, name: str) -> Figure | None:
        """A number of a method over its seeds; `None` where no row has it."""
        values = [row[name] for row in self.of(data, method) if row.get(name) is not None]
        if not values:
            return None
        return Figure(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))

    def difference(self, data: str, method: str, other: str, name: str) -> Difference | None:
        """A metric (`NDCG@10`, `unseen_NDCG@10`) of one method less another's, user by user, on the seeds that both
        have; a method of one seed counts against each of the other's."""
        pairs = self._pairs(data, method, other)
        ranks = self.unseen if name.startswith(UNSEEN) else self.ranks
        if not pairs or not all(key in ranks for pair in pairs for key in pair):
            return None
        ours, theirs = (np.stack([per_user(ranks[key], name) for key in side]) for side in zip(*pairs, strict=True))
        low, high = interval(ours - theirs)
        value, base = float((ours - theirs).mean()), float(theirs.mean())
        return Difference(value, low, high, value / base if base else None, len(pairs))

    def best(self, data: str, name: str, fixed: Collection[str] = ()) -> str | None:
        """The method that is ahead of each other one with its interval above 0, over more than one training; `None` if
        there is none. Methods that are `fixed` give the same lists whatever the seed."""
        methods = dict.fromkeys(row["method"] for row in self.rows if row["data"] == data)
        means = {method: figure.mean for method in methods if (figure := self.figure(data, method, name)) is not None}
        if len(means) < 2:
            return None
        first = max(means, key=means.__getitem__)
        found = [(other, self.difference(data, first, other, name)) for other in means if other != first]
        ahead = (
            one is not None and one.low > 0 and (one.trainings > 1 or {first, other} <= set(fixed))
            for other, one in found
        )
        return first if all(ahead) else None

    def _pairs(self, data: str, method: str, other: str) -> list[tuple[tuple[str, str, int], tuple[str, str, int]]]:
        ours, theirs = ([row["seed"] for row in self.of(data, name)] for name in (method, other))
        if len(ours) == 1 or len(theirs) == 1:
            return [((data, method, mine), (data, other, yours)) for mine in ours for yours in theirs]
        return [((data, method, seed), (data, other, seed)) for seed in ours if seed in theirs]

    def save(self, folder: Path, suite: str) -> None:
        """Writes `SUITE.parquet` (rows) and `SUITE-ranks.parquet` (a row a cell: the rank of every user's target)."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = sorted(self.rows, key=lambda row: tuple(str(row[name]) for name in _KEY))
        names = list(dict.fromkeys(name for row in rows for name in row))
        _write(pa.table({name: [row.get(name) for row in rows] for name in names}), folder / f"{suite}.parquet")
        keys = sorted(self.ranks)
        table = {name: [key[place] for key in keys] for place, name in enumerate(_KEY)}
        for name, ranks in (("ranks", self.ranks), ("unseen", self.unseen)):
            lists = [np.minimum(ranks[key], _OUT).astype(np.int16) if key in ranks else None for key in keys]
            table[name] = pa.array(lists, pa.list_(pa.int16()))
        _write(pa.table(table), folder / f"{suite}-ranks.parquet")
        users = pa.array(list(self.users.values()), pa.list_(pa.string()))
        _write(pa.table({"data": list(self.users), "users": users}), folder / f"{suite}-users.parquet")

    @classmethod
    def load(cls, folder: Path, suite: str) -> "Results":
        """Reads what [`save`] wrote; empty where nothing was."""
        found = cls()
        if not (folder / f"{suite}.parquet").is_file():
            return found
        found.rows = pq.read_table(folder / f"{suite}.parquet").to_pylist()
        for row in pq.read_table(folder / f"{suite}-ranks.parquet").to_pylist():
            for name, of_cell in (("ranks", found.ranks), ("unseen", found.unseen)):
                if row.get(name) is not None:
                    ranks = np.array(row[name], np.int64)
                    of_cell[row["data"], row["method"], row["seed"]] = np.where(ranks == _OUT, MISS, ranks)
        users = pq.read_table(folder / f"{suite}-users.parquet").to_pylist()
        found.users = {row["data"]: row["users"] for row in users}
        return found


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of paired differences over trainings and users, both of which are a sample.

    Two-way analysis of variance with random effects (known): the variance of the mean is (MS_trainings + MS_users -
    MS_rest) / (S · U). MS_trainings counts by Student's t of S - 1, the rest of it by that of U - 1 degrees of freedom
    (our choice): two trainings tell little of the noise of training, and their interval says so. With one training the
    interval is over users alone.

    Args:
        differences: float64 [S, U], one less the other of every training and user.

    Returns:
        Its two ends; they are the mean where there is one user.
    """
    trainings, users = differences.shape
    mean = float(differences.mean())
    if users == 1:
        return mean, mean
    of_user, of_training = differences.mean(0), differences.mean(1)
    spread = float(student.ppf(0.975, users - 1)) ** 2 * trainings * float(of_user.var(ddof=1))
    if trainings > 1:
        rest = ((differences - of_user - of_training[:, None] + mean) ** 2).sum() / ((trainings - 1) * (users - 1))
        spread = max(0.0, spread - float(student.ppf(0.975, users - 1)) ** 2 * float(rest))
        spread += float(student.ppf(0.975, trainings - 1)) ** 2 * users * float(of_training.var(ddof=1))
    reach = (spread / (trainings * users)) ** 0.5
    return mean - reach, mean + reach


def per_user(ranks: np.ndarray, name: str) -> np.ndarray:
    """A metric such as `NDCG@10` (or `unseen_NDCG@10`) of every user, float64 [users]."""
    kind, k = name.removeprefix(UNSEEN).split("@")
    return {"HR": hit_rate, "NDCG": ndcg}[kind](ranks, int(k))


def check_consistent(row: Mapping[str, Any], tolerance: float = 1e-9) -> None:
    """Raises [`HfGrError`] where recall and NDCG of a row cannot both be right.

    With one target a user, those found at ranks k₁ + 1 … k₂ add between 1 / log₂(k₂ + 1) and 1 / log₂(k₁ + 2) each to
    NDCG: N@k₂ − N@k₁ lies between ΔR / log₂(k₂ + 1) and ΔR / log₂(k₁ + 2). (k₁ = 0 bounds NDCG@k itself.)

    Args:
        row: With `HR@k` and `NDCG@k`; other entries are not looked at.
        tolerance: For figures that were rounded.
    """
    ks = sorted(int(name.split("@")[1]) for name in row if name.startswith("HR@") and f"NDCG@{name[3:]}" in row)
    at = {0: (0.0, 0.0)} | {k: (row[f"HR@{k}"], row[f"NDCG@{k}"]) for k in ks}
    for low, high in zip([0, *ks], ks, strict=False):
        found, gained = at[high][0] - at[low][0], at[high][1] - at[low][1]
        least, most = found / np.log2(high + 1), found / np.log2(low + 2)
        if not least - tolerance <= gained <= most + tolerance:
            name = "/".join(str(row[key]) for key in _KEY if key in row)
            raise HfGrError(
                f"{name or 'the row'}: NDCG@{high} less NDCG@{low} is {gained:.6f}, but HR allows {least:.6f} to "
                f"{most:.6f}; the two are not of the same lists."
            )


def outside(fresh: Results, known: Results, names: Sequence[str] = ("HR@10", "NDCG@10")) -> list[dict[str, Any]]:
    """Fresh rows beside the 95 % prediction interval of the known rows of their method: `name`, `value`, `low`,
    `high`, `inside`. Methods without two known runs are left out."""
    found = []
    for row in fresh.rows:
        for name in names:
            figure = known.figure(row["data"], row["method"], name)
            if figure is None or figure.next_run is None:
                continue
            low, high = figure.next_run
            cell = f"{row['data']}/{row['method']}-s{row['seed']} {name}"
            inside = low <= row[name] <= high
            found.append({"name": cell, "value": row[name], "low": low, "high": high, "inside": inside})
    return found


def _write(table: pa.Table, file: Path) -> None:
    with replacing(file) as half:
        pq.write_table(table, half, compression="zstd")
