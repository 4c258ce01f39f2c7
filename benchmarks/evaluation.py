"""Evaluation against training: does judging a model cost less than teaching it once over?

Trains a small model from scratch for one epoch over a dataset's users, then evaluates it on all of them, both through
the same functions as `hf-gr sft` and `hf-gr evaluate`, and prints the ratio of the two times.

    hf-gr prepare table … --out beauty/dataset; hf-gr embed …; hf-gr quantize --codebook_size 256 …
    python benchmarks/evaluation.py --dataset beauty/dataset --catalog beauty/catalog --json evaluation.json
"""

import argparse
import tempfile
import time
from pathlib import Path

import measure

from hf_gr.arguments import configs_of
from hf_gr.artifacts import read_json
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.sft import SFT_CONFIGS, sft


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--catalog", required=True, help="SID catalog of it")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--max-history", type=int, default=50)
    parser.add_argument("--train-batch", type=int, default=64)
    parser.add_argument("--eval-batch", type=int, default=64)
    parser.add_argument("--exclude-seen", action="store_true")
    parser.add_argument("--max-steps", type=int, default=-1, help="for a trial: fewer steps than an epoch")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = sft(
            *configs_of(
                SFT_CONFIGS,
                dataset=chosen.dataset,
                catalog=chosen.catalog,
                output_dir=f"{folder}/sft",
                model={"architecture": "qwen3", "layers": chosen.layers, "width": chosen.width},
                max_history=chosen.max_history,
                num_train_epochs=1,
                max_steps=chosen.max_steps,
                per_device_train_batch_size=chosen.train_batch,
                learning_rate=2e-3,
                save_strategy="no",
                logging_steps=50,
            )
        )
        epoch = next(entry for entry in read_json(model / "training_log.json") if "train_runtime" in entry)
        start = time.perf_counter()
        result = evaluate(
            EvaluateConfig(
                dataset=chosen.dataset,
                model=str(model),
                output_dir=f"{folder}/evaluation",
                num_beams=chosen.beams,
                top_k=chosen.beams,
                batch_size=chosen.eval_batch,
                dtype="bfloat16",
                exclude_seen=chosen.exclude_seen,
                baselines=False,
            )
        )
        seconds = time.perf_counter() - start
    found = {
        "settings": vars(chosen) | {"json": None},
        "users": result["users"],
        "epoch_s": epoch["train_runtime"],
        "evaluation_s": seconds,
        "ratio": seconds / epoch["train_runtime"],
    } | measure.provenance("cpu")
    print({name: found[name] for name in ("users", "epoch_s", "evaluation_s", "ratio")})
    if chosen.json:
        measure.write_json(chosen.json, found)
    return found


if __name__ == "__main__":
    main()
