"""IntRR against flat semantic IDs, the same backbone, catalog and users: training, activation memory, latency.

- Training: targets per second of an epoch on a sample of users (the arms of `sft.py`): `plain flat` (one row per
  target, as published), `flat` (one pass over a history) and `recursive`. `train_ratio` is against the one pass,
  `train_ratio_per_target` against the rows.
- `memory_ratio`: bytes that autograd keeps of one batch's forward pass, weights not counted, `recursive` over `flat`.
- Latency of a constrained beam search after the users' histories, in turns with flat, at every batch and width;
  `latency_ratio_50` is flat over recursive at 50 beams and batch 1.
- `table`: peak memory of AdamW steps on the unique-ID table alone, for so many items and for a hashed one.

What IntRR gains in NDCG@10 is a row of the suites (`hf-gr bench scientific`).

    python benchmarks/intrr.py --dataset beauty/dataset --catalog beauty/catalog --json intrr.json   # some ten minutes
    python benchmarks/intrr.py … --users 100 --layers 2 --width 128 --repeats 1                      # a trial
    python benchmarks/intrr.py … --bf16 --users 20000                                                # on a GPU
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import sft as training
import torch
from torch.autograd.graph import saved_tensors_hooks

from hf_gr.arguments import configs_of
from hf_gr.branches import Packed
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories, InteractionDataset
from hf_gr.decoding import tree_search
from hf_gr.models import last_hidden
from hf_gr.sft import SFT_CONFIGS
from hf_gr.sft.loss import answer_loss
from hf_gr.sft.run import starting_model
from hf_gr.sft.tasks import next_item
from hf_gr.sft.trainer import Collator


FORMS = ("flat", "recursive")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--catalog", required=True, help="its SID catalog")
    parser.add_argument("--users", type=int, default=1000, help="users of an epoch, drawn at random")
    parser.add_argument("--train-batch", type=int, default=64, help="users a step")
    parser.add_argument("--micro-batch", type=int, default=32, help="rows that `plain flat` takes at a time")
    parser.add_argument("--max-history", type=int, default=50)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="users of a search")
    parser.add_argument("--beams", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--repeats", type=int, default=2, help="turns of all arms of the training")
    parser.add_argument("--rounds", type=int, default=15, help="turns of the searches")
    parser.add_argument("--table", type=int, default=1_000_000, help="items of the unique-ID table; 0: leave it out")
    parser.add_argument("--table-width", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    catalog = SidCatalog.load(chosen.catalog)
    train = InteractionDataset.load(chosen.dataset).aligned(catalog.item_ids).split().train
    result: dict[str, Any] = {"training": _training(chosen)}
    arms = result["training"]["arms"]

    def faster(other: str) -> float | None:
        return measure.ratio(arms["recursive"]["targets_per_s"], arms[other]["targets_per_s"])

    result |= {"train_ratio": faster("flat"), "train_ratio_per_target": faster("plain flat")}
    cases = {form: Case(form, chosen, catalog, train) for form in FORMS}
    kept = {form: case.activations() for form, case in cases.items()}
    result |= {"activation_mb": kept, "memory_ratio": measure.ratio(kept["recursive"], kept["flat"])}
    result["latency"] = [
        _latency(cases, batch, beams, chosen.rounds, device) for batch in chosen.batch for beams in chosen.beams
    ]
    single = [found["ratio"] for found in result["latency"] if (found["batch"], found["beams"]) == (1, 50)]
    result["latency_ratio_50"] = single[0] if single else None
    rows = {"whole": chosen.table, "hashed": chosen.table // 10} if chosen.table else {}
    result["table"] = {name: _table(count, chosen.table_width, device) for name, count in rows.items()}
    result |= {"settings": {name: str(value) for name, value in vars(chosen).items()}}
    result |= measure.provenance(device)
    show(result)
    if chosen.json:
        measure.write_json(chosen.json, result)
    return result


def _training(chosen: argparse.Namespace) -> dict[str, Any]:
    names = ("dataset", "catalog", "users", "micro_batch", "max_history", "layers", "width", "repeats")
    given = [f"--{name.replace('_', '-')}={vars(chosen)[name]}" for name in names] + ["--bf16"] * chosen.bf16
    return training.main([*given, f"--batch={chosen.train_batch}", "--arms=plain flat,flat,recursive"])


class Case:
    """A model of one form at its start, and the users it is tried on."""

    def __init__(self, form: str, chosen: argparse.Namespace, catalog: SidCatalog, train: Histories):
        self.form, self.chosen, self.catalog = form, chosen, catalog
        with tempfile.TemporaryDirectory() as folder:
            _, config, _ = configs_of(
                SFT_CONFIGS,
                dataset=chosen.dataset,
                catalog=chosen.catalog,
                output_dir=folder,
                model={"architecture": "qwen3", "layers": chosen.layers, "width": chosen.width},
                max_history=chosen.max_history,
                form=form,
                bf16=False,
            )
            model, _, self.vocabulary = starting_model(config, catalog, train)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.to(device=device, dtype=torch.bfloat16 if chosen.bf16 else torch.float32)
        self.grammar = self.vocabulary.grammar(catalog).to(device)
        self.train = training.sample(train, max(chosen.train_batch, *chosen.batch))

    def activations(self) -> float:
        """MiB that autograd keeps of the forward pass over a batch of users, each distinct piece of memory once."""
        rows = next_item(training.sample(self.train, self.chosen.train_batch), self.catalog, self.vocabulary)
        packed = Packed.of_batch(Collator(self.vocabulary.think_ids)(rows.to_list())).to(self.model.device)
        weights = {weight.untyped_storage().data_ptr() for weight in self.model.parameters()}
        held: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        self.model.train()
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            inputs = packed.inputs(self.model.config.get_text_config()._attn_implementation, self.model.dtype)
            loss = answer_loss(self.model, last_hidden(self.model, **inputs), packed, self.grammar).loss
        size = sum(tensor.untyped_storage().nbytes() for tensor in held.values()) / (1 << 20)
        del loss
        self.model.eval()
        return size

    def search(self, batch: int, beams: int) -> Callable[[], Any]:
        prompts = self.vocabulary.prompts(training.sample(self.train, batch), self.catalog)
        return lambda: tree_search(self.model, prompts, self.grammar, num_beams=beams)


def _latency(cases: dict[str, Case], batch: int, beams: int, rounds: int, device: str) -> dict[str, Any]:
    timed = measure.alternating(
        {form: case.search(batch, beams) for form, case in cases.items()}, rounds, device, memory=False
    )
    seconds = {form: timed[form].median for form in cases}
    ratio = measure.ratio(seconds["flat"], seconds["recursive"])
    return {"batch": batch, "beams": beams, "seconds": seconds, "ratio": ratio}


def _table(rows: int, width: int, device: str) -> dict[str, float | None]:
    """A step on 1,280 rows of a table, as every batch of 64 histories of 20 items takes one."""
    drawn = torch.randint(rows, (1280,), device=device)

    def step() -> None:
        table = torch.nn.Embedding(rows, width, device=device)
        optimizer = torch.optim.AdamW(table.parameters())
        for _ in range(2):
            table(drawn).sum().backward()
            optimizer.step()

    timed = measure.alternating({"table": step}, 1, device, warm_up=False)["table"]
    return {"rows": rows, "width": width, "peak_mb": timed.peak_mb, "mb_by_count": rows * width * 16 / (1 << 20)}


def show(result: dict[str, Any]) -> None:
    print("\n| batch | beams | flat, ms | recursive, ms | ratio |\n|---|---|---|---|---|")
    for found in result["latency"]:
        times = " | ".join(f"{1e3 * found['seconds'][form]:.1f}" for form in FORMS)
        print(f"| {found['batch']} | {found['beams']} | {times} | {found['ratio']:.2f} |")
    kept = result["activation_mb"]
    print(f"\nactivations: flat {kept['flat']:.0f} MiB, recursive {kept['recursive']:.0f} MiB")
    for name, found in result["table"].items():
        print(f"table, {name}: {found['rows']:,} × {found['width']}: {found['peak_mb']:.0f} MiB at the peak of a step")
    for name in ("train_ratio", "train_ratio_per_target", "memory_ratio", "latency_ratio_50"):
        if result[name] is not None:
            print(f"{name}: {result[name]:.2f}")


if __name__ == "__main__":
    main()
