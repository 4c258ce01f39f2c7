"""Differences of methods over seeds: what another training would change, which intervals over users leave out.

Reads the committed rows of a suite and takes NDCG@10 of two methods on the seeds that both have. The interval is that
of the mean difference at 95 %, mean ± t · s / √n.

    python benchmarks/over_seeds.py s2gr:flat reg4rec:flat      # rows of a Markdown table
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import stats

from hf_gr.bench import Results


RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="METHOD:OTHER", help="two methods of the suite")
    parser.add_argument("--suite", default="scientific")
    parser.add_argument("--metric", default="NDCG@10")
    chosen = parser.parse_args(arguments)
    rows = Results.load(RESULTS, chosen.suite).rows
    lines = []
    for method, _, other in (pair.partition(":") for pair in chosen.pairs):
        values = [
            {row["seed"]: row[chosen.metric] for row in rows if row["method"] == name} for name in (method, other)
        ]
        seeds = sorted(values[0].keys() & values[1].keys())
        if len(seeds) < 2:
            raise SystemExit(f"{method} and {other} share {len(seeds)} seeds; an interval over seeds needs 2.")
        less = np.array([values[0][seed] - values[1][seed] for seed in seeds])
        half = stats.t.ppf(0.975, len(less) - 1) * less.std(ddof=1) / len(less) ** 0.5
        low, high = less.mean() - half, less.mean() + half
        lines.append(f"| {method} less {other} | {len(seeds)} | {less.mean():+.4f} | {low:+.4f} to {high:+.4f} |")
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    main()
