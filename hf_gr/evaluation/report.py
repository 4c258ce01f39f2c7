"""The report: one HTML file, in the style of all pages."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..pages.html import cell, charts, page, row, section, table
from . import plots
from .metrics import MISS
from .redistribution_page import STYLE as MOVED_STYLE
from .redistribution_page import redistribution_section
from .thoughts_page import STYLE, thoughts_section


@dataclass(frozen=True)
class Example:
    """One case in words: last titles of the history, first recommended titles, the truth and its rank (from 0)."""

    user: str
    history: list[str]
    recommended: list[str]
    truth: str
    rank: int


def write_report(
    file: str | Path, result: dict[str, Any], examples: list[Example], logs: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes the report. Every text in it is escaped: titles are data, whatever they hold.

    Args:
        file: HTML file to write.
        result: What [`evaluate`] returns.
        examples: Cases to show.
        logs: Name of a run → its `log_history` (entries with `step`, `loss`, `eval_loss`, `reward`, …).
    """
    systems, ks = result["systems"], result["ks"]
    main_k = _main_k(ks)
    sections = [
        _heading(result),
        section("Results", _headline(result)),
        section("By cut-off", charts(plots.curves_at_k(systems, ks, family) for family in ("HR", "NDCG"))),
        section(
            "For whom, and for what",
            "<p>By popularity of the target in training (head, mid and tail take a third of the training events each; "
            "unseen items have none), and by length of the history in events.</p>",
            charts(
                plots.bars_by_group(systems, key, f"HR@{main_k}", label)
                for key, label in (("by_popularity", "target's popularity"), ("by_history_length", "history length"))
            ),
            _beyond(systems, ks, main_k),
        ),
        *_catalogue(result["catalogue"]),
        *thoughts_section(result.get("thoughts")),
        *redistribution_section(result.get("redistribution")),
        *_training(logs),
        section(f"{len(examples)} users, drawn at random", *(_example(example) for example in examples)),
        section("How this came about", _provenance(result)),
        section("How to read it", _HOW_TO_READ),
    ]
    Path(file).write_text(page("hf_gr evaluation", sections, STYLE + MOVED_STYLE), encoding="utf-8")


_HOW_TO_READ = """
<ul>
<li><b>Full ranking.</b> Every list is drawn from the whole catalogue; no negatives are sampled. A case has one true
item.</li>
<li><b>HR@K</b> is the share of cases whose item is among the first K; <b>NDCG@K</b> gives 1 at the first place and
1/log<sub>2</sub>(place + 1) further down; <b>MRR@K</b> gives 1/place. Beyond K all give 0.</li>
<li><b>Intervals</b> are 95 % percentile intervals of 1,000 bootstrap resamples of the users. They hold the noise of
the users drawn, not that of training: another seed of the model may move the numbers further.</li>
<li><b>A star</b> marks a system that is ahead of every other one with a 95 % interval of the paired difference above
zero. No star means that the data do not say which one is best.</li>
<li><b>Item-level and SID-level.</b> Items may share a semantic ID (SID). The item-level hit is the exact item; the
SID-level hit is any item with the target's SID, ranked among the distinct SIDs of the list.</li>
<li><b>Coverage</b> is the share of the catalogue that is in at least one list; <b>Gini</b> is 0 when all items are
shown equally often and near 1 when a few take everything.</li>
<li><b>Invalid</b> answers name no item of the catalogue. They keep their place in the list.</li>
</ul>
"""


def _heading(result: dict[str, Any]) -> str:
    settings = result["settings"]
    subject = settings["model"] or settings["predictions"] or "baselines"
    sample = ", a random sample of the users" if result["sampled"] else ""
    seen = "Items of the history are never recommended." if settings["exclude_seen"] else "Seen items are not removed."
    return (
        f"<h1>Evaluation of {escape(_short(subject))}</h1>\n"
        f'<p class="soft">{escape(_short(settings["dataset"]))}, {escape(settings["split"].replace("_", "-"))} split, '
        f"{escape(settings['part'])}: {result['cases']:,} cases of {result['users']:,} users{sample}. {seen}</p>"
    )


def _short(name: str) -> str:
    return "/".join(Path(name).parts[-2:])


def _main_k(ks: list[int]) -> int:
    """The cut-off that stands for the others where there is room for one."""
    return max((k for k in ks if k <= 10), default=ks[0])


def _interval(numbers: dict[str, float], *, best: bool = False) -> str:
    mark = ' class="best"' if best else ""
    ends = f"{numbers['low']:.4f} &ndash; {numbers['high']:.4f}"
    return f'<td class="number"><span{mark}>{numbers["value"]:.4f}</span><br><small>{ends}</small></td>'


def _headline(result: dict[str, Any]) -> str:
    systems = result["systems"]
    tables = []
    for level, label in (("item", "item-level"), ("sid", "SID-level")):
        if level not in next(iter(systems.values())):
            continue
        best = result["best"] if level == "item" else {}
        families = []
        for family in ("HR", "NDCG", "MRR"):
            names = [f"{family}@{k}" for k in result["ks"]]
            numbers = {name: [(s, judged[level][name]) for s, judged in systems.items()] for name in names}
            rows = [row(n, (_interval(v, best=best.get(n) == s) for s, v in numbers[n])) for n in names]
            families.append(table([label, *systems], rows))
        tables.append(f'<div class="tables">{"".join(families)}</div>')
    details = [f"<details><summary>SID-level numbers</summary>{hidden}</details>" for hidden in tables[1:]]
    told = "".join(f"<p>{escape(note)}</p>" for note in notes(result))
    return "\n".join([tables[0], told, _differences(result), *details])


def notes(result: dict[str, Any]) -> list[str]:
    """Sentences on what was judged: where targets stand in their own histories, and which item kNN it is."""
    found = []
    lost = ": they count as missed, as seen items are removed" if result["settings"]["exclude_seen"] else ""
    found.append(f"{result['seen_targets']:.1%} of the targets stand in their own history{lost}.")
    if (knn := result.get("item kNN")) is not None:
        events = "event" if knn["window"] == 1 else "events"
        window = "however far apart" if knn["window"] is None else f"within {knn['window']} {events}"
        found.append(
            f"item kNN: pairs {window}, {knn['neighbours']} neighbours; chosen among {len(knn['trials'])} settings by "
            "NDCG@10 on the validation part."
        )
    return found


def _differences(result: dict[str, Any]) -> str:
    first, main_k = next(iter(result["systems"])), _main_k(result["ks"])
    lines = []
    for other, metrics in result["differences"].items():
        d = metrics[f"HR@{main_k}"]
        lines.append(
            f"<li>HR@{main_k} of {escape(first)} minus {escape(other)}: {d['value']:+.4f} "
            f'<span class="soft">({d["low"]:+.4f} to {d["high"]:+.4f}, paired)</span></li>'
        )
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _beyond(systems: dict[str, Any], ks: list[int], k: int) -> str:
    judged = list(systems.values())
    rows = [
        row(f"catalogue coverage @{k}", (cell(f"{j['coverage'][str(k)]:.1%}") for j in judged)),
        row(f"Gini @{k}", (cell(f"{j['gini'][str(k)]:.3f}") for j in judged)),
        row("unseen items' share of the lists", (cell(f"{j['unseen']['share_of_lists']:.1%}") for j in judged)),
        row("invalid answers", (cell(f"{j['invalid_rate']:.2%}") for j in judged)),
        row("repeated answers", (cell(f"{j['duplicate_rate']:.2%}") for j in judged)),
        row("mean length of the lists", (cell(f"{j['mean_length']:.1f}") for j in judged)),
        row("first item stands in the history", (cell(f"{j['seen_first']:.1%}") for j in judged)),
    ]
    unseen = judged[0]["unseen"]
    note = f"<p>{unseen['items']:,} items have no training event; {unseen['targets']:,} cases have such a target.</p>"
    return note + table(["beyond accuracy", *systems], rows)


def _catalogue(catalogue: dict[str, Any]) -> list[str]:
    if not catalogue:  # no model, no semantic IDs
        return []
    levels = catalogue["levels"]
    rows = [
        row(f"level {n}", (cell(f"{level['used']} of {level['size']}"), cell(f"{level['perplexity']:.1f}")))
        for n, level in enumerate(levels, 1)
    ]
    figures = (
        f"<p>{catalogue['items']:,} items on {catalogue['distinct_sids']:,} semantic IDs of {len(levels)} codes. "
        f"{catalogue['collision_rate']:.1%} of the items share theirs with another, "
        f"the fullest holds {catalogue['largest_bucket']}; "
        f"{catalogue['targets_on_shared_sid']:.1%} of the cases have a target on a shared semantic ID.</p>"
    )
    use = charts(plots.code_use(number, use) for number, use in enumerate(catalogue["items_per_code"], 1))
    return [section("Semantic IDs", figures, table(["", "codes in use", "perplexity"], rows), use)]


def _training(logs: dict[str, list[dict[str, Any]]]) -> list[str]:
    drawn = [
        plots.training_curves(run, log, wanted, label)
        for run, log in logs.items()
        for wanted, label in ((_is_loss, "loss"), (_is_reward, "reward"), (_is_measured, "validation"))
    ]
    curves = [svg for svg in drawn if svg is not None]
    return [section("Training", charts(curves))] if curves else []


def _is_loss(name: str) -> bool:
    return name in ("loss", "eval_loss")


def _is_reward(name: str) -> bool:
    return name == "reward" or (name.startswith("rewards/") and name.endswith("/mean"))


def _is_measured(name: str) -> bool:
    return name in ("eval_HR@10", "eval_HR@50", "eval_NDCG@10", "eval_NDCG@50")


def _example(example: Example) -> str:
    def entries(titles: list[str], *, mark: int = -1) -> str:
        rows = (f"<li>{_hit(title) if place == mark else escape(title)}</li>" for place, title in enumerate(titles))
        return f"<ol>{''.join(rows)}</ol>" if titles else "<p class='soft'>(none)</p>"

    found = example.rank < MISS
    shown = found and example.rank < len(example.recommended)
    place = f"found at place {example.rank + 1}" if found else "not in the list"
    return (
        f'<div class="example"><h3>User {escape(example.user)}</h3>'
        f"<div><h4>History, latest last</h4>{entries(example.history)}</div>"
        f"<div><h4>Recommended</h4>{entries(example.recommended, mark=example.rank if shown else -1)}</div>"
        f"<div><h4>Truth</h4><p>{_hit(example.truth) if shown else escape(example.truth)}<br>"
        f'<span class="soft">{place}</span></p></div></div>'
    )


def _hit(title: str) -> str:
    return f'<span class="hit">{escape(title)}</span>'


def _provenance(result: dict[str, Any]) -> str:
    def rows(facts: dict[str, Any]) -> list[str]:
        texts = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in facts.items())
        return [f"<tr><th>{escape(name)}</th><td><code>{escape(text)}</code></td></tr>" for name, text in texts]

    both = rows(result["provenance"]) + rows(result["settings"])
    return f'<div class="scroll"><table><tbody>{"".join(both)}</tbody></table></div>'
