"""What does GRPO buy, and which reward? Every reward alone, mixes and rollouts, on top of finished SFT models.

Every cell trains by the recipe `grpo-small.yaml` of a folder of `recipes/` with some keys changed, starting from the
SFT model of its seed (a cell of `sft_quality.py`), and evaluates on the test part through the same functions as
`hf-gr grpo` and `hf-gr evaluate`. Finished cells are never run again. The arm `sft` is the model that the others start
from; differences to it are taken user by user, 95 % intervals.

    python benchmarks/grpo_quality.py --recipes hf_gr/recipes/amazon-scientific --dataset scientific/dataset \\
        --start 'study/flat-s{seed}' --out study-grpo                                                 # the grid
    python benchmarks/grpo_quality.py … --cells sft-s0,mix-s0                                         # a part of it

A cell takes some five minutes of one core.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cells
import yaml

from hf_gr.artifacts import write_json


LAST = {"eval_strategy": "no", "patience": 0}  # the last step's model, whatever became of it
ALONE = {
    name: {"rewards": {name: 1.0}} | LAST
    for name in (
        "exact", "ranking", "prefix", "ndcg", "semantic", "collaborative", "novelty", "repeat", "interest", "step_hit",
        "global_path", "category_hit", "step_consistency",
    )
}  # fmt: skip
GROUP = {"estimator": "group", "scale_rewards": "group"}  # TRL's defaults
ARMS: dict[str, dict[str, Any]] = {  # arm → what is changed in the recipe
    "sft": {},  # nothing is trained
    "mix": {},  # the recipe as it stands
    **ALONE,
    "minionerec": {"rewards": {"exact": 1.0, "ranking": 1.0}, "rollout": "beam"} | GROUP | LAST,
    "sample": {"rollout": "sample", "estimator": "leave_one_out"} | LAST,
    "gumbel": GROUP | LAST,  # as if distinct draws were independent ones
    "msra": {"target_steps": 3} | LAST,
    "no_kl": {"beta": 0.0} | LAST,
    "less_kl": {"beta": 0.1},
    "neighbours": {"rewards": {"exact": 1.0, "collaborative": 1.0, "repeat": 0.3}},
    # for catalogues on which one of the next items is seldom among 16 rollouts
    "many": {"num_generations": 64, "per_device_train_batch_size": 8192, "target_steps": 3, "learning_rate": 2.0e-4},
    "last": LAST,
}
METRICS = ("NDCG@10", "HR@10", "HR@50")
GRID = [*(f"{arm}-s{seed}" for seed in range(3) for arm in ("sft", "mix"))]
GRID += [f"{arm}-s0" for arm in ARMS if arm not in ("sft", "mix")]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", required=True, help="folder with grpo-small.yaml")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--start", required=True, help="cell of sft_quality.py; {seed} stands for the seed of a cell")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cells; run again to go on")
    parser.add_argument("--cells", default=",".join(GRID), help="ARM-sSEED by commas")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, each on its share of the cores")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--max-steps", type=int, help="in place of the recipe's")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", metavar="CELL", help=argparse.SUPPRESS)  # one cell, in this process
    chosen = parser.parse_args(arguments)
    if chosen.only:
        run_cell(chosen.only, chosen)
        return {}
    names = ("recipes", "dataset", "start", "out", "beams", "max_steps")
    return cells.run_study(__file__, chosen, names, ARMS, "sft", METRICS)


def run_cell(cell: str, chosen: argparse.Namespace) -> None:
    """Trains and evaluates a cell, and writes its row."""
    from hf_gr.grpo import SidGRPOConfig, grpo

    arm, seed = cells.parts(cell)
    folder = chosen.out / cell
    start = Path(chosen.start.format(seed=seed)) / "sft" / "model"
    settings = yaml.safe_load((Path(chosen.recipes) / "grpo-small.yaml").read_text(encoding="utf-8")) | ARMS[arm]
    if chosen.max_steps is not None:
        settings["max_steps"] = chosen.max_steps
    started = time.process_time()
    model = start
    if arm != "sft":
        paths = {"dataset": chosen.dataset, "model": str(start), "output_dir": str(folder / "grpo")}
        quiet = {"disable_tqdm": True, "save_total_limit": 1}
        model = grpo(SidGRPOConfig(**settings | paths | {"seed": seed} | quiet))
    trained = time.process_time() - started
    judged = cells.judged(chosen.dataset, model, folder / "test", chosen.beams)
    row = {"cell": cell, "arm": arm, "seed": seed, "cpu_seconds": trained, "settings": settings}
    row |= {name: numbers["value"] for name, numbers in judged["systems"]["model"]["item"].items()}
    write_json(folder / "row.json", row)


if __name__ == "__main__":
    main()
