"""`accelerate launch recipes/rank.py --config FILE.yaml`: the same as `hf-gr rank --config FILE.yaml`."""

import sys

from hf_gr.cli import main


if __name__ == "__main__":
    main(["rank", *sys.argv[1:]])
