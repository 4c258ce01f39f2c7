"""What a ranking by several scorers costs beside the beams alone: time, both in one run.

Random weights; 100,000 items by default; the other scorer is a random matrix over all items, so that nearly all of its
candidates are new to the beams and are scored as branches of the cached prompt.

    python benchmarks/mixing.py --model 135m --batch 4 --context 200 --beams 50 --rounds 5
"""

import argparse
import json

import measure
import numpy as np
import torch

from hf_gr.decoding import beam_search
from hf_gr.grammar import TrieGrammar
from hf_gr.scoring import DenseScores, Requests
from hf_gr.search_config import SEMANTIC_ID, Mixture


class Random:
    """A scorer whose logits were drawn."""

    def __init__(self, batch: int, items: int):
        self.logits = torch.randn(batch, items, generator=torch.Generator().manual_seed(0))

    def read(self, requests: Requests) -> DenseScores:
        return DenseScores(self.logits.to(requests.live.device), requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="135m", choices=measure.SHAPES)
    parser.add_argument("--dtype", default="fp32", choices=measure.DTYPES)
    parser.add_argument("--device", default="cpu")
    for name, default in (("items", 100_000), ("codebooks", 3), ("codes", 256), ("batch", 4), ("context", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    token_ids, think_ids = measure.new_token_ids(chosen.model, chosen.codebooks, chosen.codes)
    model = measure.random_model(chosen.model, chosen.codebooks * (chosen.codes + 1), chosen.dtype, chosen.device)
    codes = measure.random_codes(chosen.items, chosen.codebooks, chosen.codes)
    prompts = measure.random_prompts(codes, token_ids, chosen.batch, chosen.context, False)
    mixing = {
        "mixture": Mixture({SEMANTIC_ID: 0.7, "random": 0.3}, "probabilities"),
        "scorers": {"random": Random(chosen.batch, len(codes))},
        "histories": [np.empty(0, np.int64)] * chosen.batch,
    }
    result = {"settings": vars(chosen)} | measure.provenance(chosen.device)
    for form, thinking in (("flat", []), ("stepwise", think_ids)):
        grammar = TrieGrammar(codes, token_ids, think_ids=thinking).to(chosen.device)
        runs = {
            "beams": lambda grammar=grammar: beam_search(model, prompts, grammar, num_beams=chosen.beams),
            "mixed": lambda grammar=grammar: beam_search(model, prompts, grammar, num_beams=chosen.beams, **mixing),
        }
        measured = measure.alternating(runs, chosen.rounds, chosen.device, memory=False)
        seconds = {name: found.median for name, found in measured.items()}
        result[form] = seconds | {"ratio": measure.ratio(seconds["mixed"], seconds["beams"])}
    print(json.dumps(result, indent=1, default=str))


if __name__ == "__main__":
    main()
