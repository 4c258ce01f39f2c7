"""What studies of many trainings share: cells run apart, a few at a time, and never twice; paired differences."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq


def run_apart(script: str, cells: Sequence[str], arguments: Sequence[str], out: Path, jobs: int) -> None:
    """Runs `script --only CELL arguments` for every cell that has no `row.json` yet, `jobs` at a time, each with its
    share of the cores; what it prints goes to the log in its folder."""

    def run(cell: str) -> None:
        folder = out / cell
        if (folder / "row.json").is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
        command = [sys.executable, script, "--only", cell, *arguments]
        with (folder / "log.txt").open("a") as log:
            done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": threads})
        print(f"{cell}: {'done' if done.returncode == 0 else f'failed, see {folder}/log.txt'}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, cells))


def user_scores(predictions: Path, k: int = 10) -> dict[str, np.ndarray]:
    """HR@k and NDCG@k of every user, float64 [users] each, users in order of their ids (one case a user)."""
    table = pq.read_table(predictions, columns=["user_id", "item_ids", "target"])
    table = table.take(pc.sort_indices(table["user_id"]))
    pairs = zip(table["item_ids"].to_pylist(), table["target"].to_pylist(), strict=True)
    ranks = np.array([items[:k].index(target) if target in items[:k] else -1 for items, target in pairs])
    hits = (ranks >= 0).astype(np.float64)
    return {f"HR@{k}": hits, f"NDCG@{k}": hits / np.log2(np.maximum(ranks, 0) + 2)}


def paired(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], draws: int = 2000) -> dict[str, float]:
    """Mean over users and runs of the difference, its 95 % interval from resampled users, and the relative one.

    Args:
        ours, theirs: A score of every user, float64 [users], of each run (seed); runs are paired.
        draws: Of the bootstrap.
    """
    random = np.random.default_rng(0)
    per_user = np.mean([one - other for one, other in zip(ours, theirs, strict=True)], axis=0)
    drawn = [per_user[random.integers(len(per_user), size=len(per_user))].mean() for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    base = float(np.mean(theirs))
    value = float(per_user.mean())
    return {"value": value, "low": float(low), "high": float(high), "relative": value / base if base else 0.0}
