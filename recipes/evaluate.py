"""`accelerate launch recipes/evaluate.py --config FILE.yaml`: the same as `hf-gr evaluate --config FILE.yaml`."""

import sys

from hf_gr.cli import main


if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
