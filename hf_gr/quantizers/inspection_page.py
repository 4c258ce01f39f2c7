"""The page that `hf-gr inspect` writes."""

import itertools
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.ticker import StrMethodFormatter

from ..artifacts import check_output_file, replacing
from ..pages.html import cell, charts, is_ours, page, section, table
from ..pages.svg import COLOURS, TEXT, drawn
from .clusters import Cluster
from .inspection import Inspection, headline, level_cells
from .measures import BY_LEVEL, OVERALL, Measure


_STRIP = 256  # cells of a heat strip at most: larger codebooks are told by groups of codes
_BEFORE = "before collisions were resolved"
_STYLE = """
.strips { display: grid; gap: .6rem; margin: 1rem 0 1.6rem; }
th small { font-weight: 400; color: var(--soft); display: block; max-width: 28rem; } h1 { overflow-wrap: anywhere; }
.clusters { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.cluster { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1.1rem;
           font-size: .9rem; overflow-wrap: anywhere; }
.cluster h3 { margin: 0 0 .2rem; font-size: 1rem; } .cluster ul { margin: .3rem 0 0; padding-left: 1.1rem; }
.cluster p { margin: .2rem 0; } .cluster li { margin: .25rem 0; }
.words { font-weight: 600; }
"""


def write_inspection_page(file: str | Path, found: Inspection) -> Path:
    """Writes what [`inspect`] found as one HTML file that loads nothing and needs no script.

    Returns:
        The file: `file`, or `inspection.html` in it if it is a folder.
    """
    file = Path(file)
    if file.is_dir():
        file = file / "inspection.html"
    sections = [
        _heading(found),
        section("The numbers", _NOTE, _overall(found), "<br>", _by_level(found)),
        section("Which codes are used", _USE_NOTE, _strips(found), charts([_balance(found), _buckets(found)])),
        *_vector_sections(found),
        *([section("How it was fitted", charts([_losses(found.fit_log)]))] if found.fit_log else []),
        section("What codes mean", _MEANING_NOTE, _clusters(found.clusters)),
        *([section("How this came about", _settings(found.settings))] if found.settings else []),
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(check_output_file(file, is_ours)) as half:
        half.write_text(page(f"SIDs of {found.name}", sections, _STYLE), encoding="utf-8")
    return file


_NOTE = (
    "<p>Arrows say which way is better; overlaps compare codebooks of one size only. By level, the columns are levels "
    "for the use of codes, and prefixes of 1, 2, … codes for everything below it. Small numbers are the quantizer's "
    "own codes, before collisions were resolved, where they read otherwise.</p>"
)
_USE_NOTE = (
    "<p>Every cell of a strip is a code (or a few neighbours, of a large codebook), the fullest first. The stronger "
    "its blue, the more items it has, up to four times the even share; codes without any are orange.</p>"
)
_MEANING_NOTE = (
    "<p>The first codes with the most items. Words tell a code from its neighbours: many of its items have them, and "
    "few others do (class-based TF-IDF). Titles are the most typical ones. Indented: the largest codes below.</p>"
)


def _heading(found: Inspection) -> str:
    first, *others = headline(found)
    more = "".join(f"<li>{escape(line)}</li>" for line in others)
    return f"<h1>Semantic IDs of {escape(found.name)}</h1>\n<p>{escape(first)}</p>\n<ul>{more}</ul>"


def _row(measure: Measure, cells: list[str]) -> str:
    arrow = {"higher": " &uarr;", "lower": " &darr;", "": ""}[measure.better]
    return f"<tr><th>{escape(measure.name)}{arrow}<small>{escape(measure.meaning)}</small></th>{''.join(cells)}</tr>"


def _overall(found: Inspection) -> str:
    reports = [found.catalogue] if found.quantizer is None else [found.catalogue, found.quantizer]
    rows = []
    for measure in OVERALL:
        values = [measure.value(report) for report in reports]
        if values[0] is not None:
            rows.append(_row(measure, [cell(measure.text(value)) for value in values]))
    return table(["overall", "catalogue", _BEFORE][: len(reports) + 1], rows)


def _by_level(found: Inspection) -> str:
    rows = []
    for measure in BY_LEVEL:
        cells = level_cells(measure, found)
        if cells:
            texts = (f"{now}<br><small>{before}</small>" if before else now for now, before in cells)
            rows.append(_row(measure, [cell(text) for text in texts]))
    return table(["by level", *(str(number) for number in range(1, len(found.catalogue["levels"]) + 1))], rows)


def _strips(found: Inspection) -> str:
    strips = (f"<figure>{_strip(number, counts)}</figure>" for number, counts in enumerate(found.items_per_code, 1))
    return f'<div class="strips">{"".join(strips)}</div>'


def _strip(level: int, items_per_code: list[int]) -> str:
    """Items of the codes of one level as a strip, the fullest code first."""
    counts = np.sort(items_per_code)[::-1]
    groups = np.array_split(counts, min(len(counts), _STRIP))
    load = np.array([group.mean() for group in groups]) / max(counts.mean(), 1e-12)
    shades = [(*to_rgba(COLOURS[0])[:3], alpha) for alpha in np.linspace(0.08, 1, 64)]

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        values = np.ma.masked_where(load == 0, load)[None]
        edges = np.linspace(0, len(counts), len(groups) + 1)
        axes.axvspan(edges[int((load > 0).sum())], len(counts), color=COLOURS[1], linewidth=0)
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
    levels = found.catalogue["levels"]

    def draw(axes: Axes) -> None:
        at = np.arange(len(levels))
        series = {
            "codes in use": [level["use"] for level in levels],
            "perplexity ÷ codes": [level["perplexity"] / level["size"] for level in levels],
        }
        for index, (name, values) in enumerate(series.items()):
            axes.bar(at + (index - 0.5) * 0.38, values, 0.36, color=COLOURS[index], label=name)
        for place, level in zip(at, levels, strict=True):
            axes.text(float(place), 1.03, f"skew {level['skew']:.1f}", ha="center", fontsize=10)
        axes.set_xticks(at, [f"level {number}" for number in range(1, len(levels) + 1)])
        axes.set_ylim(0, 1.3)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_title("balance of the codes")
        axes.legend(loc="upper center", ncols=2, fontsize=10)

    return drawn(draw, "share of codes in use and perplexity by level")


def _buckets(found: Inspection) -> str:
    """How many SIDs hold 1, 2, … items."""
    kinds = {"catalogue": found.catalogue} | ({_BEFORE: found.quantizer} if found.quantizer else {})

    def draw(axes: Axes) -> None:
        for index, (name, report) in enumerate(kinds.items()):
            items, sids = np.array(report["bucket_sizes"]).T
            axes.plot(
                items, sids, marker="o", markersize=5, linestyle="none", color=COLOURS[index], label=name, alpha=0.85
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


def _vector_sections(found: Inspection) -> list[str]:
    plots = []
    if "error" in found.catalogue:
        lines = {"catalogue": found.catalogue["error"]}
        if found.quantizer is not None:
            lines[_BEFORE] = found.quantizer["error"]
            lines["codes alone"] = found.quantizer["error_of_codes"]
        plots.append(_by_prefix(lines, "error by number of codes", "‖x − x̂‖² ÷ ‖x − mean‖²"))
    if "semantic_cohesion" in found.catalogue:
        plots.append(_cohesion(found.catalogue))
    for kind, who in (("nearest_overlap", "nearest in vector space"), ("cooccurrence_overlap", "used together")):
        if kind in found.catalogue:
            overlap = found.catalogue[kind]
            lines = {"catalogue": overlap["overlap"]}
            if found.quantizer is not None:
                lines[_BEFORE] = found.quantizer[kind]["overlap"]
            title = f"{found.k} items {who}"
            plots.append(_by_prefix(lines, title, "share with the same codes", chance=overlap["chance"]))
    return [section("What codes keep of the items", charts(plots))] if plots else []


def _by_prefix(lines: dict[str, list[float]], title: str, label: str, chance: list[float] | None = None) -> str:
    shown: dict[str, list[float]] = {}
    for name, values in lines.items():
        if values not in shown.values():  # one line, by its first name, for what is the same
            shown[name] = values

    def draw(axes: Axes) -> None:
        at = np.arange(1, len(next(iter(shown.values()))) + 1)
        for index, (name, values) in reversed(list(enumerate(shown.items()))):
            axes.plot(at, values, marker="o", color=COLOURS[index], label=name)
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
            axes.plot(np.arange(1, len(values) + 1), values, marker="o", color=COLOURS[index], label=name)
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
            axes.plot(*zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], label=name)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel("part of the loss")
        axes.set_title("losses of the fit")
        axes.legend(loc="best", fontsize=10)

    return drawn(draw, "parts of the loss over epochs")


def _clusters(clusters: list[Cluster]) -> str:
    return f'<div class="clusters">{"".join(_cluster(cluster) for cluster in clusters)}</div>'


def _cluster(cluster: Cluster) -> str:
    below = "".join(
        f"<li>{_name(inner)} {_words(inner)}<br><span class='soft'>{_titles(inner.titles[:2])}</span></li>"
        for inner in cluster.below
    )
    return (
        f'<div class="cluster"><h3>{_name(cluster)}</h3><p>{_words(cluster)}</p>'
        f"<p class='soft'>{_titles(cluster.titles)}</p>{f'<ul>{below}</ul>' if below else ''}</div>"
    )


def _name(cluster: Cluster) -> str:
    items = "1 item" if cluster.items == 1 else f"{cluster.items:,} items"
    return f"<code>{' '.join(map(str, cluster.prefix))}</code> <span class='soft'>{items}</span>"


def _words(cluster: Cluster) -> str:
    return f'<span class="words">{escape(", ".join(cluster.words))}</span>'


def _titles(titles: list[str]) -> str:
    return escape(" · ".join(title if len(title) <= 60 else title[:57] + "…" for title in titles))


def _settings(settings: dict[str, Any]) -> str:
    rows = (
        f"<tr><th>{escape(name)}</th><td><code>{escape(json.dumps(value, ensure_ascii=False))}</code></td></tr>"
        for name, value in settings.items()
    )
    return f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'
