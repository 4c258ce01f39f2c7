"""MovieLens-100K from raw ratings to recommendations, on two CPU cores: `make quickstart`.

    python recipes/quickstart.py --model smollm2      # SmolLM2-135M, all 30 layers, about ten minutes
    python recipes/quickstart.py --model small        # two layers from scratch, about four minutes

Every stage below is also a command (`hf-gr sft --config movielens-100k/sft-flat`) and a script for
`accelerate launch`. What is up to date is not made again: change a key in `hf_gr/recipes/movielens-100k`, run this
again, and what depends on it is rebuilt, nothing else. Simplified against a serious run: one pass over part of the
data, few GRPO steps, no tuning.
"""

import argparse
import time
from pathlib import Path

from transformers import pipeline

import hf_gr.grpo
import hf_gr.sft
from data_prep import prepare_movielens
from hf_gr.arguments import parse_config
from hf_gr.artifacts import read_json
from hf_gr.cli import run_reporting_errors
from hf_gr.dataset import InteractionDataset
from hf_gr.embedding import EmbedConfig, embed
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.hub import update_card
from hf_gr.quantizers import QuantizeConfig, quantize


def quickstart(model: str, seed: int, out: Path) -> None:
    started = time.perf_counter()
    dataset, vectors, catalog = out / "dataset", out / "embeddings", out / "catalog"
    suffix = "-small" if model == "small" else ""

    prepare_movielens(dataset)
    embed(config(EmbedConfig, "embed", dataset=dataset, output_dir=vectors))
    quantize(config(QuantizeConfig, "quantize", dataset=dataset, embeddings=vectors, output_dir=catalog, seed=seed))
    sft_model = hf_gr.sft.main(
        arguments(f"sft-flat{suffix}", dataset=dataset, catalog=catalog, output_dir=out / "sft", seed=seed)
    )
    final = hf_gr.grpo.main(
        arguments(f"grpo{suffix}", dataset=dataset, model=sft_model, output_dir=out / "grpo", seed=seed)
    )
    evaluation = out / "evaluation"
    judged = {"dataset": dataset, "model": final, "output_dir": evaluation, "logs": [sft_model, final], "seed": seed}
    evaluate(config(EvaluateConfig, "evaluate", **judged))
    update_card(final, read_json(evaluation / "metrics.json"))
    show_three_users(dataset, final)
    print(f"\n{out} is ready after {time.perf_counter() - started:.0f} s: the report is {evaluation / 'report.html'}")
    print(f"the model, ready for the Hub, is {final}: hf-gr push {final} NAME/REPO")


def arguments(recipe: str, **changes: object) -> list[str]:
    """A recipe's YAML file with some keys changed, as the command line has it."""
    changed = []
    for key, value in changes.items():
        changed += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return ["--config", f"movielens-100k/{recipe}", *changed]


def config(kind: type, recipe: str, **changes: object) -> object:
    return parse_config(kind, arguments(recipe, **changes))


def show_three_users(dataset: Path, model: Path) -> None:
    events = InteractionDataset.load(dataset)
    recommend = pipeline("generative-recommendation", model=str(model))
    for user in range(3):
        rows = events.events.items[events.events.ptr[user] : events.events.ptr[user + 1]]
        watched = "; ".join(events.titles[row] for row in rows[-4:])
        print(f"\nuser {events.events.user_ids[user]} lately watched: {watched}")
        for rank, answer in enumerate(recommend([events.item_ids[row] for row in rows], top_k=5), start=1):
            print(f"  {rank}. {answer['title']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["smollm2", "small"], default="smollm2", help="which LM is taught")
    parser.add_argument("--seed", type=int, default=0, help="seed of the codebooks, the training and the bootstrap")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder of all artifacts")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    chosen = parser.parse_args()
    with run_reporting_errors(chosen.debug):
        quickstart(chosen.model, chosen.seed, chosen.out)
