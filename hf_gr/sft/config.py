"""Settings of supervised fine-tuning: what it reads, which model it starts from, how it trains."""

from dataclasses import dataclass, field
from typing import Any, Literal

from trl import SFTConfig

from ..errors import HfGrError
from ..forms import form_named
from ..models import RecursionConfig, ScratchConfig, ThinkingConfig
from ..options import REFUSED_BY_SFT, USED_BY_SFT, check_idle, check_inherited, check_range
from ..settings import mapping, typed
from ..training import DataConfig, LmConfig, LmTrainerDefaults
from ..validation import align_saving, check_metric, metric_names
from ..vocabulary import ContextKind, RowStart
from .interest_tasks import INTEREST_TASKS
from .loss import Credit
from .tasks import TASKS


_MODEL_LIMITS = {"max_history": (1, 2**20)}
_LIMITS = {
    "target_steps": (1, 100),
    "target_decay": (0, 1),
    "hidden_dropout": (0, 0.9),
    "memory_users": (1, 1e9),
    "trunk_weight": (0, 100),
    "confident_orders": (0, 1),
    "tokenizer_weight": (0, 1000),
    "tokenizer_learning_rate": (1e-12, 1),
    "tokenizer_until": (0.01, 0.95),
}
_LOSS = ("loss", "eval_loss")


@dataclass
class SidDataConfig(DataConfig):
    """What SFT reads: events, the catalog of semantic IDs, and interests."""

    catalog: str = field(default="", metadata={"help": "SID catalog folder, as written by `hf-gr quantize`."})
    interests: str | None = field(
        default=None,
        metadata={
            "help": "Folder of `hf-gr mine` or `hf-gr label`, for tasks on interests; those of items travel "
            "with the model, which can then explain answers by the accepted ones."
        },
    )
    embeddings: str | None = field(
        default=None,
        metadata={"help": "Folder of the item vectors that the catalog was quantized from, for tokenizer: trainable."},
    )


@dataclass
class SidModelConfig(LmConfig):
    """Which model SFT starts from, and how it writes items."""

    # dict first, then str, then None: of other unions the argument parser takes another member
    model: dict | str | None = field(
        default="SmolLM2",
        metadata={
            "help": "Causal LM to start from: `SmolLM2` (135M, from a wheel), a Hub id, a folder; or from scratch: "
            "{architecture: qwen3, layers: 4, width: 256}, whose vocabulary are SIDs alone (text: true adds bytes)."
        },
    )
    continue_from: str | None = field(
        default=None,
        metadata={"help": "A model made by hf_gr to go on training, in place of `model`; same catalog."},
    )
    form: str | None = field(
        default=None,
        metadata={
            "help": "How an item is written: `flat` (its codes), `unordered` (its codes in any order, chosen by the "
            "model: REG4Rec), `stepwise` (a thinking token before each: S²GR), `upfront` (all thinking tokens, "
            "then the codes; for comparison), or `recursive` (its codes by a small recursion; in histories an item is "
            "one position: IntRR). Left out: as the model that goes on writes it, else flat."
        },
    )
    thinking: dict | str | None = field(
        default=None,
        metadata={
            "help": "Supervision of the thoughts, for stepwise and upfront: {} for the defaults, or settings such as "
            "{clusters: 16, align: 0.1} (ThinkingConfig lists them); left out, thoughts are not "
            "supervised, or as in the model that goes on."
        },
    )
    recursion: dict | str | None = field(
        default=None,
        metadata={
            "help": "Of form: recursive: settings such as {input_weight: 0.1} (RecursionConfig lists them); left out, "
            "its defaults."
        },
    )
    max_history: int = field(default=50, metadata={"help": "Events of a history that a prompt keeps."})
    context: ContextKind = field(
        default="none",
        metadata={"help": "Token after each item of a history: `none`, its `rating`, or its `behavior`."},
    )
    prompt: str = field(default="", metadata={"help": "Short text before every history; read once per user."})
    row_start: RowStart = field(
        default="random",
        metadata={
            "help": "How new token rows start: `random` (mean and deviation of the LM's rows), `codes` "
            "(code vectors), `text` (titles of the items that carry the code), `mean` (transformers' mean resizing; "
            "learns badly)."
        },
    )

    def __post_init__(self) -> None:
        _read_mappings(self, "thinking", "recursion")
        if isinstance(self.model, str) and self.model.lstrip().startswith("{"):
            _read_mappings(self, "model")
        super().__post_init__()
        if not self.model:
            raise HfGrError("model is empty; leave it out for the default.")
        check_range(self, _MODEL_LIMITS)
        _ = self.scratch, self.heads, self.recursion_config  # all raise on settings that they do not have
        if form := self.form or ("" if self.continue_from else "flat"):  # else checked once that model is read
            form_named(form).check_model(form, self)

    @property
    def scratch(self) -> ScratchConfig | None:
        """The model from scratch that is asked for, if one is."""
        return ScratchConfig.of(self.model) if isinstance(self.model, dict) else None

    @property
    def heads(self) -> ThinkingConfig | None:
        """The thinking heads that are asked for, if any are."""
        return None if self.thinking is None else ThinkingConfig.of_dict(self.thinking)  # type: ignore[arg-type]

    @property
    def recursion_config(self) -> RecursionConfig:
        """Settings of the recursion."""
        return RecursionConfig.of_dict({} if self.recursion is None else self.recursion)  # type: ignore[arg-type]


@dataclass
class SidSFTConfig(LmTrainerDefaults, SFTConfig):
    """TRL's [`SFTConfig`] with what answers on branches add."""

    tasks: dict | str | None = field(
        default_factory=lambda: {"next_item": 1.0},
        metadata={
            "help": "What is taught: tasks (hf_gr/sft/tasks.py, interest_tasks.py) and how many times their rows come "
            "in an epoch: {next_item: 1, title_to_sid: 0.5}."
        },
    )
    target_steps: int = field(default=1, metadata={"help": "Next items that each position of a history predicts."})
    target_decay: float = field(
        default=0.5, metadata={"help": "γ: the n-th next item counts γ^(n-1); with target_steps above 1."}
    )
    sub_histories: bool = field(
        default=False,
        metadata={
            "help": "A row for every event, which reads the history before it by itself, with dropout of its own, "
            "rather than all events of a history in one pass: slower by the length of histories, and for the hybrid "
            "no better."
        },
    )
    trunk_weight: float = field(
        default=0.0,
        metadata={
            "help": "With thinking tokens or unordered: weight of predicting the next item without branches as well, "
            "by the history's own tokens in their order, which costs no further token."
        },
    )
    confident_orders: float = field(
        default=1.0,
        metadata={
            "help": "Unordered: share of batches whose answers are written most confident code first (CRSS), which "
            "takes about a third more time; the others in random order."
        },
    )
    set_credit: Credit = field(
        default="any",
        metadata={
            "help": "Unordered: a step learns the `next` code of the order, or `any` of the set's codes that are not "
            "written yet, as likely together as may be."
        },
    )
    loss: Literal["constrained", "full"] = field(
        default="constrained",
        metadata={
            "help": "Softmax over what the grammar allows (needs only the SID rows of the head), or over the `full` "
            "vocabulary (the one for DeepSpeed ZeRO-3)."
        },
    )
    hidden_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on embeddings and on every layer's outputs; for models from scratch."}
    )
    train_rows_only: bool = field(
        default=False, metadata={"help": "Train only the new token rows, all through (a run before another)."}
    )
    rows_first: float = field(
        default=0.0,
        metadata={"help": "Curriculum: steps, or a share of all below 1, that train new token rows before the rest."},
    )
    tokenizer: Literal["frozen", "trainable"] = field(
        default="frozen",
        metadata={
            "help": "trainable: the catalog's quantizer (mmq, r3_vae) learns from the recommendation loss, and items "
            "get their codes anew after every epoch (MMQ's second stage)."
        },
    )
    tokenizer_weight: float = field(
        default=0.5, metadata={"help": "Weight of the quantizer's own losses beside the recommendation loss."}
    )
    tokenizer_learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak learning rate of the quantizer's weights."}
    )
    tokenizer_until: float = field(
        default=0.67, metadata={"help": "Share of the steps after which quantizer and codes stand still."}
    )
    memory: bool = field(
        default=True,
        metadata={
            "help": "Make a memory of the training events, which ranks beside the model; what it counts is chosen on "
            "validation users at the end (`hf-gr remember`)."
        },
    )
    memory_users: int = field(default=1000, metadata={"help": "Validation users of that choice."})
    fill_rows: bool = field(
        default=False,
        metadata={"help": "Pack users into rows of `max_length` tokens; for flex_attention. Else as long as needed."},
    )

    # other defaults than TRL's, because rows are SIDs
    max_length: int | None = field(
        default=2048, metadata={"help": "Tokens of a row, at most; a history with more branches is split."}
    )
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Rows have columns of their own."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows (windows of histories) per device."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Validation users at a time."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or a share of all steps below 1."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})

    def __post_init__(self) -> None:
        _read_mappings(self, "tasks")
        self._check()
        if self.keeps_best:
            wanted = self.metric_for_best_model or "NDCG@10"  # type: ignore[has-type]  # a field of TRL's
            self.metric_for_best_model = f"eval_{wanted.removeprefix('eval_')}"
            self.load_best_model_at_end, self.greater_is_better = True, wanted not in _LOSS
        super().__post_init__()

    @property
    def keeps_best(self) -> bool:
        """Whether the best of the measured checkpoints becomes the model."""
        return bool(self.patience) or self.load_best_model_at_end

    @property
    def measures_lists(self) -> bool:
        """Whether evaluations search the lists of users: not if the loss alone was chosen to decide."""
        return self.eval_strategy != "no" and self.metric_for_best_model not in _LOSS

    def _check(self) -> None:
        check_inherited(self, SFTConfig, USED_BY_SFT, REFUSED_BY_SFT)
        self._check_training()
        if not self.tasks:
            raise HfGrError("tasks is empty; leave it out for the default.")
        if not isinstance(self.tasks, dict):
            raise HfGrError(f"tasks is {self.tasks!r}; give tasks and weights, such as {{next_item: 1}}.")
        for name in (name for name in self.tasks if name not in TASKS | INTEREST_TASKS):
            raise HfGrError(
                f"tasks holds {name!r}, which is no task; choose from {', '.join(TASKS | INTEREST_TASKS)}."
            )
        for name, weight in self.tasks.items():
            if typed(f"tasks.{name}", weight, float) < 0:
                raise HfGrError(f"tasks.{name} is {weight}; give 0 or more.")
        if self.max_length is None or self.max_length < 8:
            raise HfGrError(f"max_length is {self.max_length}; rows of branches need a bound of at least 8 tokens.")
        check_range(self, _LIMITS)
        needs = {
            "target_decay": (self.target_steps > 1, "target_steps above 1"),
            "metric_for_best_model": (self.keeps_best, "patience or load_best_model_at_end"),
            "eval_beams": (self.measures_lists, "an eval_strategy, and lists to decide: not eval_loss"),
        }
        for name in ("tokenizer_weight", "tokenizer_learning_rate", "tokenizer_until"):
            needs[name] = self.tokenizer == "trainable", "tokenizer: trainable"
        check_idle(self, needs)
        check_metric(self.metric_for_best_model, [*metric_names(self.eval_beams), "eval_loss"])
        if self.keeps_best:
            align_saving(self)
        if self.rows_first < 0 or (self.rows_first and self.train_rows_only):
            raise HfGrError("rows_first is a number of steps or a share of them, and not for train_rows_only.")


SFT_CONFIGS = (SidDataConfig, SidModelConfig, SidSFTConfig)


def check_together(data: SidDataConfig, model: SidModelConfig, args: SidSFTConfig) -> None:
    """Raises [`HfGrError`] on settings that do not go together."""
    assert isinstance(args.tasks, dict)
    for name in (name for name in args.tasks if name in INTEREST_TASKS and data.interests is None):
        raise HfGrError(f"task {name!r} needs interests; name the folder of `hf-gr mine` or `hf-gr label`.")
    if model.form or not model.continue_from:  # else known once the model is read
        form = model.form or "flat"
        form_named(form).check_training(form, args)
    if (args.tokenizer == "trainable") != (data.embeddings is not None):
        raise HfGrError(
            "tokenizer: trainable and embeddings, the folder of the item vectors, go together; give both or none."
        )
    if args.tokenizer == "trainable" and (model.finetune != "full" or args.train_rows_only):
        raise HfGrError("tokenizer: trainable trains the LM with it; set finetune: full, and no train_rows_only.")
    if args.train_rows_only and model.finetune != "full":
        raise HfGrError("train_rows_only trains rows of the model itself, not adapters; set finetune: full.")


def _read_mappings(config: Any, *names: str) -> None:
    """Reads settings that are mappings, where they are words of a command line."""
    for name in names:
        if isinstance(vars(config)[name], str):
            setattr(config, name, mapping(name, vars(config)[name]))
