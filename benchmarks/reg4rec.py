"""What do unordered codes buy, and which part of REG4Rec does it? Step by step from the flat model on.

Every arm trains by a recipe of `recipes/` with some keys changed, or goes on from another arm of the same seed, and
evaluates on the test part through the same functions as `hf-gr sft`, `hf-gr grpo` and `hf-gr evaluate`. Finished cells
are never run again, killed ones go on from their last checkpoint; a cell whose start is not there yet runs that first.
Then come means over seeds and, user by user, differences to one arm of the same seeds, 95 % intervals.

    python benchmarks/reg4rec.py --recipes hf_gr/recipes/amazon-scientific --dataset scientific/dataset \\
        --flat-catalog scientific/catalog --catalogs 'study/mpq{codes}-s{seed}' --out study              # the grid
    python benchmarks/reg4rec.py … --cells crss-s0,corp-s0 --against crss                              # a part of it

A cell takes some ten minutes of one core on some 50,000 events; those of 8 and 16 codes twice and four times that.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cells
import yaml

from hf_gr.artifacts import write_json


FLAT, SETS, GRPO = "sft-flat-small", "sft-reg4rec-small", "grpo-reg4rec-small"
THRESHOLD = 0.3  # of reflection, as the recipes evaluate with it


@dataclass(frozen=True)
class Arm:
    """What is trained, and how it is evaluated.

    Attributes:
        recipe: What trains it; none: the start is evaluated as it is.
        changes: Keys of the recipe that are changed.
        start: Arm of the same seed that it goes on from.
        codes: M, codes of an item in its catalogue; 0: the flat catalogue.
        reflection, beams: Of the evaluation.
        users: How many of them are judged; all if left out.
    """

    recipe: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    codes: int = 4
    reflection: float = 0.0
    beams: int | None = None
    users: int | None = None


PARS = {"step_hit": 0.3, "global_path": 1.0, "category_hit": 0.1, "step_consistency": 0.05, "repeat": 0.3}
SHORT, USERS = {"num_train_epochs": 4}, 2000  # the curve over M: shorter trainings, fewer users, all alike
ARMS = {
    "flat": Arm(FLAT, codes=0),
    "fixed": Arm(FLAT),  # the parallel codes, always from the first codebook to the last
    "random": Arm(SETS, {"confident_orders": 0.0, "set_credit": "next"}),  # in any order
    "next": Arm(SETS, {"set_credit": "next"}),  # most confident code first, and that one alone counts
    "trunk": Arm(SETS, {"trunk_weight": 1.0}),  # the history predicts too, in the order of the codebooks
    "half": Arm(SETS, {"confident_orders": 0.5}),  # every second batch in random order
    "crss": Arm(SETS),
    "exact": Arm(GRPO, {"rewards": {"exact": 1.0, "repeat": 0.3}, "target_steps": 1}, start="crss"),
    "pars": Arm(GRPO, {"target_steps": 1}, start="crss"),
    "msra": Arm(GRPO, start="crss"),
    "corp": Arm(start="msra", reflection=THRESHOLD),  # all of REG4Rec
    **{f"corp_{int(100 * theta)}": Arm(start="crss", reflection=theta) for theta in (0.1, 0.2)},  # more: suite parts
    **{f"m{codes}": Arm(SETS, SHORT, codes=codes, users=USERS) for codes in (2, 4, 8, 16)},
    **{
        f"m{codes}_beams{beams}": Arm(start=f"m{codes}", codes=codes, beams=beams, users=USERS)
        for codes in (2, 4, 8, 16)
        for beams in (10, 20, 100)
    },
}
GRID = [f"{arm}-s{seed}" for seed in range(3) for arm in ("flat", "crss", "msra", "corp")]
GRID += [f"{arm}-s0" for arm in ARMS if arm not in ("flat", "crss", "msra", "corp")]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", required=True, help=f"folder with {FLAT}.yaml, {SETS}.yaml and {GRPO}.yaml")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--flat-catalog", required=True, help="of the arm flat; {seed} stands for the seed of a cell")
    parser.add_argument("--catalogs", required=True, help="of the others; {codes} stands for M, {seed} as above")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cells; run again to go on")
    parser.add_argument("--cells", default=",".join(GRID), help="ARM-sSEED by commas")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; above 1 name none beside its start")
    parser.add_argument("--against", default="flat", help="arm that others of the same seeds are compared with")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--epochs", type=float, help="of SFT, in place of the recipe's")
    parser.add_argument("--max-steps", type=int, help="for a trial")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", metavar="CELL", help=argparse.SUPPRESS)  # one cell, in this process
    chosen = parser.parse_args(arguments)
    if chosen.only:
        run_cell(chosen.only, chosen)
        return {}
    names = ("recipes", "dataset", "flat_catalog", "catalogs", "out", "beams", "epochs", "max_steps")
    return cells.run_study(__file__, chosen, names, ARMS, chosen.against, ("NDCG@10", "HR@10"))


def run_cell(cell: str, chosen: argparse.Namespace) -> None:
    """Trains and evaluates a cell, and writes its row."""
    name, seed = cells.parts(cell)
    arm, started = ARMS[name], time.process_time()
    model = trained(name, seed, chosen)
    spent, folder = time.process_time() - started, chosen.out / cell
    beams = arm.beams or chosen.beams
    judged = cells.judged(chosen.dataset, model, folder / "test", beams, arm.reflection, arm.users)
    row = {"cell": cell, "arm": name, "seed": seed, "cpu_seconds": spent, "reflection": arm.reflection, "beams": beams}
    row |= {name: numbers["value"] for name, numbers in judged["systems"]["model"]["item"].items()}
    row |= {"pruned": judged.get("pruned"), "evaluation_cpu_seconds": time.process_time() - started - spent}
    write_json(folder / "row.json", row)


def trained(name: str, seed: int, chosen: argparse.Namespace) -> Path:
    """The model of an arm, trained now unless it is there."""
    from hf_gr.grpo import SidGRPOConfig, grpo
    from hf_gr.sft import SidSFTConfig, sft

    arm, folder = ARMS[name], chosen.out / f"{name}-s{seed}"
    start = trained(arm.start, seed, chosen) if arm.start else None
    if arm.recipe is None:
        assert start is not None
        return start
    settings = yaml.safe_load((Path(chosen.recipes) / f"{arm.recipe}.yaml").read_text(encoding="utf-8")) | arm.changes
    settings |= {"dataset": chosen.dataset, "seed": seed, "disable_tqdm": True, "save_total_limit": 1}
    if chosen.max_steps is not None:
        settings["max_steps"] = chosen.max_steps
    if start is not None:
        return grpo(SidGRPOConfig(**settings | {"model": str(start), "output_dir": str(folder / "grpo")}))
    if chosen.epochs is not None:
        settings["num_train_epochs"] = chosen.epochs
    pattern = chosen.catalogs if arm.codes else chosen.flat_catalog
    catalog = pattern.format(seed=seed, codes=arm.codes)
    return sft(SidSFTConfig(**settings | {"catalog": catalog, "output_dir": str(folder / "sft")}))


if __name__ == "__main__":
    main()
