"""The page that `hf-gr inspect` writes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.ticker import StrMethodFormatter

from ..artifacts import check_output_file, replacing
from ..pages.html import Cell, as_texts, is_ours, render
from ..pages.svg import COLORS, TEXT, drawn
from .inspection import Inspection, group_rows, headline, level_cells
from .measures import BY_LEVEL, OVERALL, Measure


_STRIP = 256  # cells of a heat strip at most: larger codebooks are told by groups of codes
_BEFORE = "before collisions were resolved"
_GROUP_HEADER = ["codebooks of", "pairs", "redundancy", "by chance", "adjusted"]
_ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def write_inspection_page(file: str | Path, found: Inspection) -> Path:
    """Writes what [`inspect`] found as one HTML file that loads nothing and needs no script.

    Returns:
        The file: `file`, or `inspection.html` in it if it is a folder.
    """
    file = Path(file)
    if file.is_dir():
        file = file / "inspection.html"
    values = {
        "title": f"SIDs of {found.name}",
        "name": found.name,
        "headline": headline(found),
        "overall": _overall(found),
        "by_level": _by_level(found),
        "strips": [_strip(name, counts) for name, counts in zip(found.level_names, found.items_per_code, strict=True)],
        "use": [_balance(found), _buckets(found)],
        "kept": _kept(found),
        "losses": [_losses(found.fit_log)] if found.fit_log else [],
        "clusters": found.clusters,
        "group_table": (_GROUP_HEADER, [(row[0], row[1:]) for row in group_rows(found)]) if found.groups else None,
        "codebooks": list(zip(found.level_names, found.by_codebook, strict=False)),  # a digit means nothing
        "settings": as_texts(found.settings),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(check_output_file(file, is_ours)) as half:
        half.write_text(render("quantizers/templates/inspection.html.jinja", **values), encoding="utf-8")
    return file


def _name(measure: Measure) -> Cell:
    return Cell(measure.name + _ARROWS[measure.better], measure.meaning)


def _overall(found: Inspection) -> tuple[list[str], list[tuple[Cell, list[str]]]]:
    """The table of the whole catalog, beside that of the quantizer's own codes."""
    reports = [found.catalog] if found.quantizer is None else [found.catalog, found.quantizer]
    values = {measure: [measure.value(report) for report in reports] for measure in OVERALL}
    rows = [
        (_name(measure), [measure.text(value) for value in told])
        for measure, told in values.items()
        if told[0] is not None
    ]
    return ["overall", "catalog", _BEFORE][: len(reports) + 1], rows


def _by_level(found: Inspection) -> tuple[list[str], list[tuple[Cell, list[Cell]]]]:
    """The table by level; small: the quantizer's own codes."""
    cells = {measure: level_cells(measure, found) for measure in BY_LEVEL}
    rows = [(_name(measure), [Cell(now, before) for now, before in told]) for measure, told in cells.items() if told]
    return ["by level", *found.level_names], rows


def _strip(level: str, items_per_code: list[int]) -> str:
    """Items of the codes of one level as a strip, the fullest code first."""
    counts = np.sort(items_per_code)[::-1]
    groups = np.array_split(counts, min(len(counts), _STRIP))
    load = np.array([group.mean() for group in groups]) / max(counts.mean(), 1e-12)
    shades = [(*to_rgba(COLORS[0])[:3], alpha) for alpha in np.linspace(0.08, 1, 64)]

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        values = np.ma.masked_where(load == 0, load)[None]
        edges = np.linspace(0, len(counts), len(groups) + 1)
        axes.axvspan(edges[int((load > 0).sum())], len(counts), color=COLORS[1], linewidth=0)
        axes.pcolormesh(edges, [0, 1], values, cmap=ListedColormap(shades), vmin=0, vmax=4, linewidth=0)
        axes.set_yticks([])
        axes.set_xlim(0, len(counts))
        axes.spines[["left", "bottom"]].set_visible(False)
        used = int((counts > 0).sum())
        axes.set_title(
            f"level {level}: {used:,} of {len(counts):,} codes, {counts[0]:,} items on the fullest", loc="left"
        )

    return drawn(draw, f"load of the codes of level {level}", width=13, height=0.95)


def _balance(found: Inspection) -> str:
    levels = found.catalog["levels"]

    def draw(axes: Axes) -> None:
        at = np.arange(len(levels))
        series = {
            "codes in use": [level["use"] for level in levels],
            "perplexity ÷ codes": [level["perplexity"] / level["size"] for level in levels],
        }
        for index, (name, values) in enumerate(series.items()):
            axes.bar(at + (index - 0.5) * 0.38, values, 0.36, color=COLORS[index], label=name)
        for place, level in zip(at, levels, strict=True):
            axes.text(float(place), 1.03, f"skew {level['skew']:.1f}", ha="center", fontsize=10)
        axes.set_xticks(at, [f"level {name}" for name in found.level_names])
        axes.set_ylim(0, 1.3)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_title("balance of the codes")
        axes.legend(loc="upper center", ncols=2, fontsize=10)

    return drawn(draw, "share of codes in use and perplexity by level")


def _buckets(found: Inspection) -> str:
    """How many SIDs hold 1, 2, … items."""
    kinds = {"catalog": found.catalog} | ({_BEFORE: found.quantizer} if found.quantizer else {})

    def draw(axes: Axes) -> None:
        for index, (name, report) in enumerate(kinds.items()):
            items, sids = np.array(report["bucket_sizes"]).T
            axes.plot(
                items, sids, marker="o", markersize=5, linestyle="none", color=COLORS[index], label=name, alpha=0.85
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if max(report["largest_bucket"] for report in kinds.values()) > 50:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        else:
            axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0.7)
        axes.set_xlabel("items on one SID")
        axes.set_ylabel("SIDs")
        axes.set_title("bucket sizes")
        axes.legend(loc="upper right", fontsize=10)

    return drawn(draw, "SIDs by the number of their items")


def _kept(found: Inspection) -> list[str]:
    """Plots of what codes keep of the items; none where neither vectors nor events are known."""
    plots = []
    if "error" in found.catalog:
        lines = {"catalog": found.catalog["error"]}
        if found.quantizer is not None:
            lines[_BEFORE] = found.quantizer["error"]
            lines["codes alone"] = found.quantizer["error_of_codes"]
        plots.append(_by_prefix(lines, "error by number of codes", "‖x − x̂‖² ÷ ‖x − mean‖²"))
    if "semantic_cohesion" in found.catalog:
        plots.append(_cohesion(found.catalog))
    for kind, who in (("nearest_overlap", "nearest in vector space"), ("cooccurrence_overlap", "used together")):
        if kind in found.catalog:
            overlap = found.catalog[kind]
            lines = {"catalog": overlap["overlap"]}
            if found.quantizer is not None:
                lines[_BEFORE] = found.quantizer[kind]["overlap"]
            title = f"{found.k} items {who}"
            plots.append(_by_prefix(lines, title, "share with the same codes", chance=overlap["chance"]))
    return plots


def _by_prefix(lines: dict[str, list[float]], title: str, label: str, chance: list[float] | None = None) -> str:
    shown: dict[str, list[float]] = {}
    for name, values in lines.items():
        if values not in shown.values():  # one line, by its first name, for what is the same
            shown[name] = values

    def draw(axes: Axes) -> None:
        at = np.arange(1, len(next(iter(shown.values()))) + 1)
        for index, (name, values) in reversed(list(enumerate(shown.items()))):
            axes.plot(at, values, marker="o", color=COLORS[index], label=name)
        if chance is not None:
            axes.plot(at, chance, color=TEXT, linewidth=1, linestyle="--", label="by chance")
        _codes_axis(axes, len(at))
        axes.set_ylim(0, 1.1 * max([*itertools.chain(*shown.values(), chance or []), 1e-3]))
        axes.set_ylabel(label)
        axes.set_title(title)
        axes.legend(loc="best", fontsize=10)

    return drawn(draw, title)


def _cohesion(report: dict[str, Any]) -> str:
    def draw(axes: Axes) -> None:
        names = {"semantic_cohesion": "within prefixes (cohesion)", "preference_discrimination": "between prefixes"}
        for index, (key, name) in enumerate(names.items()):
            values = [np.nan if value is None else value for value in report[key]]
            axes.plot(np.arange(1, len(values) + 1), values, marker="o", color=COLORS[index], label=name)
        axes.axhline(report["mean_cosine"], color=TEXT, linewidth=1, linestyle="--", label="any two items")
        _codes_axis(axes, len(report["semantic_cohesion"]))
        axes.set_ylabel("mean cosine")
        axes.set_title("cohesion and discrimination")
        axes.legend(loc="best", fontsize=10)

    return drawn(draw, "cosine within and between prefixes by number of codes")


def _codes_axis(axes: Axes, levels: int) -> None:
    axes.set_xticks(range(1, levels + 1))
    axes.set_xlim(0.8, levels + 0.2)
    axes.set_xlabel("first codes")


def _losses(log: list[dict[str, float]]) -> str:
    def draw(axes: Axes) -> None:
        for index, name in enumerate(dict.fromkeys(name for entry in log for name in entry)):
            points = [(epoch, entry[name]) for epoch, entry in enumerate(log, 1) if name in entry]
            axes.plot(*zip(*points, strict=True), color=COLORS[index % len(COLORS)], label=name)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel("part of the loss")
        axes.set_title("losses of the fit")
        axes.legend(loc="best", fontsize=10)

    return drawn(draw, "parts of the loss over epochs")
