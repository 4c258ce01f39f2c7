"""Settings of GRPO."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from trl import GRPOConfig

from ..dataset import SplitKind
from ..training import AdapterArguments


@dataclass
class SidGRPOConfig(AdapterArguments, GRPOConfig):
    """TRL's [`GRPOConfig`] with what a generative recommender adds. `output_dir/model` becomes a Hub-ready repo."""

    dataset: str = field(default="", metadata={"help": "Dataset folder, as written by `hf-gr prepare`."})
    model: str = field(default="", metadata={"help": "Model made by `hf-gr sft`: folder or Hub id."})
    split: SplitKind = field(default="leave_one_out", metadata={"help": "`leave_one_out` or `temporal`."})
    prompts_per_user: int = field(
        default=1, metadata={"help": "Training events of each user, the latest ones, whose history is a prompt."}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["exact", "ranking"],
        metadata={"help": "Rewards by name (hf_gr/rewards); `reward_weights` weighs them."},
    )
    rollout: Literal["sample", "beam", "gumbel"] = field(
        default="sample",
        metadata={
            "help": "`sample`: G draws from the constrained policy; `gumbel`: G distinct draws (without replacement); "
            "`beam`: the G best SIDs (MiniOneRec)."
        },
    )
    force: bool = field(default=False, metadata={"help": "Train again even if the model is up to date."})

    # other defaults than TRL's, because answers are SIDs
    num_generations: int | None = field(default=16, metadata={"help": "G, rollouts a prompt."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Rollouts per device: prompts × G."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    beta: float = field(
        default=1e-3, metadata={"help": "Weight of the KL divergence to the SFT policy; 0: no reference."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Steps between log lines."})
    save_steps: float = field(default=0.25, metadata={"help": "Steps between checkpoints, or a share of all below 1."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept while training."})
    # None first, as in TrainingArguments: of other orders the argument parser makes a list, whose default is lost
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Experiment trackers."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    use_cpu: bool = field(
        default=not torch.accelerator.is_available(),
        metadata={"help": "Train on the CPU; the default where there is no accelerator."},
    )
    bf16: bool | None = field(default=True, metadata={"help": "bf16 arithmetic over float32 master weights."})
