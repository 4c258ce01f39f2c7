"""SFT over trunks and branches against one row per target: targets per second, tokens per second, memory.

The same users, model, targets and targets per optimizer step in every arm:

- `plain flat`, `plain stepwise`: TRL's own trainer, collator and loss on one row per target (history, then answer), as
  MiniOneRec-style recipes do; length-grouped, padded batches of as many rows as the other arms have targets a step,
  at once or (`--micro-batch 32`, faster on a CPU) a part at a time with accumulated gradients.
- `flat`, `stepwise`: hf_gr, every position of a history in one pass. `s2gr`: `stepwise` with its thinking heads.
  `recursive`: IntRR, one position an item (not among the default arms; see `intrr.py`).

Every arm is a process of its own that trains one epoch on a sample of users, in turns; peak memory is the process's.

    python benchmarks/sft.py --dataset beauty/dataset --catalog beauty/catalog --json sft.json      # some ten minutes
    python benchmarks/sft.py … --users 200 --layers 2 --width 128 --repeats 1                       # a trial
    python benchmarks/sft.py … --model SmolLM2 --bf16 --users 20000 --peak-tflops 989                # on a GPU

`flat_ratio` and `s2gr_ratio` are targets per second against the plain arm of the same form, `memory_ratio` the larger
of the two peaks over that of its plain arm. `mfu` is 6 × parameters × tokens per second over the peak that is given.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from hf_gr.arguments import configs_of
from hf_gr.branches import separate
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories, InteractionDataset


ARMS = ("plain flat", "flat", "plain stepwise", "stepwise", "s2gr")
FORMS = {"flat": "flat", "recursive": "recursive"}  # of an arm's last word; the others are stepwise


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--catalog", required=True, help="its SID catalog")
    parser.add_argument("--users", type=int, default=1000, help="users drawn at random; an epoch is all of them")
    parser.add_argument("--batch", type=int, default=64, help="users a step; as many targets a step in the plain arms")
    parser.add_argument(
        "--micro-batch", type=int, help="rows that the plain arms take at a time, accumulating gradients; all at once"
    )
    parser.add_argument("--max-history", type=int, default=50)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--model", help="pretrained LM in place of one from scratch")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device at this precision, for mfu")
    parser.add_argument("--arms", default=",".join(ARMS), help="arms by commas")
    parser.add_argument("--repeats", type=int, default=2, help="turns of all arms; the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", choices=(*ARMS, "recursive"), help=argparse.SUPPRESS)  # one arm, in this process
    chosen = parser.parse_args(arguments)
    if chosen.only:
        print(json.dumps(run_arm(chosen.only, chosen)), flush=True)
        return {}
    given = list(sys.argv[1:] if arguments is None else arguments)
    arms = chosen.arms.split(",")
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for turn in range(chosen.repeats):
        for arm in arms:
            runs[arm].append(_run_apart(arm, given))
            print(f"turn {turn + 1}, {arm}: {runs[arm][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    settings = {name: str(value) for name, value in vars(chosen).items() if name not in ("json", "only")}
    result = summary(runs, chosen.peak_tflops) | {"settings": settings}
    result |= measure.provenance("cuda" if torch.cuda.is_available() else "cpu")
    show(result)
    if chosen.json:
        measure.write_json(chosen.json, result)
    return result


def _run_apart(arm: str, given: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, *given, "--only", arm]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {arm} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_arm(arm: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Trains one arm for an epoch."""
    from hf_gr.sft import SFT_CONFIGS, SidSFTTrainer
    from hf_gr.sft.run import starting_heads, starting_model
    from hf_gr.sft.tasks import next_item

    catalog = SidCatalog.load(chosen.catalog)
    train = sample(InteractionDataset.load(chosen.dataset).aligned(catalog.item_ids).split().train, chosen.users)
    with tempfile.TemporaryDirectory() as folder:
        configs = configs_of(
            SFT_CONFIGS,
            dataset=chosen.dataset,
            catalog=chosen.catalog,
            output_dir=folder,
            model=chosen.model or {"architecture": "qwen3", "layers": chosen.layers, "width": chosen.width},
            attention=chosen.attention,
            max_history=chosen.max_history,
            form=FORMS.get(arm.split()[-1], "stepwise"),
            thinking={} if arm == "s2gr" else None,
            num_train_epochs=1,
            bf16=chosen.bf16,
            per_device_train_batch_size=chosen.batch,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10_000,
        )
        _, start, config = configs
        model, tokenizer, vocabulary = starting_model(start, catalog, train, config.seed)
        rows = next_item(train, catalog, vocabulary)
        targets = sum(map(len, rows["attach"]))
        if arm.startswith("plain"):
            batch = math.ceil(targets / len(rows) * chosen.batch)
            config.gradient_accumulation_steps = math.ceil(batch / (chosen.micro_batch or batch))
            config.per_device_train_batch_size = math.ceil(batch / config.gradient_accumulation_steps)
            trainer = _plain_trainer(model, tokenizer, rows, config)
        else:
            trainer = SidSFTTrainer(
                model,
                config,
                catalog=catalog,
                vocabulary=vocabulary,
                processing_class=tokenizer,
                train_dataset=rows,
                heads=starting_heads(start, model, catalog, vocabulary, config.seed),
            )
        before = peak_mb()
        trainer.train()
        seconds = next(entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry)
        tokens = max(entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry)
    return {
        "seconds": seconds,
        "targets": targets,
        "tokens": int(tokens),
        "steps": trainer.state.global_step,
        "batch": config.per_device_train_batch_size,
        "accumulated": config.gradient_accumulation_steps,
        "peak_mb": peak_mb(),
        "training_mb": peak_mb() - before if not torch.cuda.is_available() else peak_mb(),
        "parameters": model.num_parameters(),
    }


def _plain_trainer(model: Any, tokenizer: Any, rows: Dataset, config: Any) -> Any:
    """TRL's trainer on one row per target."""
    from trl import SFTConfig, SFTTrainer

    plain = [
        {"input_ids": single["input_ids"] + single["answers"][0][-1:], "labels": _shifted(single)}
        for row in rows.to_list()
        for single in separate(row)
    ]
    names = ("output_dir", "num_train_epochs", "bf16", "per_device_train_batch_size", "train_sampling_strategy")
    names += (
        "gradient_accumulation_steps",
        "save_strategy",
        "disable_tqdm",
        "logging_steps",
        "learning_rate",
        "use_cpu",
        "gradient_checkpointing",
    )
    settings = {name: getattr(config, name) for name in names}
    return SFTTrainer(
        model,
        args=SFTConfig(**settings, report_to="none", dataset_kwargs={"skip_prepare_dataset": True}, max_length=None),
        train_dataset=Dataset.from_list(plain),
        processing_class=tokenizer,
    )


def _shifted(row: Any) -> list[int]:
    labels = row["labels"][0]
    return [-100] * (row["attach"][0]) + labels


def sample(train: Histories, users: int) -> Histories:
    """The histories of some users, whole."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:users])
    return train.cut(chosen, train.lengths[chosen])


def peak_mb() -> float:
    """Largest memory so far, in MiB: torch's on a GPU, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summary(runs: dict[str, list[dict[str, Any]]], peak_tflops: float | None) -> dict[str, Any]:
    """Medians over the turns, and the ratios; a ratio whose arms were not run is `None`."""
    arms = {
        arm: found[0]
        | {"seconds": statistics.median(run["seconds"] for run in found)}
        | {"peak_mb": max(run["peak_mb"] for run in found)}
        | {"training_mb": max(run["training_mb"] for run in found)}
        for arm, found in runs.items()
    }
    for figures in arms.values():
        figures["targets_per_s"] = figures["targets"] / figures["seconds"]
        figures["tokens_per_s"] = figures["tokens"] / figures["seconds"]
        flops = 6 * figures["parameters"] * figures["tokens_per_s"]
        figures["mfu"] = None if peak_tflops is None else flops / (peak_tflops * 1e12)

    def of(arm: str, key: str) -> float | None:
        return arms[arm][key] if arm in arms else None

    speed = {
        f"{arm.replace(' ', '_')}_ratio": measure.ratio(of(arm, "targets_per_s"), of(plain, "targets_per_s"))
        for arm, plain in (("flat", "plain flat"), ("stepwise", "plain stepwise"), ("s2gr", "plain stepwise"))
    }
    implied = {
        f"{arm}_tokens_ratio": measure.ratio(of(plain, "tokens"), of(arm, "tokens"))
        for arm, plain in (("flat", "plain flat"), ("stepwise", "plain stepwise"))
    }
    pairs = (("flat", "plain flat"), ("s2gr", "plain stepwise"))
    memory = [measure.ratio(of(arm, "peak_mb"), of(plain, "peak_mb")) for arm, plain in pairs]
    known = [value for value in memory if value is not None]
    return {"arms": arms} | speed | implied | {"memory_ratio": max(known) if known else None}


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"SFT of an epoch, {result['hardware']['threads']} thread(s)")
    for name in ("arm", "targets/s", "tokens/s", "tokens", "rows a step", "peak MB", "of training MB", "seconds"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, f in result["arms"].items():
        numbers = [
            f"{f['targets_per_s']:.0f}",
            f"{f['tokens_per_s']:.0f}",
            f"{f['tokens']:,}",
            f"{f['accumulated']} × {f['batch']}",
        ]
        table.add_row(arm, *numbers, f"{f['peak_mb']:.0f}", f"{f['training_mb']:.0f}", f"{f['seconds']:.1f}")
    Console().print(table)
    for name, value in result.items():
        if name.endswith("_ratio") and value is not None:
            print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
