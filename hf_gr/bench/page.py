"""RESULTS.md, made wholly from the rows of finished cells."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import check_output_file, replacing
from .results import METRICS, UNSEEN, Difference, Figure, Results
from .steps import settings_of
from .suite import Cell, Suite


INTRODUCTION = """# Results

Made by `hf-gr bench`, every number from the rows in `results/`; edit nothing here. Leave-one-out: the last event of
every user is the test. Full ranking over the catalog, one target a user. There are two protocols, in tables of their
own: items of the history stay in the lists, or they are removed. Figures of the two cannot be compared. Where nobody
takes an item twice, the table without them stands first.

Figures are means ± standard deviation over seeds, of codebook and training alike. Differences are user by user over
shared seeds. Their 95 % intervals hold the chance of users and of trainings (two-way analysis of variance). *One
training* stands where one of the two sides was trained once: then the interval holds users alone, and another seed may
move the difference by some percent. A best value is **bold** only if it is ahead of every other row over more than one
training with its interval above 0. *CPU min* and *peak GB* are of the trainings, without data, vectors, codebooks,
memories and judging; item-item kNN is fitted and chosen (on the validation part) where it is judged, and its figures
hold both. Rows of other settings, or of other versions of a stage, than today's stand in a table of their own, and
nothing is compared with them.
"""


def write_page(file: Path, suites: Sequence[tuple[Suite, Results]]) -> None:
    """Writes the page of some suites."""
    parts = [INTRODUCTION, *(part for suite, results in suites for part in _suite(suite, results))]
    with replacing(check_output_file(file, is_page)) as half:
        half.write_text("\n".join(parts), encoding="utf-8")


def is_page(file: Path) -> bool:
    """Whether a file is a page of results that a grid made."""
    return file.read_text(encoding="utf-8", errors="replace").startswith(INTRODUCTION[: INTRODUCTION.index(",")])


def _suite(suite: Suite, results: Results) -> list[str]:
    parts = [f"## {suite.title}\n", f"{suite.notes.strip()}\n"] if suite.notes else [f"## {suite.title}\n"]
    parts.append(f"`hf-gr bench {suite.argument} --data DATA` runs all of it, `--cells` the cells of a row.\n")
    settings = {(cell.data, cell.method, cell.seed): settings_of(suite, cell) for cell in suite.cells()}

    def is_current(row: Mapping[str, Any]) -> bool:
        known = settings.get((row["data"], row["method"], row["seed"]), "")
        return known is None or row.get("settings") == known

    results, others = results.parted(is_current)
    for data in suite.datasets:
        methods = [method for method in suite.methods if results.of(data, method)]
        if len(suite.datasets) > 1 and (methods or any(row["data"] == data for row in others.rows)):
            parts.append(f"### {data}\n")
        if methods:
            parts += _protocols(suite, results, data, methods)
            if suite.prediction:
                parts.append(_prediction(suite, results, data, methods))
        parts.append(_others(suite, others, data))
    parts.append(_provenance(results))
    parts.append(_missing(suite, results))
    return [part for part in parts if part]


def _protocols(suite: Suite, results: Results, data: str, methods: list[str]) -> list[str]:
    """The tables of both protocols, or of the one that a suite has."""
    repeated = any(row.get("seen_targets", 1) for row in results.rows if row["data"] == data)
    unseen = [method for method in methods if results.figure(data, method, f"{UNSEEN}HR@10") is not None]
    both = [(methods, ""), (unseen, UNSEEN)] if unseen else [(methods, "")]
    parts = []
    for place, (judged, protocol) in enumerate(both if repeated else reversed(both)):
        if len(both) > 1:
            parts.append(f"Items of the history {'removed from' if protocol else 'kept in'} the lists:\n")
        parts.append(_table(suite, results, data, judged, protocol, costs=not place))
        parts.append(_differences(suite, results, data, judged, protocol))
    return parts


def _table(suite: Suite, results: Results, data: str, methods: list[str], protocol: str, *, costs: bool) -> str:
    fixed = [method for method in methods if _is_fixed(suite, method)]
    best = {name: results.best(data, protocol + name, fixed) for name in METRICS}
    priced = ["cost"] if suite.price_per_hour is not None else []
    lines = _head(["", "seeds", *METRICS, *(["CPU min", "peak GB", *priced, "cells"] if costs else [])])
    for method in methods:
        rows = results.of(data, method)
        chosen = sorted({row["chosen"] for row in rows if row.get("chosen")}) if costs else []
        cells = [_title(suite, method) + (f" ({'; '.join(chosen)})" if chosen else ""), str(len(rows))]
        for name in METRICS:
            told = _figure(results.figure(data, method, protocol + name))
            cells.append(f"**{told}**" if best[name] == method else told)
        if costs:
            cells += [_mean(rows, "train_cpu_seconds", 1 / 60, ".1f"), _mean(rows, "peak_bytes", 1e-9, ".1f")]
            if suite.price_per_hour is not None:
                cells.append(_mean(rows, "all_cpu_seconds", suite.price_per_hour / 3600, ".3f"))
            cells.append(f"`{data}/{method}-s*`")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _differences(suite: Suite, results: Results, data: str, methods: list[str], protocol: str) -> str:
    """Every method less those that the suite compares with."""
    compared = [(other, name) for other in suite.against if other in methods for name in ("NDCG@10", "HR@10")]
    if not compared or len(methods) < 2:
        return ""
    lines = _head(["", *(f"{name} less {_title(suite, other)}" for other, name in compared)])
    for method in methods:
        cells = []
        for other, name in compared:
            found = None if method == other else results.difference(data, method, other, protocol + name)
            cells.append(_difference(found, _is_fixed(suite, method) and _is_fixed(suite, other)))
        lines.append(f"| {_title(suite, method)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _others(suite: Suite, others: Results, data: str) -> str:
    """Rows of other settings or versions, which are not compared with anything."""
    methods = [method for method in suite.methods if others.of(data, method)]
    if not methods:
        return ""
    names = ["HR@10", "NDCG@10", f"{UNSEEN}HR@10", f"{UNSEEN}NDCG@10"]
    heads = ["HR@10, kept", "NDCG@10, kept", "HR@10, removed", "NDCG@10, removed", "commits"]
    lines = [f"Rows of {data} of other settings or versions:\n", *_head(["", "seeds", *heads])]
    for method in methods:
        rows = others.of(data, method)
        cells = [
            _title(suite, method),
            str(len(rows)),
            *(_figure(others.figure(data, method, name)) for name in names),
        ]
        cells.append(", ".join(sorted({str(row["commit"]) for row in rows})))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _prediction(suite: Suite, results: Results, data: str, methods: list[str]) -> str:
    lines = []
    for method in methods:
        told = []
        for name in ("HR@10", "NDCG@10"):
            figure = results.figure(data, method, name)
            if figure is not None and figure.next_run is not None:
                told.append("{:.4f} to {:.4f}".format(*figure.next_run))
        if told:
            lines.append(f"| {_title(suite, method)} | {' | '.join(told)} |")
    if not lines:
        return ""
    heads = _head(["another run is expected between (95 %)", "HR@10", "NDCG@10"])
    command = f"`hf-gr bench {suite.argument} --data DATA --check --report FILE`"
    return "\n".join([*heads, *lines, "", f"{command} runs it anew and compares; FILE is this page.", ""])


def _provenance(results: Results) -> str:
    if not results.rows:
        return ""
    names = ("commit", "hardware", "date", "versions")
    commits, machines, dates, packages = (sorted({str(row[name]) for row in results.rows}) for name in names)
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    test = _mean(results.rows, "test_seconds", 1, ".0f")
    told = [f"Judged at commits {', '.join(commits)}", when, *("; ".join(names) for names in (machines, packages))]
    return (
        f"{'; '.join(told)}. Judging a row took {test} s on average. The command lines of every stage are in the "
        "column `commands` of `results/`.\n"
    )


def _missing(suite: Suite, results: Results) -> str:
    """Cells that have no row, with the command that runs them and about how long it takes."""
    done = {(row["data"], row["method"], row["seed"]) for row in results.rows}
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in suite.cells():
        if (cell.data, cell.method, cell.seed) not in done:
            rows.setdefault((cell.data, cell.method), []).append(cell)
    if not rows:
        return ""
    lines = _head(["not run", "seeds", "command", "CPU minutes of a cell"])
    for (data, method), cells in rows.items():
        seeds = ", ".join(str(cell.seed) for cell in cells)
        command = f"hf-gr bench {suite.argument} --data DATA --cells '{data}/{method}-s*'"
        lines.append(
            f"| {data}, {_title(suite, method)} | {seeds} | `{command}` | {_estimate(suite, results, data, method)} |"
        )
    return "\n".join(lines) + "\n"


def _estimate(suite: Suite, results: Results, data: str, method: str) -> str:
    known = results.figure(data, method, "all_cpu_seconds")
    if known is not None:
        return f"{known.mean / 60:.0f}"
    told = suite.methods[method].get("estimate_minutes")
    return f"about {told}" if told is not None else "unknown"


def _mean(rows: list[dict[str, Any]], name: str, scale: float, told: str) -> str:
    """Mean of what was measured of some rows; an artifact that was there already has no time."""
    values = [row[name] for row in rows if row[name] is not None]
    return format(float(np.mean(values)) * scale, told) if values else "not measured"


def _title(suite: Suite, method: str) -> str:
    return str(suite.methods[method].get("title", method))


def _head(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"{figure.mean:.4f}" + ("" if figure.std is None else f" ± {figure.std:.4f}")


def _difference(found: Difference | None, fixed: bool) -> str:
    if found is None:
        return ""
    relative = "" if found.relative is None else f", {found.relative:+.1%}"
    once = ", one training" if found.trainings == 1 and not fixed else ""
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}){relative}{once}"


def _is_fixed(suite: Suite, method: str) -> bool:
    """Whether a method leaves nothing to chance: the suite gives it one seed of its own."""
    return len(suite.methods[method].get("seeds") or ()) == 1
