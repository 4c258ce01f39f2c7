"""What do mined interests buy? Semantic IDs of plain texts, of texts with interests, then tasks, then the reward.

Each arm adds one thing to the one before it, and all share model, budget and data:

    text       semantic IDs of item texts and co-occurrence
    interests  accepted interests stand in the text that is embedded (IEID)
    tasks      on those SIDs: interests to SID, SID to interests, a user's interests to SID, beside the usual task
    light      the same, less of it: without SID to interests, which takes most of the tokens, and half of the others
    control    on those SIDs: the model of `tasks`, which reads text, without these tasks
    reward     from `tasks`: GRPO with the interest-aware reward
    exact      from `tasks`: the same GRPO with the plain exact reward in its place

Interests come from `hf-gr mine` and `hf-gr label` (other miners are another --interests). Every cell trains by the
recipes of a folder and evaluates on the test part as `hf-gr evaluate` does. Finished cells are never run again.

    hf-gr mine --config hf_gr/recipes/amazon-scientific/mine.yaml
    hf-gr label --config hf_gr/recipes/amazon-scientific/label.yaml
    python benchmarks/interests.py --recipes hf_gr/recipes/amazon-scientific --dataset scientific/dataset \\
        --interests scientific/interests --out study-interests                                        # the grid
    python benchmarks/interests.py … --cells text-s0,interests-s0                                     # a part of it

A cell takes five to ten minutes of one core on Scientific.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cells
import yaml

from hf_gr.artifacts import write_json


PLAIN, ENRICHED = "text", "interests"
SFT = "sft-interests-small"
USUAL = {"tasks": {"next_item": 1.0}}
WITHOUT_TEXT = {"model": {"architecture": "qwen3", "layers": 2, "width": 128}}
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {  # arm → texts, changes of SFT, those of GRPO
    "text": (PLAIN, USUAL | WITHOUT_TEXT, None),
    "interests": (ENRICHED, USUAL | WITHOUT_TEXT, None),
    "light": (
        ENRICHED,
        {"tasks": {"next_item": 1.0, "interest_to_sid": 0.25, "user_interests_to_sid": 0.25}},
        None,
    ),
    "control": (ENRICHED, USUAL, None),
    "tasks": (ENRICHED, {}, None),
    "reward": (ENRICHED, {}, {}),
    "exact": (ENRICHED, {}, {"rewards": {"exact": 1.0, "repeat": 0.3}}),
}
GRID = [f"{arm}-s{seed}" for seed in range(3) for arm in ("text", "interests", "tasks")]
GRID += ["control-s0", "light-s0", *(f"reward-s{seed}" for seed in range(3)), "exact-s0"]  # go on from `tasks`


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", required=True, help="folder with {embed,quantize,sft,grpo}-interests….yaml")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--interests", required=True, help="folder of `hf-gr label`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cells; run again to go on")
    parser.add_argument("--cells", default=",".join(GRID), help="ARM-sSEED by commas")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, each on its share of the cores")
    parser.add_argument("--against", default="text", help="arm that others of the same seeds are compared with")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--max-steps", type=int, help="for a trial")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", metavar="CELL", help=argparse.SUPPRESS)  # one cell, in this process
    chosen = parser.parse_args(arguments)
    if chosen.only:
        run_cell(chosen.only, chosen)
        return {}
    prepare(chosen)
    names = ("recipes", "dataset", "interests", "out", "beams", "max_steps")
    return cells.run_study(__file__, chosen, names, ARMS, chosen.against, ("NDCG@10", "HR@10"))


def prepare(chosen: argparse.Namespace) -> None:
    """Item vectors and catalogues of the cells that are still to run; those that are up to date stay."""
    from hf_gr.embedding import EmbedConfig, embed
    from hf_gr.quantizers.station import QuantizeConfig, quantize

    for cell in chosen.cells.split(","):
        arm, seed = cells.parts(cell)
        if arm not in ARMS or (chosen.out / cell / "row.json").is_file():
            continue
        texts = ARMS[arm][0]
        paths = {"dataset": chosen.dataset, "output_dir": str(chosen.out / f"vectors-{texts}")}
        paths["interests"] = chosen.interests if texts == ENRICHED else None
        vectors = embed(EmbedConfig(**recipe(chosen, "embed-interests") | paths))
        paths = {
            "dataset": chosen.dataset,
            "embeddings": str(vectors),
            "output_dir": str(catalog_of(chosen, texts, seed)),
        }
        quantize(QuantizeConfig(**recipe(chosen, "quantize-interests") | paths | {"seed": seed}))


def run_cell(cell: str, chosen: argparse.Namespace) -> None:
    """Trains and evaluates a cell, and writes its row."""
    from hf_gr.grpo import SidGRPOConfig, grpo
    from hf_gr.sft import SidSFTConfig, sft

    arm, seed = cells.parts(cell)
    texts, of_sft, of_grpo = ARMS[arm]
    folder = chosen.out / cell
    quiet = {"disable_tqdm": True, "save_total_limit": 1, "seed": seed}
    if chosen.max_steps is not None:
        quiet["max_steps"] = chosen.max_steps
    started = time.process_time()
    if of_grpo is None:
        paths = {"catalog": str(catalog_of(chosen, texts, seed)), "output_dir": str(folder / "sft")}
        settings = recipe(chosen, SFT) | of_sft | paths
        model = sft(SidSFTConfig(**settings | {"dataset": chosen.dataset, "interests": chosen.interests} | quiet))
    else:
        start = chosen.out / f"tasks-s{seed}" / "sft" / "model"
        settings = recipe(chosen, "grpo-interests-small") | of_grpo
        paths = {"model": str(start), "output_dir": str(folder / "grpo"), "interests": chosen.interests}
        model = grpo(SidGRPOConfig(**settings | paths | {"dataset": chosen.dataset} | quiet))
    trained = time.process_time() - started
    judged = cells.judged(chosen.dataset, model, folder / "test", chosen.beams)
    row = {"cell": cell, "arm": arm, "seed": seed, "cpu_seconds": trained, "settings": settings}
    row |= {name: numbers["value"] for name, numbers in judged["systems"]["model"]["item"].items()}
    write_json(folder / "row.json", row)


def recipe(chosen: argparse.Namespace, name: str) -> dict[str, Any]:
    return yaml.safe_load((Path(chosen.recipes) / f"{name}.yaml").read_text(encoding="utf-8"))


def catalog_of(chosen: argparse.Namespace, texts: str, seed: int) -> Path:
    return chosen.out / f"catalog-{texts}-s{seed}"


if __name__ == "__main__":
    main()
