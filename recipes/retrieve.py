"""`accelerate launch recipes/retrieve.py --config FILE.yaml`: the same as `hf-gr retrieve --config FILE.yaml`."""

import sys

from hf_gr.cli import main


if __name__ == "__main__":
    main(["retrieve", *sys.argv[1:]])
