"""Every quantizer on the same item vectors: time to fit and encode, peak memory, and every metric of its codebook.

    python benchmarks/codebooks.py --dataset beauty/dataset --embeddings beauty/vectors --json codebooks.json
    python benchmarks/codebooks.py … --methods r3_vae --seeds 10          # does it ever collapse?

Every fit runs in a process of its own, so that its memory is its own. Metrics are those of the codes as they come;
`after` counts the distinct SIDs once collisions are resolved, by each way of doing so.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np

from hf_gr.dataset import InteractionDataset, popularity
from hf_gr.embedding import ItemVectors
from hf_gr.embedding.behavior import cooccurrence
from hf_gr.quantizers import QuantizeConfig, codebook_report, resolve_collisions
from hf_gr.quantizers.stage import new_quantizer


CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {  # name → method, its settings
    "rq_kmeans": ("rq_kmeans", {}),
    "rq_kmeans balanced": ("rq_kmeans", {"balance": "last"}),
    "opq": ("opq", {}),
    "rq_vae plain": ("rq_vae", {"start": "random", "codebook_update": "gradient", "revive": False}),
    "rq_vae": ("rq_vae", {}),
    "r3_vae": ("r3_vae", {}),
    "coba": ("coba", {}),
}
RESOLVED = ("greedy", "sinkhorn", "digit")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--embeddings", required=True, help="its item vectors")
    parser.add_argument("--methods", default=",".join(CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=1, help="fits of each method")
    parser.add_argument("--settings", type=json.loads, default={}, help='for every method, such as {"epochs": 30}')
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one fit, in this process: NAME:SEED
    chosen = parser.parse_args(arguments)
    if chosen.only:
        print(json.dumps(fit_one(chosen)))
        return {}
    rows = []
    for name in chosen.methods.split(","):
        for seed in range(chosen.seeds):
            rows.append(_apart(chosen, name, seed))
            print(_line(rows[-1]), flush=True)
    result = {"rows": rows, "settings": vars(chosen) | {"json": None}} | measure.provenance("cpu")
    if chosen.json:
        measure.write_json(chosen.json, result)
    return result


def _apart(chosen: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", f"{name}:{seed}", "--dataset", chosen.dataset]
    command += ["--embeddings", chosen.embeddings, "--levels", str(chosen.levels)]
    command += ["--codebook-size", str(chosen.codebook_size), "--settings", json.dumps(chosen.settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {name} with seed {seed} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def fit_one(chosen: argparse.Namespace) -> dict[str, Any]:
    name, seed = chosen.only.rsplit(":", 1)
    method, settings = CONTENDERS[name][0], CONTENDERS[name][1] | chosen.settings
    dataset = InteractionDataset.load(chosen.dataset)
    split = dataset.split()
    graph = cooccurrence(split.train, dataset.num_items, 5)
    vectors = ItemVectors.load(chosen.embeddings).vectors
    config = QuantizeConfig(
        chosen.dataset, chosen.embeddings, "", method, chosen.levels, chosen.codebook_size, method_config=settings
    )
    quantizer = new_quantizer(config, vectors.shape[1])
    aligned = quantizer.align(vectors, graph)
    start = time.perf_counter()
    quantizer.fit(aligned, seed=int(seed), progress=False)
    fit_s = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    codes = quantizer.encode(aligned)
    start = time.perf_counter()
    rounds = max(1, 100_000 // len(vectors))  # some 100 thousand items
    for _ in range(rounds):
        quantizer.encode(aligned)
    encoded_s = (time.perf_counter() - start) / rounds
    counts = popularity(split.train, dataset.num_items)
    report = codebook_report(
        codes,
        quantizer.config.codebook_sizes,
        vectors=vectors,
        quantizer=quantizer,
        graph=graph,
        targets=split.test.targets,
        popularity=counts,
    )
    after = {}
    for way in RESOLVED:
        start = time.perf_counter()
        resolved = resolve_collisions(codes, aligned, quantizer, way)
        shared = len(codes) - len(np.unique(resolved.codes, axis=0))
        after[way] = {"items_without_own_sid": shared, "seconds": time.perf_counter() - start}
    return {
        "name": name,
        "seed": int(seed),
        "fit_s": fit_s,
        "encode_items_per_s": len(vectors) / encoded_s,
        "peak_mb": peak_mb,
        "after": after,
        "report": report,
    }


def _line(row: dict[str, Any]) -> str:
    """A row of the table in benchmarks/STUDIES.md."""
    report = row["report"]
    levels, nearest, together = report["levels"], report["nearest_overlap"], report["cooccurrence_overlap"]
    cells = [
        f"{row['name']}, seed {row['seed']}",
        f"{row['fit_s']:.0f} s",
        f"{row['encode_items_per_s'] / 1000:.0f} k/s",
        f"{row['peak_mb']:.0f} MB",
        " ".join(f"{level['use']:.1%}" for level in levels),
        " ".join(f"{level['perplexity']:.0f}" for level in levels),
        f"{report['collision_rate']:.1%}",
        f"{report['largest_bucket']}",
        " ".join(f"{error:.2f}" for error in report["error"]),
        " ".join(f"{value:.2f}" for value in report["semantic_cohesion"]),
        " ".join(f"{value:.2f}" for value in report["preference_discrimination"]),
        " ".join(f"{value:.3f}" for value in nearest["overlap"][:2]),
        " ".join(f"{value:.3f}" for value in together["overlap"][:2]),
        " ".join(str(way["items_without_own_sid"]) for way in row["after"].values()),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
