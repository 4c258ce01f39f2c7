"""A grid of cells: run a few at a time, by any number of processes, gone on with after a kill, never run twice."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..artifacts import read_json, write_json
from ..environment import hardware, versions
from ..errors import HfGrError
from ..evaluation.metrics import MISS
from .results import UNSEEN
from .steps import Places, Runner, Step, locked, settings_of, steps_of
from .suite import TRAINING, Cell, Suite


ROW = "row.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: `done`, `busy` (another process has it) or `failed`, and why."""

    cell: Cell
    state: str
    reason: str = ""


def run_grid(
    suite: Suite,
    cells: Sequence[Cell],
    places: Places,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    finished: Callable[[Cell], None] = lambda cell: None,
) -> list[Outcome]:
    """Runs the cells that have no row yet, `jobs` at a time, each on its share of the cores; calls `finished` with
    each cell that has got one.

    A cell that fails is named, and the others go on. Several processes may call this for one grid: each takes the
    cells that nobody has, beginning at a place of its own. Interrupted, it ends what runs and begins nothing more.
    """
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    runner = Runner(max(1, (os.cpu_count() or 1) // (jobs * here)))
    first = rank * len(cells) // processes

    def run(cell: Cell) -> Outcome:
        has_row = row_of(suite, cell, places) is not None
        outcome = _run_cell(suite, cell, places, runner)
        if outcome.state == "done" and not has_row:
            finished(cell)
        say(f"[bench] {cell.name}: {outcome.state}{f' ({outcome.reason})' if outcome.reason else ''}")
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(run, [*cells[first:], *cells[:first]]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise


def row_of(suite: Suite, cell: Cell, places: Places) -> dict[str, Any] | None:
    """The row of a finished cell; `None` if it has none, or one of other settings."""
    file = _folder(cell, places) / ROW
    if not file.is_file():
        return None
    row: dict[str, Any] = read_json(file)
    return row if row["key"] == steps_of(suite, cell, places)[-1].key else None


def ranks_of(suite: Suite, cell: Cell, places: Places) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Users of a finished cell, in order of their ids, and the rank of each one's target, int64 from 0 ([`MISS`]).

    Then the ranks without the items of the history, `None` where the suite does not judge so.
    """
    folder = _folder(cell, places)
    users, ranks = ranks_in(folder / "test" / "predictions.parquet")
    return users, ranks, ranks_in(folder / "test-unseen" / "predictions.parquet")[1] if suite.exclude_seen else None


def ranks_in(predictions: Path) -> tuple[list[str], np.ndarray]:
    """Users of a file of predictions with one case each, in order of their ids, and the rank of each one's target.

    Args:
        predictions: `predictions.parquet` of `hf-gr evaluate`.

    Returns:
        Ids, and int64 [users] from 0 ([`MISS`] where the target is not in the list).
    """
    table = pq.read_table(predictions, columns=["user_id", "item_ids", "target"]).sort_by("user_id")
    ranks = [
        items.index(target) if target in items else MISS
        for items, target in zip(table["item_ids"].to_pylist(), table["target"].to_pylist(), strict=True)
    ]
    return table["user_id"].to_pylist(), np.array(ranks, np.int64)


def _folder(cell: Cell, places: Places) -> Path:
    return places.out / cell.data / f"{cell.method}-s{cell.seed}"


def _run_cell(suite: Suite, cell: Cell, places: Places, runner: Runner) -> Outcome:
    folder = _folder(cell, places)
    try:
        with locked(folder / "cell", wait=False) as free:
            if not free:
                return Outcome(cell, "busy")
            if row_of(suite, cell, places) is not None:
                return Outcome(cell, "done")
            steps = steps_of(suite, cell, places)
            costs = [runner.run(step, folder / "log.txt") for step in steps]
            write_json(folder / ROW, _row(suite, cell, steps, costs, places))
        return Outcome(cell, "done")
    except HfGrError as error:
        return Outcome(cell, "failed", str(error))


def _row(suite: Suite, cell: Cell, steps: list[Step], costs: list[dict[str, Any]], places: Places) -> dict[str, Any]:
    row: dict[str, Any] = {"suite": suite.name, "data": cell.data, "method": cell.method, "seed": cell.seed}
    judged = read_json(_folder(cell, places) / "test" / "metrics.json")
    row |= {name: figure["value"] for name, figure in next(iter(judged["systems"].values()))["item"].items()}
    row["seen_targets"] = judged["seen_targets"]
    if suite.exclude_seen:
        unseen = read_json(_folder(cell, places) / "test-unseen" / "metrics.json")
        figures = next(iter(unseen["systems"].values()))["item"]
        row |= {f"{UNSEEN}{name}": figure["value"] for name, figure in figures.items()}
    training = [cost for step, cost in zip(steps, costs, strict=True) if step.stage in TRAINING] or [
        costs[[step.stage for step in steps].index("evaluate")]
    ]
    if next(iter(judged["systems"])) == "item kNN":  # which is chosen and fitted where it is judged
        row["chosen"] = "window {window}, {neighbours} neighbours".format(**judged["item kNN"])
    found = versions()
    return row | {
        "key": steps[-1].key,
        "settings": settings_of(suite, cell),
        "train_seconds": _sum(training, "seconds"),
        "train_cpu_seconds": _sum(training, "cpu_seconds"),
        "test_seconds": _sum([c for step, c in zip(steps, costs, strict=True) if step.stage == "evaluate"], "seconds"),
        "all_cpu_seconds": _sum(costs, "cpu_seconds"),
        "peak_bytes": max((cost["peak_bytes"] or 0 for cost in training), default=0) or None,
        "commands": "\n".join(places.portable(step.told) for step in steps),
        "hardware": hardware(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": found.pop("commit", ""),
        "versions": ", ".join(f"{name} {number}" for name, number in found.items()),
    }


def _sum(costs: list[dict[str, Any]], name: str) -> float | None:
    """What some stages took together; `None` if it was not measured of one."""
    values = [cost[name] for cost in costs]
    return None if None in values else float(sum(values))
