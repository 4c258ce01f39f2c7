"""What do S²GR's thoughts and IntRR's single positions buy? Both, part by part, on one model, codebook and budget.

Every cell trains by a recipe of `recipes/` with some keys changed and evaluates on the test part, through the same
functions as `hf-gr sft` and `hf-gr evaluate`. Finished cells are never run again, killed ones go on from their last
checkpoint. Then come means over seeds and, user by user, differences to one arm of the same seeds, 95 % intervals.

    python benchmarks/sft_quality.py --recipes hf_gr/recipes/amazon-scientific --dataset scientific/dataset \\
        --catalog scientific/catalog --out study                                                      # the grid
    python benchmarks/sft_quality.py … --cells flat-s0,s2gr-s0 --against flat                         # a part of it

A cell takes five to fifteen minutes of one core on some 50,000 events.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cells

from hf_gr.artifacts import write_json


FLAT, S2GR, INTRR = "sft-flat-small", "sft-s2gr-small", "sft-intrr-small"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {  # arm → recipe and what is changed in it
    "flat": (FLAT, {}),
    "s2gr": (S2GR, {}),
    "stepwise": (S2GR, {"thinking": None}),  # thinking tokens that nothing supervises
    "trunk": (S2GR, {"trunk_weight": 1.0}),  # the history's own tokens predict the next item, too
    "upfront": (S2GR, {"form": "upfront"}),  # all thinking before the first code
    "no_align": (S2GR, {"thinking": {"align": 0.0}}),
    "no_interest": (S2GR, {"thinking": {"interest": 0.0, "agreement": 0.0}}),
    "hidden": (S2GR, {"thinking": {"feedback": "hidden"}}),
    "codebook": (S2GR, {}),  # S²GR on a plain RQ-KMeans: give --other-catalog
    "flat_codebook": (FLAT, {}),
    "intrr": (INTRR, {}),
    "intrr_free": (INTRR, {"recursion": {"input_weight": 0.0}}),  # nothing pulls learned codes to the SID
    "intrr_weak": (INTRR, {"recursion": {"input_weight": 0.1}}),
    "intrr_strong": (INTRR, {"recursion": {"input_weight": 4.0}}),
    "intrr_narrow": (INTRR, {"recursion": {"item_width": 32}}),
    "intrr_hashed": (INTRR, {"recursion": {"item_rows": 1024}}),
    "flat_wide": (FLAT, {"model": {"width": 256}, "hidden_dropout": 0.3, "learning_rate": 2.0e-3}),
    "flat_deep": (FLAT, {"model": {"layers": 4}, "learning_rate": 2.0e-3}),
    "s2gr_deep": (S2GR, {"model": {"layers": 4}, "learning_rate": 2.0e-3}),
}
GRID = [*(f"{arm}-s{seed}" for seed in range(3) for arm in ("flat", "s2gr", "intrr"))]
GRID += [f"{arm}-s0" for arm in ARMS if arm not in ("flat", "s2gr", "intrr")]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", required=True, help=f"folder with {FLAT}.yaml, {S2GR}.yaml and {INTRR}.yaml")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--catalog", required=True, help="SID catalogue; {seed} in it stands for the seed of a cell")
    parser.add_argument("--other-catalog", help="for the cells codebook and flat_codebook")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cells; run again to go on")
    parser.add_argument("--cells", default=",".join(GRID), help="ARM-sSEED by commas")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, each on its share of the cores")
    parser.add_argument("--against", default="flat", help="arm that others of the same seeds are compared with")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--epochs", type=float, help="in place of the recipe's")
    parser.add_argument("--max-steps", type=int, help="for a trial")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", metavar="CELL", help=argparse.SUPPRESS)  # one cell, in this process
    chosen = parser.parse_args(arguments)
    if chosen.only:
        run_cell(chosen.only, chosen)
        return {}
    names = ("recipes", "dataset", "catalog", "other_catalog", "out", "beams", "epochs", "max_steps")
    return cells.run_study(__file__, chosen, names, ARMS, chosen.against, ("HR@10", "NDCG@10"))


def run_cell(cell: str, chosen: argparse.Namespace) -> None:
    """Trains and evaluates a cell, and writes its row."""
    import yaml

    from hf_gr.sft import SidSFTConfig, sft

    arm, seed = cells.parts(cell)
    recipe, changes = ARMS[arm]
    settings = yaml.safe_load((Path(chosen.recipes) / f"{recipe}.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        settings[key] = settings[key] | value if isinstance(value, dict) else value
    if chosen.epochs is not None:
        settings["num_train_epochs"] = chosen.epochs
    if chosen.max_steps is not None:
        settings["max_steps"] = chosen.max_steps
    catalog = chosen.other_catalog if arm.endswith("codebook") else chosen.catalog
    folder = chosen.out / cell
    paths = {"dataset": chosen.dataset, "catalog": catalog.format(seed=seed), "output_dir": str(folder / "sft")}
    started = time.process_time()
    model = sft(SidSFTConfig(**settings | paths | {"seed": seed, "disable_tqdm": True, "save_total_limit": 1}))
    trained = time.process_time() - started
    judged = cells.judged(chosen.dataset, model, folder / "test", chosen.beams)
    row = {"cell": cell, "arm": arm, "seed": seed, "cpu_seconds": trained, "settings": settings}
    row |= {name: numbers["value"] for name, numbers in judged["systems"]["model"]["item"].items()}
    row |= {"thoughts": judged.get("thoughts")}
    write_json(folder / "row.json", row)


if __name__ == "__main__":
    main()
