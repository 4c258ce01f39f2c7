"""`accelerate launch recipes/label.py --config FILE.yaml`: the same as `hf-gr label --config FILE.yaml`."""

import sys

from hf_gr.cli import main


if __name__ == "__main__":
    main(["label", *sys.argv[1:]])
