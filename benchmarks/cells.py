"""What studies of many trainings share: cells run apart, a few at a time, and never twice; paired differences."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_gr.artifacts import read_json
from hf_gr.evaluation.metrics import MISS, hit_rate, ndcg


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
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": threads})
        print(f"{cell}: {'done' if done.returncode == 0 else f'failed, see {folder}/log.txt'}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, cells))


def parts(cell: str) -> tuple[str, int]:
    """Arm and seed of a cell called ARM-sSEED; an empty arm if it is called otherwise."""
    found = re.fullmatch(r"(\w+)-s(\d+)", cell)
    return (found[1], int(found[2])) if found else ("", 0)


def run_study(
    script: str,
    chosen: argparse.Namespace,
    names: Sequence[str],
    arms: Collection[str],
    against: str,
    compared: Sequence[str],
) -> dict[str, Any]:
    """Runs the cells that were chosen, each in a process that is handed the options `names`, and sums them up.

    Exits on a cell of an arm that there is not.
    """
    wanted = chosen.cells.split(",")
    for cell in wanted:
        if parts(cell)[0] not in arms:
            print(f"error: no cell is called {cell!r}; cells are ARM-sSEED with an arm of {', '.join(arms)}.")
            sys.exit(2)
    given = [(f"--{name.replace('_', '-')}", vars(chosen)[name]) for name in names if vars(chosen)[name] is not None]
    run_apart(script, wanted, [str(word) for pair in given for word in pair], chosen.out, chosen.jobs)
    done = finished(wanted, chosen.out)
    result = summary(done, chosen.out, against, compared)
    result |= {"not_run": [cell for cell in wanted if cell not in done]} | measure.provenance("cpu")
    show(result)
    if chosen.json:
        measure.write_json(chosen.json, result)
    return result


def finished(cells: Sequence[str], out: Path) -> list[str]:
    """Those that have a row."""
    return [cell for cell in cells if (out / cell / "row.json").is_file()]


def judged(
    dataset: str, model: Path, folder: Path, beams: int, reflection: float = 0.0, users: int | None = None
) -> dict[str, Any]:
    """What `hf-gr evaluate` finds on the test part, of a sample of `users` if given."""
    from hf_gr.evaluation import EvaluateConfig, evaluate

    found = min(50, beams)
    settings = {"num_beams": beams, "top_k": found, "reflection": reflection, "max_users": users, "batch_size": 128}
    return evaluate(EvaluateConfig(dataset, str(folder), str(model), baselines=False, **settings))


def user_scores(predictions: Path, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Metrics such as HR@10 of every user, float64 [users] each, users in order of their ids (one case a user)."""
    table = pq.read_table(predictions, columns=["user_id", "item_ids", "target"])
    table = table.take(pc.sort_indices(table["user_id"]))
    pairs = zip(table["item_ids"].to_pylist(), table["target"].to_pylist(), strict=True)
    ranks = np.array([items.index(target) if target in items else MISS for items, target in pairs])
    measures = {"HR": hit_rate, "NDCG": ndcg}
    return {name: measures[kind](ranks, int(k)) for name in metrics for kind, k in [name.split("@")]}


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


def summary(done: Sequence[str], out: Path, against: str, compared: Sequence[str]) -> dict[str, Any]:
    """Means and standard deviations of every arm, and paired differences to one of them in the metrics `compared`."""
    rows = [read_json(out / cell / "row.json") for cell in done]
    arms: dict[str, dict[str, Any]] = {}
    scores = {row["cell"]: user_scores(out / row["cell"] / "test" / "predictions.parquet", compared) for row in rows}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        same = [row for row in rows if row["arm"] == arm]
        arms[arm] = {"seeds": [row["seed"] for row in same]}
        arms[arm]["cpu_seconds"] = float(np.mean([row["cpu_seconds"] for row in same]))
        for name in ("HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10", "NDCG@50"):
            values = [row[name] for row in same if name in row]
            if values:
                std = float(np.std(values, ddof=1)) if len(values) > 1 else None
                arms[arm][name] = {"mean": float(np.mean(values)), "std": std}
    differences: dict[str, Any] = {}
    for arm, figures in arms.items():
        both = [seed for seed in figures["seeds"] if f"{against}-s{seed}" in scores]
        if arm != against and both:
            differences[arm] = {"seeds": both}
            for name in compared:
                ours, theirs = ([scores[f"{a}-s{seed}"][name] for seed in both] for a in (arm, against))
                differences[arm][name] = paired(ours, theirs)
    return {"arms": arms, "against": against, "compared": compared, "differences": differences, "rows": rows}


def show(result: dict[str, Any]) -> None:
    """Tables in Markdown."""
    names = ["HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10"]
    print(f"| arm | seeds | {' | '.join(names)} | CPU minutes of training |\n|---|---|{'---|' * (len(names) + 1)}")
    for arm, figures in result["arms"].items():
        values = [_mean(figures[name]) if name in figures else "" for name in names]
        print(f"| {arm} | {len(figures['seeds'])} | {' | '.join(values)} | {figures['cpu_seconds'] / 60:.1f} |")
    compared = result["compared"]
    print(f"\n| arm less {result['against']} | seeds | {' | '.join(compared)} |\n|---|---|{'---|' * len(compared)}")
    for arm, found in result["differences"].items():
        values = " | ".join(_difference(found[name]) for name in compared)
        print(f"| {arm} | {len(found['seeds'])} | {values} |")
    for cell in result["not_run"]:
        print(f"{cell}: not run")


def _mean(figure: dict[str, float | None]) -> str:
    return f"{figure['mean']:.4f}" + (f" ± {figure['std']:.4f}" if figure["std"] is not None else "")


def _difference(d: dict[str, float]) -> str:
    return f"{d['value']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f}), {d['relative']:+.1%}"
