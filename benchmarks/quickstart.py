"""The quickstart's figures over seeds: reads `metrics.json` of finished runs and prints the table of STUDIES.md.

for seed in 0 1 2; do make quickstart SEED=$seed OUT=q$seed; done
python benchmarks/quickstart.py q0 q1 q2          # a Markdown table
python benchmarks/quickstart.py q0 q1 q2 --json   # the same as JSON
"""

import argparse
import json
import statistics
from pathlib import Path


SHOWN = ("HR@5", "HR@10", "HR@50", "NDCG@10")


def figures(runs: list[Path]) -> dict[str, list[dict[str, float]]]:
    """Metric values of every system, one dict a run."""
    found: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        metrics = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
        for system, judged in metrics["systems"].items():
            found.setdefault(system, []).append({name: judged["item"][name]["value"] for name in SHOWN})
    return found


def markdown(found: dict[str, list[dict[str, float]]]) -> str:
    lines = [f"| system | {' | '.join(SHOWN)} | HR@10 ÷ popularity, by run |", "|---" * (len(SHOWN) + 2) + "|"]
    for system, runs in found.items():
        cells = [spread([run[name] for run in runs]) for name in SHOWN]
        ratios = [run["HR@10"] / base["HR@10"] for run, base in zip(runs, found["popularity"], strict=True)]
        lines.append(f"| {system} | {' | '.join(cells)} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over runs (the mean alone of one run)."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of the quickstart, one a seed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    found = figures(chosen.runs)
    print(json.dumps(found, indent=2) if chosen.json else markdown(found))
