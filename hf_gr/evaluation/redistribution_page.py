"""The report's section on redistribution: how far items moved from their SIDs, and where to."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..pages.html import render
from ..pages.svg import COLORS, TEXT, drawn


def redistribution_section(found: dict[str, Any] | None) -> str:
    """Writes the section of what [`judge_redistribution`] returns; it is empty for a model without learned codes."""
    if found is None:
        return ""
    parts = [found["all"], *found["by_popularity"]]
    rows = [
        (f"level {level + 1}", [*(f"{part['levels'][level]:.1%}" for part in parts), f"{probability:.3f}"])
        for level, probability in enumerate(found["probability"])
    ]
    values = {
        "header": [
            "share moved, by training events",
            "all items",
            *map(_events, found["by_popularity"]),
            "mean probability",
        ],
        "rows": [*rows, ("any level", [*(f"{part['moved']:.1%}" for part in parts), ""])],
        "items": found["all"]["items"],
        "learned": found["distinct_learned"],
        "sids": found["distinct_sids"],
        "chart": _chart(found),
        "examples": found["examples"],
    }
    return render("evaluation/templates/redistribution.html.jinja", **values)


def _events(group: dict[str, Any]) -> str:
    low, high = group["events"]
    return f"{low:,}–{high:,}" if low < high else f"{low:,}"


def _chart(found: dict[str, Any]) -> str:
    parts = [found["all"], *found["by_popularity"]]
    names = ["all items", *(f"{_events(part)} events" for part in found["by_popularity"])]

    def draw(axes: Axes) -> None:
        shares, at = np.array([part["changed"] for part in parts]), np.arange(len(parts))
        levels, below = shares.shape[1] - 1, np.zeros(len(parts))
        for count, share in enumerate(shares.T):
            color, alpha = (COLORS[0], 1 - 0.7 * (levels - count) / levels) if count else (TEXT, 0.12)
            label = f"{count} code{'s' * (count != 1)} changed" if count else "none changed"
            axes.bar(at, share, 0.7, below, color=color, alpha=alpha, linewidth=0, label=label)
            below += share
        axes.set_xticks(at, [f"{name}\n({part['items']:,} items)" for name, part in zip(names, parts, strict=True)])
        axes.set_ylabel("share of the items")
        axes.set_ylim(0, 1)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=levels + 1, fontsize=10)

    return drawn(draw, "changed codes by popularity", width=13)
