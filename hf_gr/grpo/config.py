"""Settings of GRPO: what it reads, which model it starts from, how it trains."""

from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from ..errors import HfGrError
from ..options import REFUSED_BY_GRPO, USED_BY_GRPO, check_idle, check_inherited, check_range
from ..rewards import parse_mix
from ..training import DataConfig, LmConfig, LmTrainerDefaults
from ..validation import check_metric, metric_names


_LIMITS = {
    "num_generations": (2, 2**20),
    "temperature": (1e-3, 1e3),
    "beta": (0, 1e6),
    "prompts_per_user": (1, 1e9),
    "target_steps": (1, 100),
    "target_decay": (0, 1),
    "max_refills": (1, 100),
}
_OF_LOSSES = {
    "sapo": ("sapo_temperature_neg", "sapo_temperature_pos"),
    "vespo": ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
}


@dataclass
class GRPODataConfig(DataConfig):
    """What GRPO reads: events, and what rewards know beside them."""

    embeddings: str | None = field(
        default=None, metadata={"help": "Item vectors for `semantic`; those of the codebook if left out."}
    )
    interests: str | None = field(
        default=None,
        metadata={
            "help": "Folder of `hf-gr label` for the reward `interest`; those that the model carries if left out, and "
            "else categories."
        },
    )


@dataclass
class PolicyConfig(LmConfig):
    """Which model GRPO starts from."""

    model: str = field(default="", metadata={"help": "Model made by `hf-gr sft`: folder or Hub id."})


@dataclass
class SidGRPOConfig(LmTrainerDefaults, GRPOConfig):
    """TRL's [`GRPOConfig`] with what a generative recommender adds."""

    prompts_per_user: int = field(
        default=1, metadata={"help": "Training events of each user, the latest ones, whose history is a prompt."}
    )
    rewards: dict | str | None = field(
        default_factory=lambda: {"exact": 1.0, "ranking": 1.0},
        metadata={
            "help": "Rewards (hf_gr/rewards): names by commas, or with weights and parameters: "
            "{exact: 1, prefix: 0.3}."
        },
    )
    target_steps: int = field(
        default=1, metadata={"help": "Next items of the user that rollouts are rewarded against (MSRA)."}
    )
    target_decay: float = field(
        default=0.5, metadata={"help": "γ: the n-th next item counts γ^(n-1); with target_steps above 1."}
    )
    rollout: Literal["sample", "beam", "gumbel"] = field(
        default="sample",
        metadata={
            "help": "`sample`: G draws from the constrained policy; `gumbel`: G distinct draws (without replacement); "
            "`beam`: the G best SIDs (MiniOneRec)."
        },
    )
    estimator: Literal["group", "leave_one_out", "without_replacement"] = field(
        default="group",
        metadata={
            "help": "Advantages: TRL's, less the group's mean (and divided as `scale_rewards` says); less the mean of "
            "the other rollouts, for `sample`; or importance-weighted, for `gumbel`. Both need scale_rewards: none."
        },
    )
    zero_variance: Literal["keep", "skip", "refill"] = field(
        default="keep",
        metadata={
            "help": "Groups whose rollouts all have one reward: kept (they pull to the reference), left out of the "
            "loss, or replaced by other prompts' groups."
        },
    )
    max_refills: int = field(default=2, metadata={"help": "Further batches that `refill` may draw in a generation."})

    # other defaults than TRL's, because answers are SIDs
    num_generations: int | None = field(default=16, metadata={"help": "G, rollouts a prompt."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Rollouts per device: prompts × G."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Validation users at a time."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    beta: float = field(
        default=1e-3, metadata={"help": "Weight of the KL divergence to the SFT policy; 0: no reference."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Steps between log lines."})

    def __post_init__(self) -> None:
        self._check()
        if self.eval_strategy != "no":  # the best of what was measured is kept, the start among it
            wanted = self.metric_for_best_model or "NDCG@10"  # type: ignore[has-type]
            self.metric_for_best_model = f"eval_{wanted.removeprefix('eval_')}"
            self.greater_is_better, self.load_best_model_at_end, self.eval_on_start = True, True, True
            self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps or self.save_steps
            self.num_generations_eval = 1  # TRL's evaluation by rollouts is not used
        super().__post_init__()

    def _check(self) -> None:
        check_inherited(self, GRPOConfig, USED_BY_GRPO, REFUSED_BY_GRPO)
        self._check_training()
        check_range(self, _LIMITS)
        if self.num_generations is None:
            raise HfGrError("num_generations is not set; give the number of rollouts a prompt, such as 16.")
        self._check_idle()
        parse_mix(self.rewards)  # raises on what there is not
        needed = {"leave_one_out": "sample", "without_replacement": "gumbel"}.get(self.estimator)
        if needed is not None and (self.rollout != needed or self.scale_rewards != "none"):
            raise HfGrError(  # else it would not estimate what it is named after
                f"estimator {self.estimator} is for rollout: {needed} and scale_rewards: none, not for "
                f"{self.rollout} and {self.scale_rewards}; set both, or choose another estimator."
            )
        if self.eval_strategy != "no":
            check_metric(self.metric_for_best_model, metric_names(self.eval_beams))

    def _check_idle(self) -> None:
        evaluates = self.eval_strategy != "no"
        measured = (evaluates, "an eval_strategy")
        entropy = (self.use_adaptive_entropy, "use_adaptive_entropy")
        needs = {
            "target_decay": (self.target_steps > 1, "target_steps above 1"),
            "max_refills": (self.zero_variance == "refill", "zero_variance: refill"),
            "metric_for_best_model": measured,
            "save_steps": (not evaluates, "no eval_strategy: else checkpoints come with measurements"),
            "sync_ref_model": (self.beta > 0, "beta above 0"),
            "use_bias_correction_kl": (self.beta > 0, "beta above 0"),
            "ref_model_mixup_alpha": (self.sync_ref_model, "sync_ref_model"),
            "ref_model_sync_steps": (self.sync_ref_model, "sync_ref_model"),
        }
        needs |= {f"entropy_{name}": entropy for name in ("coef_min", "coef_max", "coef_delta", "target")}
        for kind, names in _OF_LOSSES.items():
            needs |= dict.fromkeys(names, (self.loss_type == kind, f"loss_type: {kind}"))
        check_idle(self, needs)


GRPO_CONFIGS = (GRPODataConfig, PolicyConfig, SidGRPOConfig)
