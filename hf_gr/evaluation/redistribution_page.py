"""The report's section on redistribution: how far items moved from their SIDs, and where to."""

from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..pages.html import cell, row, section, table
from ..pages.svg import COLOURS, TEXT, drawn


STYLE = """
table.moved { font-size: .92rem; } .moved td { min-width: 12rem; overflow-wrap: anywhere; }
.moved .codes { min-width: 0; white-space: nowrap; } .moved .hit { margin: 0; padding: 0 .15rem; }
.moved td div + div { margin-top: .3rem; }
"""

_EXPLAINED = """<p>In a history an item is read as the sum of codes that the model learned for it. They start as the
item's semantic ID; training moves them toward how the item is used. Recommendations are named by semantic IDs, which
never change. Groups by popularity hold a fifth of the training events each; items without any are by themselves. An
item that training seldom reads is seldom pulled to its semantic ID, and may have moved only because the codes
did.</p>"""
_EXAMPLES = """<p>The most popular items that moved. Marked: learned codes that are not the semantic ID's. Beside them
the items whose own semantic IDs share the most codes with the learned ones: that is where the item is now.</p>"""


def redistribution_section(found: dict[str, Any] | None) -> list[str]:
    """The section, of what [`judge_redistribution`] returns; none for a model without learned codes. Titles are data
    and escaped."""
    if found is None:
        return []
    everyone, groups = found["all"], found["by_popularity"]
    header = ["share moved, by training events", "all items", *map(_events, groups), "mean probability"]
    rows = [
        row(f"level {level + 1}", [*_shares(everyone, groups, level), cell(f"{probability:.3f}")])
        for level, probability in enumerate(found["probability"])
    ]
    rows.append(row("any level", [*(cell(f"{part['moved']:.1%}") for part in (everyone, *groups)), cell("")]))
    examples = [_EXAMPLES, _examples(found["examples"])] if found["examples"] else []
    return [
        section("Where items moved", _EXPLAINED, table(header, rows), _collisions(found), _chart(found), *examples)
    ]


def _shares(everyone: dict[str, Any], groups: list[dict[str, Any]], level: int) -> list[str]:
    return [cell(f"{part['levels'][level]:.1%}") for part in (everyone, *groups)]


def _events(group: dict[str, Any]) -> str:
    low, high = group["events"]
    return f"{low:,}–{high:,}" if low < high else f"{low:,}"


def _collisions(found: dict[str, Any]) -> str:
    items = found["all"]["items"]
    learned, sids = found["distinct_learned"], found["distinct_sids"]
    return (
        f"<p>{items:,} items are read as {learned:,} distinct sets of codes ({learned / items:.1%}); they have "
        f"{sids:,} distinct semantic IDs ({sids / items:.1%}).</p>"
    )


def _chart(found: dict[str, Any]) -> str:
    parts = [found["all"], *found["by_popularity"]]
    names = ["all items", *(f"{_events(part)} events" for part in found["by_popularity"])]

    def draw(axes: Axes) -> None:
        shares, at = np.array([part["changed"] for part in parts]), np.arange(len(parts))
        levels, below = shares.shape[1] - 1, np.zeros(len(parts))
        for count, share in enumerate(shares.T):
            colour, alpha = (COLOURS[0], 1 - 0.7 * (levels - count) / levels) if count else (TEXT, 0.12)
            label = f"{count} code{'s' * (count != 1)} changed" if count else "none changed"
            axes.bar(at, share, 0.7, below, color=colour, alpha=alpha, linewidth=0, label=label)
            below += share
        axes.set_xticks(at, [f"{name}\n({part['items']:,} items)" for name, part in zip(names, parts, strict=True)])
        axes.set_ylabel("share of the items")
        axes.set_ylim(0, 1)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=levels + 1, fontsize=10)

    return f"<figure>{drawn(draw, 'changed codes by popularity', width=13)}</figure>"


def _examples(examples: list[dict[str, Any]]) -> str:
    header = "".join(f"<th>{name}</th>" for name in ("item", "semantic ID", "learned codes", "nearest to these"))
    rows = "".join(map(_example, examples))
    head = f"<thead><tr>{header}</tr></thead>"
    return f'<div class="scroll"><table class="moved">{head}<tbody>{rows}</tbody></table></div>'


def _example(example: dict[str, Any]) -> str:
    own, learned = example["sid"], example["learned"]
    codes = ", ".join(
        str(code) if code == before else f'<span class="hit">{code}</span>'
        for code, before in zip(learned, own, strict=True)
    )
    nearest = "".join(
        f'<div>{escape(other["title"])} <small class="soft">{_codes(other["sid"])}; {other["shared"]} of '
        f"{len(own)} shared</small></div>"
        for other in example["nearest"]
    )
    return (
        f'<tr><td>{escape(example["title"])} <small class="soft">{example["events"]:,} events</small></td>'
        f'<td class="codes">{_codes(own)}</td><td class="codes">{codes}</td><td>{nearest}</td></tr>'
    )


def _codes(codes: list[int]) -> str:
    return ", ".join(map(str, codes))
