"""Which number of a codebook can be trusted? Many codebooks, a small recommender on each, what foretold its recall.

Every cell of the grid is a catalog (`hf-gr quantize`), a model of two layers from scratch on it (`hf-gr sft`) and
its evaluation (`hf-gr evaluate`), through the same functions as those commands. Finished cells are never run again,
killed ones go on where they were. Then come means over seeds, differences to one kind of codebook with their interval
over users, the rank correlation over codebooks of every metric with Recall@10 with its interval, and a plot.

    python benchmarks/codebook_study.py --dataset scientific/dataset --embeddings scientific/vectors --out study
    python benchmarks/codebook_study.py … --cells 'rq_vae-256,r3_vae-256,coba-256' --epochs 20       # a part of it

It is no suite of `hf-gr bench`: a suite says neither that vectors are dealt to other items, the control that knows
nothing, nor what codes are worth before collisions are resolved. The metrics are those of the quantizer's own codes,
before collisions are resolved (greedily, for every cell), except where told otherwise. One cell takes a minute or two
of one core on some 50,000 events.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import numpy as np
from scipy.stats import spearmanr

from hf_gr.arguments import configs_of
from hf_gr.artifacts import read_json, write_json
from hf_gr.bench.grid import ranks_in
from hf_gr.dataset import InteractionDataset, popularity
from hf_gr.embedding import ItemVectors
from hf_gr.embedding.behavior import cooccurrence
from hf_gr.evaluation.metrics import hit_rate, paired_bootstrap


@dataclass(frozen=True)
class Cell:
    """One codebook of the grid."""

    method: str
    size: int
    seed: int = 0
    variant: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    shuffled: bool = False  # vectors dealt to other items: a codebook that knows nothing

    @property
    def name(self) -> str:
        return "-".join([self.method, *([self.variant] if self.variant else []), str(self.size), f"s{self.seed}"])


PLAIN = {"start": "random", "codebook_update": "gradient", "revive": False}
GRID = [
    *(Cell(method, 256, seed) for method in ("rq_kmeans", "rq_vae", "r3_vae", "coba") for seed in range(3)),
    *(Cell("rq_kmeans", size) for size in (32, 64, 128)),
    *(Cell(method, 64) for method in ("rq_vae", "r3_vae", "coba", "opq")),
    Cell("opq", 256),
    Cell("rq_kmeans", 256, 0, "balanced", {"balance": "last"}),
    Cell("rq_kmeans", 256, 0, "balanced_all", {"balance": "all"}),
    *(Cell("rq_vae", size, 0, "plain", PLAIN) for size in (64, 256)),
    Cell("coba", 256, 0, "no_graph", {"hops": 0}),
    Cell("rq_kmeans", 256, 0, "shuffled", shuffled=True),
]
RECOMMENDER: dict[str, Any] = {
    "model": {"architecture": "qwen3", "layers": 2, "width": 128},
    "attention": "eager",
    "max_history": 20,
    "per_device_train_batch_size": 64,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "bf16": False,
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "no",
    "logging_steps": 100,
    "dataloader_num_workers": 0,
}
PREDICTORS = {  # numbers of a codebook → what they are called
    "collision_rate": "collision rate",
    "semantic_cohesion": "Semantic Cohesion, whole SIDs",
    "semantic_cohesion_1": "Semantic Cohesion, first code",
    "preference_discrimination": "Preference Discrimination, whole SIDs",
    "preference_discrimination_1": "Preference Discrimination, first code",
    "nearest_1": "nearest neighbours on the first code",
    "nearest_gain_1": "nearest neighbours, gain over chance",
    "together_1": "co-occurrence neighbours on the first code",
    "together_gain_1": "co-occurrence neighbours, gain over chance",
    "together_2": "co-occurrence neighbours on two codes",
    "error": "reconstruction error",
    "perplexity": "perplexity ÷ size, mean of the levels",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--embeddings", required=True, help="its item vectors")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cells; run again to go on")
    parser.add_argument(
        "--cells", default="", help="names by commas, without seeds for all of them; default: the grid"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, each on its share of the cores")
    parser.add_argument(
        "--against", default="rq_vae-256", help="codebook that the others of its seeds are compared with"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="SVG or PNG of Recall@10 over every metric")
    parser.add_argument("--only", metavar="CELL", help=argparse.SUPPRESS)  # one cell, in this process
    chosen = parser.parse_args(arguments)
    if chosen.only:
        run_cell(cells_named(chosen.only)[0], chosen)
        return {}
    cells = cells_named(chosen.cells) if chosen.cells else GRID
    given = ["--epochs", str(chosen.epochs), "--out", str(chosen.out)]
    given += ["--dataset", chosen.dataset, "--embeddings", chosen.embeddings]
    run_apart([cell.name for cell in cells], given, chosen.out, chosen.jobs)
    rows = [read_json(file) for cell in cells if (file := chosen.out / cell.name / "row.json").is_file()]
    result = {
        "rows": rows,
        "groups": groups(rows),
        "correlations": {name: correlations(of) for name, of in _selections(rows).items()},
    }
    result["differences"] = differences(rows, chosen.out, chosen.against)
    result |= {"epochs": chosen.epochs, "recommender": RECOMMENDER} | measure.provenance("cpu")
    show(result)
    if chosen.json:
        measure.write_json(chosen.json, result)
    if chosen.plot:
        plot(rows, result["correlations"]["all"], chosen.plot)
    return result


def cells_named(names: str) -> list[Cell]:
    """Cells of the grid by name, all seeds of a name without one; other names are METHOD-SIZE-sSEED."""
    found = []
    for name in names.split(","):
        known = [cell for cell in GRID if name in (cell.name, re.sub(r"-s\d+$", "", cell.name))]
        if not known:
            parts = re.fullmatch(r"(\w+)-(\d+)-s(\d+)", name)
            if parts is None:
                sys.exit(f"error: no cell is called {name!r}; cells are {', '.join(c.name for c in GRID)}.")
            known = [Cell(parts[1], int(parts[2]), int(parts[3]))]
        found += known
    return found


def run_apart(cells: Sequence[str], arguments: Sequence[str], out: Path, jobs: int) -> None:
    """Runs this script for every cell without a `row.json`, `jobs` at a time, each with its share of the cores."""

    def run(cell: str) -> None:
        folder = out / cell
        if (folder / "row.json").is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        command = [sys.executable, __file__, "--only", cell, *arguments]
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": threads})
        print(f"{cell}: {'done' if done.returncode == 0 else f'failed, see {folder}/log.txt'}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, cells))


def run_cell(cell: Cell, chosen: argparse.Namespace) -> None:
    """Catalog, recommender and evaluation of one cell, and its row for the tables."""
    from hf_gr.evaluation import EvaluateConfig, evaluate
    from hf_gr.quantizers import QuantizeConfig, quantize
    from hf_gr.sft import SFT_CONFIGS, sft

    folder = chosen.out / cell.name
    embeddings: str | Path = chosen.embeddings
    if cell.shuffled:
        embeddings = _shuffled(chosen.embeddings, chosen.out / "shuffled", cell.seed)
    catalog = quantize(
        QuantizeConfig(
            chosen.dataset,
            str(embeddings),
            str(folder / "catalog"),
            method=cell.method,
            codebook_size=cell.size,
            method_config=cell.settings or None,
            seed=cell.seed,
        )
    )
    model = sft(
        *configs_of(
            SFT_CONFIGS,
            dataset=chosen.dataset,
            catalog=str(catalog),
            output_dir=str(folder / "sft"),
            num_train_epochs=chosen.epochs,
            seed=cell.seed,
            **RECOMMENDER,
        )
    )
    config = EvaluateConfig(
        chosen.dataset, str(folder / "test"), str(model), num_beams=20, top_k=10, batch_size=128, baselines=False
    )
    judged = evaluate(config)["systems"]["model"]["item"]
    row = {"cell": cell.name, "method": cell.method, "variant": cell.variant, "size": cell.size, "seed": cell.seed}
    row |= {"recall@10": judged["HR@10"]["value"], "ndcg@10": judged["NDCG@10"]["value"]}
    write_json(folder / "row.json", row | codebook_row(cell, chosen, embeddings, catalog))


def _shuffled(embeddings: str, output: Path, seed: int) -> Path:
    if not output.is_dir():
        vectors = ItemVectors.load(embeddings)
        rows = np.random.default_rng(seed).permutation(len(vectors))
        ItemVectors(np.array(vectors.vectors[rows]), vectors.info).save(output)
    return output


def codebook_row(cell: Cell, chosen: argparse.Namespace, embeddings: str | Path, catalog: Path) -> dict[str, Any]:
    """The numbers of a codebook before its collisions were resolved, judged against the true vectors."""
    from hf_gr.quantizers import codebook_report, load_quantizer

    dataset = InteractionDataset.load(chosen.dataset)
    train = dataset.split().train
    graph = cooccurrence(train, dataset.num_items, 5)
    quantizer = load_quantizer(catalog / "quantizer")
    codes = quantizer.encode(quantizer.align(ItemVectors.load(embeddings).vectors, graph))
    report = codebook_report(
        codes,
        quantizer.config.codebook_sizes,
        vectors=ItemVectors.load(chosen.embeddings).vectors,
        quantizer=None if cell.shuffled else quantizer,  # its error would be that of other items
        graph=graph,
        popularity=popularity(train, dataset.num_items),
    )
    numbers = {
        "collision_rate": report["collision_rate"],
        "semantic_cohesion": report["semantic_cohesion"][-1],
        "semantic_cohesion_1": report["semantic_cohesion"][0],
        "preference_discrimination": report["preference_discrimination"][-1],
        "preference_discrimination_1": report["preference_discrimination"][0],
        "perplexity": float(np.mean([level["perplexity"] / level["size"] for level in report["levels"]])),
    }
    for name, of in (("nearest", "nearest_overlap"), ("together", "cooccurrence_overlap")):
        for length in (1, 2):
            numbers[f"{name}_{length}"] = report[of]["overlap"][length - 1]
            numbers[f"{name}_gain_{length}"] = report[of]["gain"][length - 1]
    if not cell.shuffled:
        numbers["error"] = report["error"][-1]
    return {"numbers": numbers, "report": report}


def groups(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over seeds of every kind of codebook, best first."""
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(_kind(row) for row in rows):
        same = [row for row in rows if _kind(row) == kind]
        recalls = [row["recall@10"] for row in same]
        found[kind] = {"seeds": [row["seed"] for row in same], "recall@10": float(np.mean(recalls))}
        found[kind]["std"] = float(np.std(recalls, ddof=1)) if len(recalls) > 1 else None
        found[kind]["ndcg@10"] = float(np.mean([row["ndcg@10"] for row in same]))
        names = same[0]["numbers"]
        found[kind] |= {name: float(np.mean([row["numbers"][name] for row in same])) for name in names}
    return dict(sorted(found.items(), key=lambda entry: -entry[1]["recall@10"]))


def _kind(row: dict[str, Any]) -> str:
    return re.sub(r"-s\d+$", "", row["cell"])


def differences(rows: list[dict[str, Any]], out: Path, against: str) -> dict[str, dict[str, Any]]:
    """Recall@10 less that of another kind of codebook over the seeds both have; interval from resampled users."""
    hits: dict[str, dict[int, np.ndarray]] = {}
    for row in rows:
        ranks = ranks_in(out / row["cell"] / "test" / "predictions.parquet")[1]
        hits.setdefault(_kind(row), {})[row["seed"]] = hit_rate(ranks, 10)
    found = {}
    for kind, seeds in hits.items():
        both = sorted(set(seeds) & set(hits.get(against, {})))
        if kind != against and both:
            ours, theirs = (np.mean([of[seed] for seed in both], axis=0) for of in (seeds, hits[against]))
            value, low, high = (float(x) for x in paired_bootstrap(ours, theirs, seed=0, samples=2000))
            found[kind] = {"seeds": both, "value": value, "low": low, "high": high}
    return found


def _selections(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Codebooks that are looked at together: all of them, those that mean something, and of these one size alone."""
    real = [row for row in rows if row["variant"] != "shuffled"]
    largest = max(row["size"] for row in rows)
    return {"all": rows, "all but shuffled": real, f"of size {largest}": [r for r in real if r["size"] == largest]}


def correlations(rows: list[dict[str, Any]], draws: int = 2000) -> dict[str, dict[str, Any]]:
    """Spearman's ρ of every number with Recall@10, and its 95 % interval from resampled codebooks."""
    random, found = np.random.default_rng(0), {}
    for name, label in PREDICTORS.items():
        pairs = [(row["numbers"][name], row["recall@10"]) for row in rows if row["numbers"].get(name) is not None]
        if len(pairs) < 4:
            continue
        points = np.array(pairs)
        drawn = [points[random.integers(len(points), size=len(points))] for _ in range(draws)]
        rhos = [spearmanr(*sample.T).statistic for sample in drawn if all(len(set(c)) > 1 for c in sample.T)]
        low, high = np.percentile(rhos, [2.5, 97.5])
        found[name] = {"label": label, "codebooks": len(points), "rho": float(spearmanr(*points.T).statistic)}
        found[name] |= {"low": float(low), "high": float(high)}
    return found


def show(result: dict[str, Any]) -> None:
    """Tables in Markdown, as docs/codebooks.md has them."""
    names = ["collision_rate", "nearest_1", "together_1", "together_gain_1", "error", "perplexity"]
    print(f"| codebook | seeds | Recall@10 | NDCG@10 | {' | '.join(names)} |")
    print("|---|---|---|---|" + "---|" * len(names))
    for kind, row in result["groups"].items():
        spread = f" ± {row['std']:.4f}" if row["std"] is not None else ""
        cells = [f"{row[name]:.3f}" if name in row else "" for name in names]
        print(f"| {kind} | {len(row['seeds'])} | {row['recall@10']:.4f}{spread} | {row['ndcg@10']:.4f} | ", end="")
        print(" | ".join(cells) + " |")
    print("\n| codebook | seeds | Recall@10 less that of the baseline | 95 % interval |\n|---|---|---|---|")
    for kind, row in result["differences"].items():
        print(f"| {kind} | {len(row['seeds'])} | {row['value']:+.4f} | {row['low']:+.4f} to {row['high']:+.4f} |")
    selections = result["correlations"]
    print(f"\n| ρ with Recall@10 of | {' | '.join(selections)} |\n|---|{'---|' * len(selections)}")
    for name, label in PREDICTORS.items():
        found = [selection[name] for selection in selections.values() if name in selection]
        cells = [f"{r['rho']:+.2f} ({r['low']:+.2f} to {r['high']:+.2f}; {r['codebooks']})" for r in found]
        print(f"| {label} | {' | '.join(cells)} |")


def plot(rows: list[dict[str, Any]], found: dict[str, dict[str, Any]], file: Path) -> None:
    """Recall@10 over every number, a dot for each codebook."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(13, 3.2 * -(-len(found) // 4)), layout="constrained")
    panels = figure.subplots(-(-len(found) // 4), 4, sharey=True, squeeze=False).ravel()
    for axes, (name, numbers) in zip(panels, found.items(), strict=False):
        for method in methods:
            of = [row for row in rows if row["method"] == method and row["numbers"].get(name) is not None]
            points = [(row["numbers"][name], row["recall@10"]) for row in of]
            axes.scatter(*zip(*points, strict=True), s=22, alpha=0.8, label=method)
        interval = f"{numbers['low']:+.2f} to {numbers['high']:+.2f}"
        axes.set_title(f"ρ = {numbers['rho']:+.2f} ({interval})", fontsize=10)
        axes.set_xlabel(numbers["label"], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(found) :]:
        axes.axis("off")
    for axes in panels[::4]:
        axes.set_ylabel("Recall@10")
    panels[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
