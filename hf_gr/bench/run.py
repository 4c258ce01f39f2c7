"""The command `hf-gr bench`: runs a suite, lists it, reports it, or compares it with what is committed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..artifacts import read_json
from .cells import Cell, Plan, cells_of, choose
from .grid import Grid, is_finished, state_of
from .suite import find_suite, read_suite


def bench(
    suite: str,
    plan: Plan,
    *,
    jobs: int = 1,
    cells: str | None = None,
    only_list: bool = False,
) -> int:
    """Runs the cells of a suite that are not finished.

    Args:
        suite: YAML file, or the name of one in `recipes/bench`.
        plan: Where things lie.
        jobs: Cells at a time.
        cells: Patterns of cells, parted by commas; none: all.
        only_list: Show the cells and their state instead.

    Returns:
        Exit status: 1 if a cell failed or a check did not hold.
    """
    read = read_suite(find_suite(suite))
    chosen = choose(cells_of(read, plan), cells)
    if only_list:
        for cell in chosen:
            print(f"{cell.name}: {state_of(cell)}")
        return 0
    grid = Grid(chosen, jobs)
    grid.run()
    print_rows(chosen)
    for name, reason in grid.failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if grid.failed else 0


def print_rows(cells: Sequence[Cell]) -> None:
    """The finished cells in a table."""
    table = Table("cell", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "CPU minutes of training")
    for cell in cells:
        if is_finished(cell):
            row = read_json(cell.row_file)
            values = [f"{row['metrics'][name]:.4f}" for name in ("HR@5", "HR@10", "NDCG@5", "NDCG@10")]
            table.add_row(cell.name, *values, f"{row['train_cpu_seconds'] / 60:.1f}")
    Console().print(table)
