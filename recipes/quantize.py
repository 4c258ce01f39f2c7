"""`accelerate launch recipes/quantize.py --config FILE.yaml`: the same as `hf-gr quantize --config FILE.yaml`."""

import sys

from hf_gr.cli import main


if __name__ == "__main__":
    main(["quantize", *sys.argv[1:]])
