"""`accelerate launch recipes/grpo.py --config FILE.yaml`: the same as `hf-gr grpo --config FILE.yaml`."""

import sys

from hf_gr.cli import main


if __name__ == "__main__":
    main(["grpo", *sys.argv[1:]])
