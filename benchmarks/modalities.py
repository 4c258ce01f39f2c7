"""What a quantizer's own codes are worth on item vectors of several parts, on one thread: one line of JSON a fit.

    OMP_NUM_THREADS=1 python benchmarks/modalities.py --embeddings beauty/vectors --method mmq --levels 6 \
        --codebook-size 100 --settings '{"epochs": 50}'
"""

import argparse
import json
import time

import numpy as np

from hf_gr.embedding import ItemVectors
from hf_gr.quantizers.metrics import collision_report, reconstruction_error
from hf_gr.quantizers.redundancy import redundancy, redundancy_by_group
from hf_gr.quantizers.stage import QuantizeConfig, new_quantizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", required=True)
    parser.add_argument("--method", default="mmq")
    parser.add_argument("--levels", type=int, default=6)
    parser.add_argument("--codebook-size", type=int, default=100)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON of method_config")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    item_vectors = ItemVectors.load(chosen.embeddings)
    vectors, size, levels = np.array(item_vectors.vectors), chosen.codebook_size, chosen.levels
    config = QuantizeConfig("", "", "", chosen.method, levels, size, method_config=chosen.settings)
    quantizer = new_quantizer(config, vectors.shape[1], item_vectors.parts(chosen.embeddings))
    start = time.process_time()
    quantizer.fit(vectors, seed=chosen.seed, progress=False)
    cpu_s = time.process_time() - start
    codes = quantizer.encode(vectors)
    report = collision_report(codes, [size] * levels)
    found = {
        "method": chosen.method,
        "settings": chosen.settings,
        "seed": chosen.seed,
        "items": len(vectors),
        "cpu_s": cpu_s,
        "use": [level["use"] for level in report["levels"]],
        "perplexity": [level["perplexity"] / size for level in report["levels"]],
        "collision_rate": report["collision_rate"],
        "largest_bucket": report["largest_bucket"],
        "redundancy": redundancy(codes),
        "by_group": redundancy_by_group(codes, quantizer.groups) if quantizer.groups else [],
    }
    print(json.dumps(found | reconstruction_error(quantizer, vectors, codes)))


if __name__ == "__main__":
    main()
