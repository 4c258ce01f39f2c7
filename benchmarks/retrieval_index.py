"""Indexes of a dense retriever on vectors that are random but clustered: queries a second, recall, and new items.

Items and queries are centers plus noise, so that neighbors exist, as among trained vectors. For every kind of index:
seconds to build, what the search looks at (chosen on other queries so that recall@50 is .98), queries a second in
batches of 512, milliseconds of one alone, and recall@50 and @100 against every product. Then a retriever's folder of
as many items gets new ones by `hf-gr add-items`, their vectors being given. All times are given twice: by the clock,
and of processors alone (all threads together), which others on the machine do not lengthen.

    python benchmarks/retrieval_index.py --items 1000000 --threads 2 --json index.json
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import measure
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_gr.artifacts import write_json
from hf_gr.catalog_updates import add_items
from hf_gr.models import TowersConfig, TowersModel
from hf_gr.models.item_features import FeatureRecipe
from hf_gr.retrieval.index import IndexKind, VectorIndex, exact_best, recall_of


BATCH, SINGLE = 512, 100


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--new", type=int, default=10_000, help="items that are added to a folder")
    parser.add_argument("--kinds", default="flat,ivf,hnsw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    faiss.omp_set_num_threads(chosen.threads)
    torch.set_num_threads(chosen.threads)
    random = np.random.default_rng(chosen.seed)
    centers = random.normal(size=(chosen.clusters, chosen.dim)).astype(np.float32)
    vectors, tuning, queries = (_drawn(random, centers, count) for count in (chosen.items, 500, chosen.queries))
    best = exact_best(vectors, queries, 100)
    found: dict[str, Any] = {"items": chosen.items, "dim": chosen.dim, "threads": chosen.threads}
    for kind in chosen.kinds.split(","):
        index, found[kind] = _measured(kind, vectors, tuning, queries, best)
        if chosen.new:
            found[kind]["add"] = _time_to_add(index, vectors, chosen.new, random)
        print(kind, found[kind], flush=True)
    if chosen.json:
        measure.write_json(chosen.json, found | measure.provenance("cpu"))
    return found


def _drawn(random: np.random.Generator, centers: np.ndarray, count: int) -> np.ndarray:
    """Vectors float32 [count, d] around random centers."""
    noise = random.normal(size=(count, centers.shape[1])).astype(np.float32)
    return centers[random.integers(0, len(centers), count)] + 0.5 * noise


def _timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call returns, and its seconds by the clock and of processors."""
    clock, processors = time.perf_counter(), time.process_time()
    result = run()
    return result, {"clock": time.perf_counter() - clock, "processors": time.process_time() - processors}


def _measured(
    kind: IndexKind, vectors: np.ndarray, tuning: np.ndarray, queries: np.ndarray, best: np.ndarray
) -> tuple[VectorIndex, dict[str, Any]]:
    index, built = _timed(lambda: VectorIndex.build(vectors, kind, tuning))
    batches = [queries[at : at + BATCH] for at in range(0, len(queries), BATCH)]
    items = np.concatenate([index.search(batch, 100)[1] for batch in batches])
    _, together = _timed(lambda: [index.search(batch, 50) for batch in batches])
    _, alone = _timed(lambda: [index.search(query[None], 50) for query in queries[:SINGLE]])
    return index, {
        "build_seconds": built,
        "effort": index.effort,
        "queries_per_second": {name: len(queries) / seconds for name, seconds in together.items()},
        "single_ms": {name: 1000 * seconds / min(SINGLE, len(queries)) for name, seconds in alone.items()},
        "recall@50": recall_of(items[:, :50], best[:, :50]),
        "recall@100": recall_of(items, best),
    }


def _time_to_add(index: VectorIndex, vectors: np.ndarray, new: int, random: np.random.Generator) -> dict[str, float]:
    """Seconds of `add_items` on a retriever's folder, whose item tower reads vectors of a file."""
    width, count = vectors.shape[1], len(vectors)
    config = TowersConfig(count, 1, ["file"], {"file": width}, encoder={"hidden_size": width})
    model = TowersModel(config)
    model.vectors.copy_(torch.from_numpy(vectors))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        model.save_pretrained(folder)
        names = [f"i{row}" for row in range(count + new)]
        pq.write_table(pa.table({"item_id": names[:count], "title": names[:count]}), folder / "items.parquet")
        FeatureRecipe(("file",), {"file": width}).save(folder)
        info = {"sources": ["file"], "weights": [1.0], "dims": {"file": width}, "predicted": []}
        (folder / "embedder").mkdir()
        write_json(folder / "embedder" / "embeddings.json", info)
        if index.kind != "flat":
            index.save(folder)
        items = pa.table({"item_id": names[count:], "title": names[count:]})
        rows = list(random.normal(size=(new, width)).astype(np.float32))
        pq.write_table(pa.table({"item_id": names[count:], "vector": rows}), Path(scratch) / "vectors.parquet")
        file = Path(scratch) / "vectors.parquet"
        return _timed(lambda: add_items(folder, items, vectors_file=file))[1]


if __name__ == "__main__":
    main()
