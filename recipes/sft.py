"""`accelerate launch recipes/sft.py --config FILE.yaml`: the same as `hf-gr sft --config FILE.yaml`."""

import sys

from hf_gr.cli import main


if __name__ == "__main__":
    main(["sft", *sys.argv[1:]])
