"""RESULTS.md, made wholly from the rows of finished cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import check_output_file, replacing
from .results import METRICS, SHORT, Difference, Figure, Results
from .suite import Cell, Suite


INTRODUCTION = """# Results

Made by `hf-gr bench`, every number from the rows in `results/`; edit nothing here. Leave-one-out: the last event of
every user is the test. Full ranking over the catalog, one target a user, items of the history not removed unless a
table says so. Mean ± standard deviation over seeds, of codebook and training alike. Differences are user by user over
shared seeds, with 95 % bootstrap intervals over users; a best value is **bold** only if it is ahead of every other row
with its interval above 0. The intervals do not hold the noise of training: another seed may move a difference by some
percent, so what rests on one seed is undecided below 5 to 8 %. *CPU min* and *peak GB* are of the trainings, without
data, vectors, codebooks and judging; item-item kNN is fitted where it is judged, and its figures hold both. Its window
and neighbours are chosen on the validation part. SFT rows are of the last step, as their recipes evaluate nothing on
the way; GRPO and BSARec keep the checkpoint with the best NDCG@10 of validation users.
Studies that were made one by one are in [STUDIES.md](STUDIES.md).
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
    for data in suite.datasets:
        methods = [method for method in suite.methods if results.of(data, method)]
        if methods:
            if len(suite.datasets) > 1:
                parts.append(f"### {data}\n")
            parts += [_table(suite, results, data, methods), _unseen(suite, results, data, methods)]
            if suite.prediction:
                parts.append(_prediction(suite, results, data, methods))
    parts.append(_provenance(results))
    parts.append(_missing(suite, results))
    return [part for part in parts if part]


def _table(suite: Suite, results: Results, data: str, methods: list[str]) -> str:
    compared = [name for name in ("NDCG@10", "HR@10") if suite.against in methods]
    best = {name: results.best(data, name) for name in METRICS}
    priced = ["cost"] if suite.price_per_hour is not None else []
    heads = ["", "seeds", *METRICS, *(f"{name} less {suite.against} (over users)" for name in compared)]
    lines = _head([*heads, "CPU min", "peak GB", *priced, "cells"])
    for method in methods:
        rows = results.of(data, method)
        chosen = sorted({row["chosen"] for row in rows if row.get("chosen")})
        cells = [_title(suite, method) + (f" ({'; '.join(chosen)})" if chosen else ""), str(len(rows))]
        for name in METRICS:
            told = _figure(results.figure(data, method, name))
            cells.append(f"**{told}**" if best[name] == method else told)
        for name in compared:
            found = None if method == suite.against else results.difference(data, method, suite.against, name)
            cells.append(_difference(found))
        cells += [_mean(rows, "train_cpu_seconds", 1 / 60, ".1f"), _mean(rows, "peak_bytes", 1e-9, ".1f")]
        if suite.price_per_hour is not None:
            cells.append(_mean(rows, "all_cpu_seconds", suite.price_per_hour / 3600, ".3f"))
        lines.append(f"| {' | '.join([*cells, f'`{data}/{method}-s*`'])} |")
    return "\n".join(lines) + "\n"


def _unseen(suite: Suite, results: Results, data: str, methods: list[str]) -> str:
    """The same rows judged without what histories hold, and what that changes: a method that gains far more than the
    others has the users' own histories at the head of its lists."""
    names = [f"unseen_{name}" for name in SHORT]
    judged = [method for method in methods if results.figure(data, method, names[0]) is not None]
    if not judged:
        return ""
    lines = ["With items of the history removed from the lists:\n", *_head(["", *SHORT, "HR@10 against kept"])]
    for method in judged:
        figures = [results.figure(data, method, name) for name in names]
        kept, removed = results.figure(data, method, "HR@10"), figures[names.index("unseen_HR@10")]
        gain = f"{removed.mean / kept.mean - 1:+.0%}" if kept is not None and removed is not None and kept.mean else ""
        told = [*map(_figure, figures), gain]
        lines.append(f"| {_title(suite, method)} | {' | '.join(told)} |")
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


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}), {found.relative:+.1%}"
