"""The row of a finished cell: its metrics, what it took, and where it was measured."""

import json
import math
import struct
from math import log2
from pathlib import Path
from typing import Any

from ..artifacts import read_json
from ..evaluation.metrics import KS
from .cells import Cell
from .stations import StationError


METRICS = tuple(f"{family}@{k}" for family in ("HR", "NDCG", "MRR") for k in KS)


def row_of(cell: Cell) -> dict[str, Any]:
    """What is known of a cell whose stations have all run; JSON-serialisable.

    Metrics stand under their names, those of lists without seen items under `unseen_` and their name.

    Raises:
        StationError: If the metrics contradict each other.
    """
    judged = read_json(cell.folder / "test" / "metrics.json")
    figures = item_metrics(judged)
    if broken := inconsistencies(figures):
        raise StationError(f"{cell.folder / 'test' / 'metrics.json'} contradicts itself: {broken[0]}")
    if cell.suite.exclude_seen:
        unseen = item_metrics(read_json(cell.folder / "unseen" / "metrics.json"))
        figures |= {f"unseen_{name}": value for name, value in unseen.items()}
    costs = {station.name: station.cost() for station in cell.stations}
    training = [costs[station.name] for station in cell.stations if station.trains]
    on_gpu = " x " in judged["provenance"]["hardware"] and "baseline" not in cell.method.stations
    return {
        "suite": cell.suite.name,
        "cell": cell.name,
        "dataset": cell.dataset.name,
        "method": cell.method.name,
        "seed": cell.seed,
        "part": cell.suite.part,
        "key": cell.key,
        "source": cell.source,
        "cases": judged["cases"],
        "users": judged["users"],
        "metrics": figures,
        "pruned": judged.get("pruned"),
        "parameters": _parameters(cell),
        "train_cpu_seconds": sum(cost["cpu_seconds"] for cost in training),
        "train_wall_seconds": sum(cost["wall_seconds"] for cost in training),
        "train_gpu_seconds": sum(cost["wall_seconds"] for cost in training) if on_gpu else 0.0,
        "train_peak_bytes": max(cost["peak_bytes"] for cost in training),
        "wall_seconds": sum(cost["wall_seconds"] for cost in costs.values()),
        "lost_runs": sum(cost["lost"] for cost in costs.values()),
        "stations": {
            name: {key: cost[key] for key in ("cpu_seconds", "wall_seconds", "peak_bytes", "lost")}
            for name, cost in costs.items()
        },
        "provenance": judged["provenance"],
        "command": cell.command,
    }


def item_metrics(judged: dict[str, Any]) -> dict[str, float]:
    """Item-level metrics of the first system of a `metrics.json`."""
    first = next(iter(judged["systems"].values()))
    return {name: float(numbers["value"]) for name, numbers in first["item"].items()}


def inconsistencies(figures: dict[str, float], tolerance: float = 1e-9) -> list[str]:
    """What in a system's metrics cannot be true together, given one target a user; empty if nothing.

    A hit between the ranks k₁ and k₂ gains between 1 / log2(k₂ + 1) and 1 / log2(k₁ + 2) in NDCG, and between 1 / k₂
    and 1 / (k₁ + 1) in MRR. So for all cut-offs k₁ < k₂, 0 and 0 at k₁ = 0 among them,

        (HR@k₂ - HR@k₁) / log2(k₂ + 1) ≤ NDCG@k₂ - NDCG@k₁ ≤ (HR@k₂ - HR@k₁) / log2(k₁ + 2)

    and likewise for MRR. Published tables obey it within their rounding.

    Args:
        figures: Metric (`HR@10`, `NDCG@10`, `MRR@10` …) → mean over users, from 0 to 1.
        tolerance: By how much a bound may be passed; twice the rounding of a table.
    """
    bounds = {
        "NDCG": (lambda k: log2(k + 1), lambda k: log2(k + 2)),
        "MRR": (lambda k: k, lambda k: k + 1),
    }
    found = []
    for family, (last, first) in bounds.items():
        shared = sorted(int(name[3:]) for name in figures if name.startswith("HR@") and f"{family}@{name[3:]}" in figures)
        at = {0: (0.0, 0.0)} | {k: (figures[f"HR@{k}"], figures[f"{family}@{k}"]) for k in shared}
        for low in at:
            for high in (k for k in at if k > low):
                hits, gain = at[high][0] - at[low][0], at[high][1] - at[low][1]
                if not hits / last(high) - tolerance <= gain <= hits / first(low) + tolerance:
                    found.append(
                        f"HR@{high} {at[high][0]:.4f} and {family}@{high} {at[high][1]:.4f} do not go with "
                        f"HR@{low} {at[low][0]:.4f} and {family}@{low} {at[low][1]:.4f}"
                    )
    return found


def _parameters(cell: Cell) -> int | None:
    """Parameters of the trained model, by the header of its weights; tied ones count once."""
    models = [station.output / "model" / "model.safetensors" for station in cell.stations if station.trains]
    return _count(models[-1]) if models and models[-1].is_file() else None


def _count(file: Path) -> int:
    with file.open("rb") as handle:
        header = json.loads(handle.read(struct.unpack("<Q", handle.read(8))[0]))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
