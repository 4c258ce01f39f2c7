"""`accelerate launch recipes/embed.py --config FILE.yaml`: the same as `hf-gr embed --config FILE.yaml`."""

import sys

from hf_gr.cli import main


if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
