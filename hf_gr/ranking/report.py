"""What a click model is worth on held-out rows: numbers for all rows, and by age and popularity of the candidates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..artifacts import write_json
from ..environment import versions
from ..pages.html import Cell, as_texts, render
from ..pages.svg import COLORS, TEXT, drawn
from .metrics import auc, gauc, reliability, summary
from .rows import ClickRows


FEW = 5  # an item with fewer training events is told apart
_POPULARITY = {
    f"fewer than {FEW} training events": (0, FEW),
    "5–19": (5, 20),
    "20–99": (20, 100),
    "100 or more": (100, None),
}
_DAY = 86_400 * 10**6
_AGES = {
    "under a week": (0, 7),
    "a week to a month": (7, 30),
    "a month to a year": (30, 365),
    "over a year": (365, None),
}


def judge(
    rows: ClickRows, scores: np.ndarray, events: np.ndarray, seen: np.ndarray | None, train: ClickRows, seed: int = 0
) -> dict[str, Any]:
    """Measures predictions on held-out rows.

    Args:
        rows: n of them.
        scores: float32 [n], probabilities.
        events: int64 [N], training events of every item.
        seen: int64 [N], when every item was first seen (microseconds); `None` without a clock.
        train: Rows of training, of which the baselines are made.
        seed: Of the bootstrap.

    Returns:
        `all`, and `by_popularity` and `by_age` of the rows' items, in which a group without rows is left out: see
        [`summary`]; `reliability`; `baselines`, AUC and GAUC of two scores that know no user.
    """
    labels = rows.labels

    def measured(mine: np.ndarray) -> dict[str, Any]:
        return summary(labels[mine], scores[mine], rows.persons[mine], seed=seed)

    def grouped(values: np.ndarray, bounds: Mapping[str, tuple[int, int | None]]) -> dict[str, Any]:
        masks = {
            name: (values >= low) & (values < (np.inf if high is None else high))
            for name, (low, high) in bounds.items()
        }
        return {name: measured(mask) for name, mask in masks.items() if mask.any()}

    found: dict[str, Any] = {
        "all": measured(np.ones(len(rows), bool)),
        "by_popularity": grouped(events[rows.items], _POPULARITY),
        "reliability": reliability(labels, scores),
        "baselines": {},
    }
    if seen is not None:
        found["by_age"] = grouped(np.maximum(rows.times - seen[rows.items], 0) / _DAY, _AGES)
    for name, score in (("popularity", events), ("the item's share of clicks", click_shares(train, len(events)))):
        found["baselines"][name] = {
            "AUC": auc(labels, score[rows.items].astype(np.float64)),
            "GAUC": gauc(labels, score[rows.items].astype(np.float64), rows.persons),
        }
    return found


def click_shares(train: ClickRows, num_items: int, prior: float = 10.0) -> np.ndarray:
    """Every item's share of clicks among its training rows, float64 [N], drawn toward the share of all by `prior` rows
    [ours]."""
    mean = float(train.labels.mean())
    clicks = np.bincount(train.items, train.labels, minlength=num_items)
    return (clicks + prior * mean) / (np.bincount(train.items, minlength=num_items) + prior)


def write_report(folder: Path, metrics: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Writes `metrics.json` and `report.html` into a folder."""
    write_json(folder / "metrics.json", metrics | {"settings": dict(settings), "versions": versions()})
    families = [("by training events of the candidate", metrics["by_popularity"])]
    if "by_age" in metrics:
        families.append(("by age of the candidate", metrics["by_age"]))
    known = [(name, [_text(row["AUC"]), _text(row["GAUC"])]) for name, row in metrics["baselines"].items()]
    values = {
        "title": "Click prediction",
        "metrics": metrics["all"],
        "header": _HEADER,
        "rows": [_row("all rows", metrics["all"])],
        "known": known,
        "families": [(title, [_row(name, part) for name, part in parts.items()]) for title, parts in families],
        "chart": _chart(metrics["reliability"]),
        "provenance": as_texts({**settings, **versions()}),
    }
    (folder / "report.html").write_text(render("ranking/templates/ranking.html.jinja", **values), encoding="utf-8")


_HEADER = ["", "rows", "clicks", "AUC", "GAUC", "log-loss", "predicted / observed", "ECE"]


def _row(name: str, part: Mapping[str, Any]) -> tuple[str, list[Any]]:
    cells = [_cell(part[key]) for key in ("AUC", "GAUC", "log_loss", "ratio")]
    return name, [f"{part['rows']:,}", f"{part['clicks']:,}", *cells, f"{part['ECE']:.4f}"]


def _cell(measured: Mapping[str, float | None]) -> Cell:
    small = f"{_text(measured['low'])} to {_text(measured['high'])}" if measured["low"] is not None else ""
    return Cell(_text(measured["value"]), small)


def _text(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.4f}"


def _chart(bins: list[dict[str, float]]) -> str:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=TEXT, alpha=0.3, linestyle="--", linewidth=1)
        points = [(part["predicted"], part["observed"]) for part in bins]
        axes.plot(*zip(*points, strict=True), color=COLORS[0], marker="o")
        for part in bins:
            axes.annotate(f"{part['rows']:,}", (part["predicted"], part["observed"]), (4, -12),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        axes.set_xlabel("mean prediction of the bin")
        axes.set_ylabel("share of clicks")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)

    return drawn(draw, "share of clicks by prediction; small numbers are rows", height=4.4)
