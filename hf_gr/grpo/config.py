"""Settings of GRPO."""

from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from ..training import RunArguments


@dataclass
class SidGRPOConfig(RunArguments, GRPOConfig):
    """TRL's [`GRPOConfig`] with what a generative recommender adds. `output_dir/model` becomes a Hub-ready repo."""

    model: str = field(default="", metadata={"help": "Model made by `hf-gr sft`: folder or Hub id."})
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

    # other defaults than TRL's, because answers are SIDs
    num_generations: int | None = field(default=16, metadata={"help": "G, rollouts a prompt."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Rollouts per device: prompts × G."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    beta: float = field(
        default=1e-3, metadata={"help": "Weight of the KL divergence to the SFT policy; 0: no reference."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Steps between log lines."})
