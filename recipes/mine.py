"""`accelerate launch recipes/mine.py --config FILE.yaml`: the same as `hf-gr mine --config FILE.yaml`."""

import sys

from hf_gr.cli import main


if __name__ == "__main__":
    main(["mine", *sys.argv[1:]])
