"""The report's section on thoughts: whether they come true, and some of them in words."""

from html import escape
from typing import Any

from ..pages.html import cell, row, section, table


STYLE = """
.thought { margin: .5rem 0 0; } .thoughts { grid-column: 1 / -1; display: grid; gap: .2rem 2rem;
           grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.pointed { display: grid; grid-template-columns: 4rem 2.6rem 1fr; gap: .5rem; align-items: baseline; }
.pointed .share { text-align: right; font-variant-numeric: tabular-nums; color: var(--soft); }
.bar { background: var(--line); border-radius: 3px; height: .55rem; }
.bar i { display: block; background: #3b7dd8; border-radius: 3px; height: 100%; }
"""

_EXPLAINED = """<p>Before each code the model thinks: the thought points at coarse clusters of items. A thought comes
true where the cluster that it points at first is the one of what follows: of the code in the model's first answer, or,
read along the true item's codes, of that item's. Always naming the cluster that is most frequent among the true items
is what a thought has to beat; it is chosen with those items known.</p>"""
_MARKED = """<p>What each thought of the item recommended first was on, in the words that tell a cluster's items from
others. Marked: the cluster that the item's code, or the item itself, is of.</p>"""


def thoughts_section(thoughts: dict[str, Any] | None) -> list[str]:
    """The section, of what [`judge_thoughts`] returns; none for a model without thoughts. Titles and words are data
    and escaped."""
    if thoughts is None:
        return []
    header = ["", "of the first answer", "of the truth", "always the most frequent", "truth less most frequent"]
    rows = [row(f"thought {level['level']}", _cells(level)) for level in thoughts["levels"]]
    if thoughts["interest"] is not None:
        rows.append(row("global interest", _cells(thoughts["interest"])))
    return [
        section(
            "Thoughts",
            _EXPLAINED,
            table(header, rows),
            f'<p class="soft">{thoughts["cases"]:,} cases; 95 % bootstrap intervals over users.</p>',
            f"<h3>{len(thoughts['examples'])} users, drawn at random</h3>",
            _MARKED,
            *map(_example, thoughts["examples"]),
        )
    ]


def _cells(shares: dict[str, Any]) -> list[str]:
    return [
        *(_share(shares[name], ".1%") for name in ("top_item", "truth", "most_frequent")),
        _share(shares["difference"], "+.1%"),
    ]


def _share(share: dict[str, float], form: str) -> str:
    low, high = format(share["low"], form), format(share["high"], form)
    return cell(f"{format(share['value'], form)}<br><small>{low} &ndash; {high}</small>")


def _example(example: dict[str, Any]) -> str:
    history = "".join(f"<li>{escape(title)}</li>" for title in example["history"])
    thoughts = example["thoughts"]
    told = [_thought(f"Thought {level['level']}", level, level["code_cluster"]) for level in thoughts["levels"]]
    if thoughts["interest"] is not None:
        told.insert(0, _thought("Global interest", thoughts["interest"], thoughts["interest"]["item_cluster"]))
    truth = '<span class="hit">the same</span>' if example["hit"] else escape(example["truth"])
    return (
        f'<div class="example"><h3>User {escape(example["user"])}</h3>'
        f"<div><h4>History, latest last</h4>{f'<ol>{history}</ol>' if history else '<p>(none)</p>'}</div>"
        f"<div><h4>Recommended first</h4><p>{escape(example['recommended'])}</p></div>"
        f"<div><h4>Truth</h4><p>{truth}</p></div>"
        f'<div class="thoughts">{"".join(told)}</div></div>'
    )


def _thought(name: str, thought: dict[str, Any], own: dict[str, Any]) -> str:
    """Bars of the clusters, and below them that of what was written where it is not among them."""
    lines = [_pointed(cluster, cluster["cluster"] == own["cluster"]) for cluster in thought["clusters"]]
    if all(cluster["cluster"] != own["cluster"] for cluster in thought["clusters"]):
        lines.append(_pointed(own, True))
    return f'<div class="thought"><h4>{name}</h4>{"".join(lines)}</div>'


def _pointed(cluster: dict[str, Any], written: bool) -> str:
    words, share = escape(", ".join(cluster["words"]) or f"cluster {cluster['cluster']}"), cluster["probability"]
    told = f'<b class="hit">{words}</b>' if written else words
    return (
        f'<div class="pointed"><div class="bar"><i style="width:{share:.1%}"></i></div>'
        f'<span class="share">{share:.0%}</span><span>{told}</span></div>'
    )
