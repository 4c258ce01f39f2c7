"""The page that `hf-gr label` writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..dataset import InteractionDataset
from ..pages.html import Cell, as_texts, render
from ..pages.svg import COLORS, TEXT, drawn
from .table import Interests


_SHOWN = 20  # names at either end of the list
_LONGEST = 52  # letters of a title


@dataclass(frozen=True)
class Example:
    """An interest with the items that have it.

    Attributes:
        name: Of the interest.
        probability: Its mean over the items.
        items: How many they are.
        titles: Theirs, the most typical first: of the items whose probability is closest to the mean.
    """

    name: str
    probability: float
    items: int
    titles: Sequence[str]


def write_labelling_page(
    file: Path,
    figures: dict[str, Any],
    settings: dict[str, Any],
    most: Sequence[Example],
    least: Sequence[Example],
) -> Path:
    """Writes one HTML file that loads nothing and needs no script.

    Args:
        file: To write.
        figures: Of [`label_interests`].
        settings: How they came about.
        most: The most useful interests, the best first.
        least: The least useful ones, the worst first.

    Returns:
        The file.
    """
    values = {
        "title": "Labelled interests",
        "interests": figures["interests"],
        "parts": figures["parts"],
        "threshold": figures["threshold"],
        "figures": [(Cell(name, meaning), [text]) for name, text, meaning in figure_rows(figures)],
        "plots": [_reliability(figures), _thresholds(figures)],
        "most": most,
        "least": least,
        "longest": _LONGEST,
        "settings": as_texts(settings),
    }
    file.write_text(render("interests/templates/labelling.html.jinja", **values), encoding="utf-8")
    return file


def examples(interests: Interests, dataset: InteractionDataset, shown: int = _SHOWN) -> tuple[list[Example], ...]:
    """The names of items' interests with the highest and with the lowest mean probability, each with titles of items
    that have it; names of one item only are left out where there are enough others."""
    table = interests.items.table.select(["interest", "item_id", "probability"]).to_pydict()
    titles = dict(zip(dataset.item_ids, dataset.titles, strict=True))
    found: dict[str, list[tuple[float, str]]] = {}
    for name, item_id, probability in zip(*table.values(), strict=True):
        found.setdefault(name, []).append((probability, titles[item_id]))
    shared = {name: values for name, values in found.items() if len(values) > 1}
    chosen = shared if len(shared) >= 2 * shown else found
    ordered = sorted(map(_example, chosen.items()), key=lambda example: (-example.probability, example.name))
    half = min(shown, len(ordered) // 2)
    return ordered[:half], ordered[::-1][:half]


def _example(entry: tuple[str, list[tuple[float, str]]]) -> Example:
    name, values = entry
    mean = sum(probability for probability, _ in values) / len(values)
    typical = sorted(values, key=lambda value: (abs(value[0] - mean), value[1]))
    return Example(name, mean, len(values), [title for _, title in typical])


def figure_rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of the main figures."""
    at = f"at probability {figures['threshold']:g}"
    rows = [
        ("AUC of the classifier", _interval(figures["auc"]), "a positive example scores higher than a negative one"),
        ("AUC of the mined confidence", _interval(figures["auc_of_confidence"]), "the same, of what the miners said"),
        ("difference", _interval(figures["auc_gain"], "+.3f"), "of the two, on the same samples of users"),
        ("AUC within an event", _interval(figures["auc_within"]), "of interests of one item, or one user, alone"),
        (
            "AUC within an event, of the confidence",
            _interval(figures["auc_of_confidence_within"]),
            "the same, of what the miners said",
        ),
        ("calibration error (ECE)", _number(figures["ece"]), "15 bins of equal width"),
        (f"precision {at}", _number(figures["precision"]), "share of accepted examples that are positive"),
        (f"recall {at}", _number(figures["recall"]), "share of positive examples that are accepted"),
        (f"accepted {at}", _number(figures["accepted"]), "share of examples"),
        ("positive", _number(figures["positive"]), "share of examples: the precision of accepting everything"),
    ]
    for key, name in (("of_items", "interests of items"), ("of_users", "interests of users")):
        rows.append(_part(name, figures[key], "these alone"))
    return [*rows, _part("items new to the classifier", figures["unseen_items"], "that no user who taught it took")]


def _part(name: str, found: dict[str, Any], meaning: str) -> tuple[str, str, str]:
    text = f"AUC {_number(found['auc'])}, ECE {_number(found['ece'])}, {found['examples']:,} examples"
    return name, text, meaning


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(found: dict[str, float | None], form: str = ".3f") -> str:
    if found["value"] is None:
        return "–"
    low, high = (format(found[name], form) for name in ("low", "high"))
    return f"{format(found['value'], form)} ({low} to {high})"


def _reliability(figures: dict[str, Any]) -> str:
    """Shares of positive examples against probabilities, the points as large as their bins are full."""
    found = figures["reliability"]
    count = np.array(found["count"])

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=TEXT, linewidth=1, linestyle="--", label="perfect")
        axes.plot(found["mean_probability"], found["positive"], color=COLORS[0], linewidth=1.5)
        sizes = 12 + 260 * count / count.max()
        axes.scatter(
            found["mean_probability"], found["positive"], sizes, COLORS[0], alpha=0.7, linewidths=0, label="bins"
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("mean probability of the bin")
        axes.set_ylabel("share of positive examples")
        axes.set_title(f"reliability (ECE {figures['ece']:.3f}; large points hold more examples)")

    return drawn(draw, "share of positive examples by probability", height=4.4)


def _thresholds(figures: dict[str, Any]) -> str:
    points = figures["thresholds"]

    def draw(axes: Axes) -> None:
        at = [point["threshold"] for point in points]
        for color, name in zip(COLORS, ("precision", "recall"), strict=False):
            values = [np.nan if point[name] is None else point[name] for point in points]
            axes.plot(at, values, color=color, label=name)
        axes.axhline(figures["positive"], color=TEXT, linewidth=1, linestyle="--", label="precision of accepting all")
        axes.axvline(figures["threshold"], color=TEXT, linewidth=1, linestyle=":", label="threshold in use")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("probability from which an interest is accepted")
        axes.set_title("precision and recall by threshold")
        axes.legend(loc="lower left", fontsize=10)

    return drawn(draw, "precision and recall by threshold", height=4.4)
