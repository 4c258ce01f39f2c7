"""The plots of the report, as inline SVG."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..pages.svg import COLORS, TEXT, drawn


Numbers = dict[str, Any]


def curves_at_k(systems: dict[str, Numbers], ks: list[int], family: str) -> str:
    """One metric over K with its 95 % band, a line for each system."""

    def draw(axes: Axes) -> None:
        at = np.arange(len(ks))
        for color, (name, judged) in zip(_colors(systems), systems.items(), strict=True):
            numbers = [judged["item"][f"{family}@{k}"] for k in ks]
            axes.plot(at, [n["value"] for n in numbers], marker="o", color=color, label=name)
            low, high = [n["low"] for n in numbers], [n["high"] for n in numbers]
            axes.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)
        axes.set_xticks(at, [str(k) for k in ks])
        axes.set_xlabel("K")
        axes.set_ylabel(f"{family}@K")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")

    return drawn(draw, f"{family}@K of every system")


def bars_by_group(systems: dict[str, Numbers], key: str, metric: str, label: str) -> str:
    """One metric by group of cases with its 95 % interval, a bar for each system."""

    def draw(axes: Axes) -> None:
        groups = next(iter(systems.values()))[key]
        shown = [name for name, numbers in groups.items() if numbers["cases"]]
        at, width = np.arange(len(shown)), 0.8 / len(systems)
        for index, (color, (name, judged)) in enumerate(zip(_colors(systems), systems.items(), strict=True)):
            numbers = [judged[key][group][metric] for group in shown]
            value = np.array([n["value"] for n in numbers])
            ends = np.abs(np.array([[n["low"] for n in numbers], [n["high"] for n in numbers]]) - value)
            place = at + (index - (len(systems) - 1) / 2) * width
            axes.bar(place, value, width * 0.92, color=color, label=name)
            axes.errorbar(place, value, ends, fmt="none", ecolor=TEXT, elinewidth=1, capsize=2)
        axes.set_xticks(at, [f"{group}\n({groups[group]['cases']:,} cases)" for group in shown])
        axes.set_xlabel(label)
        axes.set_ylabel(metric)
        axes.margins(y=0.25)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper center", ncols=len(systems), fontsize=10)

    return drawn(draw, f"{metric} by {label}")


def code_use(level: int, use: list[int]) -> str:
    """Items on each code of one level, the fullest code first."""

    def draw(axes: Axes) -> None:
        counts = np.sort(use)[::-1]
        axes.fill_between(np.arange(len(counts) + 1), np.append(counts, 0), step="post", color=COLORS[0], linewidth=0)
        axes.axhline(counts.mean(), color=TEXT, linewidth=1, linestyle="--", label="evenly used")
        axes.set_xlim(0, len(counts))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("codes, fullest first")
        axes.set_ylabel("items")
        axes.set_title(f"level {level}")
        axes.legend(loc="upper right")

    return drawn(draw, f"use of the codes of level {level}", height=2.8)


def training_curves(run: str, log: list[dict[str, Any]], wanted: Callable[[str], bool], label: str) -> str | None:
    """The logged values of one run whose name is `wanted`, over steps; `None` where there are none."""
    lines = {}
    for name in dict.fromkeys(name for entry in log for name in entry if wanted(name)):
        lines[name] = [(entry["step"], entry[name]) for entry in log if name in entry]
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        for index, (name, points) in enumerate(lines.items()):
            marker = "o" if len(points) < 12 else None
            color = COLORS[index % len(COLORS)]
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, color=color, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.set_title(run)
        axes.legend(loc="best", fontsize=10)

    return drawn(draw, f"{label} of {run} over training steps")


def _colors(systems: dict[str, Numbers]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(systems))]
