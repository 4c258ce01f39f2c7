"""The evidence: one harness that runs data × method × seed from raw data to metrics, and writes the tables."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..artifacts import check_output_file
from ..errors import HfGrError
from ..terminal import plain
from .grid import ranks_of, row_of, run_grid
from .page import is_page, write_page
from .results import Results, check_consistent, outside
from .steps import Places, locked, steps_of
from .suite import SUITES, Cell, Suite, load_suite, shipped_suites


__all__ = ["Cell", "Places", "Results", "Suite", "bench", "check_consistent", "load_suite", "show_suites"]


def bench(
    name: str | Path,
    *,
    out: Path = Path("bench"),
    data: Path | None = None,
    cells: Sequence[str] = (),
    jobs: int = 1,
    report: Path | None = None,
    baselines_python: str = sys.executable,
    max_steps: int = 0,
    list_only: bool = False,
    check: bool = False,
    missing: bool = False,
) -> Path | None:
    """Runs a suite, and writes its tables.

    Args:
        name: A suite's file, or the name of one that ships with the package ([`show_suites`]).
        out: Folder of all artifacts; the same folder goes on.
        data: Folder of raw files, for suites that name `{data}`.
        cells: Patterns of cells such as `beauty/*-s0`; all if left out.
        jobs: Cells at a time.
        report: The page to write, with the rows in `results` beside it; by default `out/RESULTS.md`. Rows that are
            there already stay unless their cells ran anew.
        baselines_python: Of the environment that RecTools is in.
        max_steps: Of trainings, for a trial, in a folder of its own below `out`.
        list_only: Say which cells there are, and run nothing.
        check: Do not write rows, but hold them against those of the report: [`HfGrError`] if one lies outside the
            95 % prediction interval of its row.
        missing: Leave out the cells whose row, of the same raw data, settings and stages, is beside the page already,
            wherever it was made.

    Raises:
        HfGrError: If a cell failed, after the others ran.
    """
    suite = load_suite(name)
    places = Places(out / f"trial-{max_steps}" if max_steps else out, data, baselines_python, max_steps)
    page = report or places.out / "RESULTS.md"
    if missing and check:
        raise HfGrError("--check runs what has a row, --missing what has none; take one of them.")
    chosen = suite.chosen(cells)
    if missing:
        known = {row["key"] for row in Results.load(page.parent / "results", suite.name).rows}
        chosen = [cell for cell in chosen if steps_of(suite, cell, places)[-1].key not in known]
    if list_only:
        _show_cells(suite, chosen, places)
        return None
    for cell in chosen:
        steps_of(suite, cell, places)  # raises on what cannot be run, before anything is
    if not check:
        check_output_file(page, is_page)

    def rows_of(cells: Sequence[Cell]) -> Results:
        results = Results()
        for cell in cells:
            if (row := row_of(suite, cell, places)) is not None:
                results.add(row, *ranks_of(suite, cell, places))
        return results

    def finished(cell: Cell) -> None:
        if not check:  # now, and not at the end, which a long grid may not live to see
            _write(page, suite, rows_of([cell]))

    outcomes = run_grid(suite, chosen, places, jobs, finished=finished)
    if check:
        _check(rows_of(chosen), Results.load(page.parent / "results", suite.name), suite)
    else:
        _write(page, suite, rows_of(chosen))
        print(f"[bench] wrote {page}")
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        raise HfGrError(
            f"{len(failed)} of {len(chosen)} cells failed, the first is {failed[0].cell.name}: {failed[0].reason}"
        )
    return page


def _write(page: Path, suite: Suite, fresh: Results) -> None:
    """Adds rows to those beside the page, and writes the page anew from all suites that have any."""
    with locked(page):
        folder = page.parent / "results"
        known = Results.load(folder, suite.name)
        for row in fresh.rows:
            key = (row["data"], row["method"], row["seed"])
            known.add(row, fresh.users[row["data"]], fresh.ranks[key], fresh.unseen.get(key))
        known.save(folder, suite.name)
        _write_page(page, folder, suite)


def _write_page(page: Path, folder: Path, suite: Suite) -> None:
    suites = {suite.name: suite}
    for name in sorted(file.name.removesuffix("-ranks.parquet") for file in folder.glob("*-ranks.parquet")):
        if name in suites:
            continue
        files = [at / f"{name}.yaml" for at in (suite.file.parent, SUITES)]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            print(f"[bench] {folder} has rows of {name}, but {files[0]} is missing: the page is without them")
        else:
            suites[name] = load_suite(file)
    write_page(page, [(suites[name], Results.load(folder, name)) for name in sorted(suites)])


def _check(fresh: Results, known: Results, suite: Suite) -> None:
    found = outside(fresh, known)
    if not found:
        raise HfGrError(
            f"nothing to compare: {suite.name} has no method with two known runs; name the page that has them with "
            "--report, or run it without --check."
        )
    table = Table("cell", "now", "expected", "")
    for one in found:
        table.add_row(
            plain(one["name"]),
            f"{one['value']:.4f}",
            f"{one['low']:.4f}–{one['high']:.4f}",
            "" if one["inside"] else "outside",
        )
    Console().print(table)
    wrong = [one["name"] for one in found if not one["inside"]]
    if wrong:
        raise HfGrError(f"{len(wrong)} of {len(found)} results are not as expected, the first is {wrong[0]}.")


def show_suites() -> None:
    """Prints the suites that ship with the package: name, cells, and what each is."""
    table = Table("suite", "cells", "")
    for name in shipped_suites():
        suite = load_suite(name)
        table.add_row(name, str(len(suite.cells())), plain(suite.title))
    Console().print(table)


def _show_cells(suite: Suite, cells: Sequence[Cell], places: Places) -> None:
    table = Table("cell", "state", "HR@10", "NDCG@10")
    for cell in cells:
        row = row_of(suite, cell, places)
        figures = ["", ""] if row is None else [f"{row['HR@10']:.4f}", f"{row['NDCG@10']:.4f}"]
        table.add_row(plain(cell.name), "open" if row is None else "done", *figures)
    Console().print(table)
