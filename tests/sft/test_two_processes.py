"""Heads of a thinking run are synchronised: two processes see other rows and end with the same weights."""

import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file
from tiny_runs import tiny_data

from hf_gr.catalog import SidCatalog
from hf_gr.models import ThinkingConfig, ThinkingHeads


SCRIPT = """
import json, sys

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from hf_gr.arguments import configs_of
from hf_gr.sft import SFT_CONFIGS, SidSFTTrainer, sft

folder, settings = sys.argv[1], json.loads(sys.argv[2])
taken = SidSFTTrainer.take_heads


def noted(self):
    seen = {name: value.contiguous().clone() for name, value in self.model.state_dict().items()}
    save_file(seen, f"{folder}/rank-{self.accelerator.process_index}.safetensors")
    return taken(self)


SidSFTTrainer.take_heads = noted
for name, changes in {"token": {}, "hidden": {"feedback": "hidden"}}.items():
    thinking = {"clusters": 4} | changes
    changes = {"output_dir": f"{folder}/{name}", "form": "stepwise", "thinking": thinking}
    sft(*configs_of(SFT_CONFIGS, **settings | changes))
    rank = PartialState().process_index
    import os
    os.replace(f"{folder}/rank-{rank}.safetensors", f"{folder}/{name}-{rank}.safetensors")
assert PartialState().num_processes == 2
"""


def test_heads_are_the_same_in_both_processes(tmp_path):
    data = tiny_data(tmp_path)
    settings = data.sft(tmp_path, max_steps=3, per_device_train_batch_size=4)
    del settings["use_cpu"]
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += [str(tmp_path / "script.py"), str(tmp_path), json.dumps(settings)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    for feedback in ("token", "hidden"):
        first, second = (load_file(tmp_path / f"{feedback}-{rank}.safetensors") for rank in range(2))
        heads = {name: value for name, value in first.items() if name.startswith("thinking.")}
        config = ThinkingConfig(clusters=4, feedback=feedback)
        start = ThinkingHeads.start(config, 64, SidCatalog.load(data.catalog), seed=0)
        learned = {f"thinking.{name}" for name, _ in start.named_parameters()}
        assert learned <= heads.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        unmoved = [name for name in learned if torch.equal(heads[name], start.state_dict()[name[len("thinking.") :]])]
        assert not unmoved
