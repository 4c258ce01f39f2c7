"""Items that nobody has used: taken out of all training, added to the finished model, how often are they found?

A share of the items is left out: of the item vectors, the codebook, every history, the model. Then `add-items` gives
them SIDs, and the model, as it is, recommends for every event on one of them what comes after the events before it,
ranked among all items. A model that knows items by ids alone scores 0; chance is 10 of all items. As a control, the
same items are added with their texts dealt among them: the same SIDs, wrongly given.

    python benchmarks/cold_items.py --dataset scientific/dataset --out cold --json cold.json

Resumable: run it again and it goes on.
"""

import argparse
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from codebook_study import RECOMMENDER

from hf_gr.arguments import configs_of
from hf_gr.catalog_updates import add_items
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.embedding import EmbedConfig, embed
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.quantizers import QuantizeConfig, quantize
from hf_gr.sft import SFT_CONFIGS, sft


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made on the way")
    parser.add_argument("--share", type=float, default=0.05, help="of the items that are left out")
    parser.add_argument("--method", default="rq_kmeans")
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--sources", default="text,behavior", help="of the item vectors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    dataset, out = InteractionDataset.load(chosen.dataset), chosen.out
    cold = np.random.default_rng(chosen.seed).random(dataset.num_items) < chosen.share
    warm_dataset = _without(dataset, cold, out / "warm")
    cases, others = (
        _cases(dataset, cold, out / "cold_cases"),
        _cases(dataset, ~cold, out / "warm_cases", last_only=True),
    )
    vectors = embed(EmbedConfig(str(warm_dataset), str(out / "vectors"), sources=chosen.sources.split(",")))
    catalog = quantize(
        QuantizeConfig(
            str(warm_dataset),
            str(vectors),
            str(out / "catalog"),
            method=chosen.method,
            codebook_size=chosen.codebook_size,
            seed=chosen.seed,
        )
    )
    model = sft(
        *configs_of(
            SFT_CONFIGS,
            dataset=str(warm_dataset),
            catalog=str(catalog),
            output_dir=str(out / "sft"),
            num_train_epochs=chosen.epochs,
            seed=chosen.seed,
            **RECOMMENDER,
        )
    )
    new = dataset.items.filter(pa.array(cold))
    grown = add_items(model, new, out=out / "grown")
    dealt = np.random.default_rng(chosen.seed).permutation(new.num_rows)
    wrong = new.take(pa.array(dealt)).set_column(new.column_names.index("item_id"), "item_id", new["item_id"])
    control = add_items(model, wrong, out=out / "control")
    found: dict[str, Any] = {
        "items": dataset.num_items,
        "cold_items": int(cold.sum()),
        "chance": 10 / dataset.num_items,
    }
    for name, of, judged in (("cold", grown, cases), ("control", control, cases), ("warm", grown, others)):
        result = evaluate(
            EvaluateConfig(
                str(judged),
                str(out / f"evaluation_{name}"),
                str(of),
                num_beams=50,
                top_k=50,
                batch_size=64,
                baselines=False,
            )
        )
        item = result["systems"]["model"]["item"]
        found[name] = {"cases": result["cases"]} | {metric: item[metric] for metric in ("HR@10", "HR@50", "NDCG@10")}
    found |= {"settings": {name: str(value) for name, value in vars(chosen).items()}} | measure.provenance("cpu")
    for name in ("cold", "control", "warm"):
        hit = found[name]["HR@10"]
        print(
            f"{name}: HR@10 {hit['value']:.4f} ({hit['low']:.4f} to {hit['high']:.4f}), {found[name]['cases']} cases"
        )
    if chosen.json:
        measure.write_json(chosen.json, found)
    return found


def _without(dataset: InteractionDataset, cold: np.ndarray, output: Path) -> Path:
    """The dataset without some items and their events; users who keep fewer than three events go too."""
    if not output.is_dir():
        events = _events(dataset)
        events = events.filter(pc.invert(pc.is_in(events["item_id"], dataset.items["item_id"].filter(pa.array(cold)))))
        counts = pc.value_counts(events["user_id"])
        enough = counts.field("values").filter(pc.greater_equal(counts.field("counts"), 3))
        events = events.filter(pc.is_in(events["user_id"], enough))
        _write(output, events, dataset.items.filter(pa.array(~cold)))
    return output


def _cases(dataset: InteractionDataset, wanted: np.ndarray, output: Path, last_only: bool = False) -> Path:
    """A dataset whose test events are those on wanted items with two events before them, each a user of its own."""
    if not output.is_dir():
        users, items, times = [], [], []
        for row, name in enumerate(dataset.events.user_ids.tolist()):
            rows = dataset.events.items[dataset.events.ptr[row] : dataset.events.ptr[row + 1]]
            for end in range(len(rows) - 1 if last_only else 2, len(rows)):
                if end >= 2 and wanted[rows[end]]:
                    users += [f"{name}#{end}"] * (end + 1)
                    items += [dataset.item_ids[item] for item in rows[: end + 1]]
                    times += range(end + 1)
        _write(output, pa.table({"user_id": users, "item_id": items, "timestamp": times}), dataset.items)
    return output


def _events(dataset: InteractionDataset) -> pa.Table:
    events = dataset.events
    return pa.table(
        {
            "user_id": np.repeat(events.user_ids, events.lengths).astype(str).tolist(),
            "item_id": [dataset.item_ids[item] for item in events.items.tolist()],
            "timestamp": np.concatenate([np.arange(length) for length in events.lengths]),
        }
    )


def _write(output: Path, events: pa.Table, items: pa.Table) -> None:
    write_dataset(output, events, items, source="Part of a data set, for a benchmark of new items.", time="position")


if __name__ == "__main__":
    main()
