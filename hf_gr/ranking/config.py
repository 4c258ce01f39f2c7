"""Settings of click prediction: what is read, which model, how it trains."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from ..errors import HfGrError
from ..models.click import Codes, ItemAs
from ..options import REFUSED_BY_RANK, USED, check_idle, check_inherited, check_range
from ..training import DataConfig, TrainerDefaults
from ..validation import align_saving, check_metric


METRICS = ("AUC", "GAUC")  # that choose the checkpoint
_DATA_LIMITS = {"negatives": (1, 1000)}
_MODEL_LIMITS = {
    "hidden_size": (1, 2**16),
    "column_size": (1, 2**16),
    "cross_layers": (0, 100),
    "max_history": (1, 2**16),
    "dropout": (0, 0.95),
    "buckets": (1, 2**31),
}


@dataclass
class RankDataConfig(DataConfig):
    """What a click model reads: events, exposures, semantic IDs, columns."""

    catalog: str | None = field(
        default=None, metadata={"help": "SID catalog folder of the same items, for item_as: sid or both."}
    )
    labels: Literal["exposures", "ratings", "drawn"] | None = field(
        default=None,
        metadata={
            "help": "What is a click: what `exposures` say, `ratings` above `positive_rating`, or every event, "
            "against `drawn` items. Left out: exposures where the dataset has them, else drawn."
        },
    )
    positive_rating: float = field(default=3.0, metadata={"help": "With `labels: ratings`: a rating above it is one."})
    negatives: int = field(default=4, metadata={"help": "With `labels: drawn`: items drawn for each event."})
    user_columns: list[str] | None = field(default=None, metadata={"help": "Columns of users.parquet to read."})
    event_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the exposures (or of the events) to read: of the request, known before the answer."
        },
    )
    clock: bool = field(default=False, metadata={"help": "Read the hour and the weekday (UTC) of the request."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, _DATA_LIMITS)
        self.user_columns, self.event_columns = self.user_columns or None, self.event_columns or None
        check_idle(
            self,
            {
                "positive_rating": (self.labels == "ratings", "labels: ratings"),
                "negatives": (self.labels in (None, "drawn"), "labels: drawn"),
            },
        )


@dataclass
class RankerConfig:
    """Which click model is trained: settings of a [`~hf_gr.models.ClickConfig`]."""

    item_as: ItemAs = field(default="both", metadata={"help": "What stands for an item: `id`, `sid` or `both`."})
    sid_as: Literal["codes", "prefixes", "both"] = field(
        default="both",
        metadata={"help": "Features of a semantic ID: its codes, its prefixes (n-grams from the first)."},
    )
    codes: Codes = field(
        default="learned",
        metadata={
            "help": "Vectors of codes: `learned` from a random start, or the catalog's code vectors, `tuned` or "
            "`frozen`."
        },
    )
    buckets: int = field(default=2**14, metadata={"help": "Rows that prefixes of one length are hashed to."})
    hidden_size: int = field(default=32, metadata={"help": "Width of item vectors."})
    column_size: int = field(default=8, metadata={"help": "Width of the vectors of users' and requests' columns."})
    cross_layers: int = field(default=2, metadata={"help": "Cross layers of DCN-V2."})
    deep_sizes: list[int] = field(
        default_factory=lambda: [64, 32], metadata={"help": "Units of the layers of the deep network."}
    )
    dropout: float = field(default=0.2, metadata={"help": "Dropout on what the networks read, and in the deep one."})
    gates: bool = field(default=False, metadata={"help": "PPNet's gates on the deep layers."})
    max_history: int = field(default=50, metadata={"help": "Latest events of a history that are read."})

    def __post_init__(self) -> None:
        check_range(self, _MODEL_LIMITS)
        if self.deep_sizes and min(self.deep_sizes) < 1:
            raise HfGrError(f"deep_sizes is {self.deep_sizes}; every layer needs a unit.")
        if not self.cross_layers and not self.deep_sizes:
            raise HfGrError("there are neither cross_layers nor deep_sizes; set at least one.")
        sids = (self.item_as != "id", "item_as: sid or both")
        coded = (sids[0] and self.sid_as != "prefixes", "codes among the features of semantic IDs")
        hashed = (sids[0] and self.sid_as != "codes", "prefixes among the features of semantic IDs")
        check_idle(self, {"sid_as": sids, "codes": coded, "buckets": hashed})
        check_idle(self, {"gates": (bool(self.deep_sizes), "deep_sizes")})


@dataclass
class RankConfig(TrainerDefaults, TrainingArguments):
    """transformers' [`TrainingArguments`] with what a click model adds."""

    patience: int = field(
        default=3,
        metadata={
            "help": "Stop after so many evaluations without a better metric_for_best_model (AUC unless set: AUC or "
            "GAUC) on validation, and take the best checkpoint. 0: train to the end."
        },
    )

    # other defaults than transformers'
    num_train_epochs: float = field(default=5, metadata={"help": "Epochs, at most."})
    per_device_train_batch_size: int = field(default=512, metadata={"help": "Rows per device and step."})
    per_device_eval_batch_size: int = field(default=4096, metadata={"help": "Rows scored at a time."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "How the learning rate moves."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of all weights but norms and biases."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows have columns of their own."})
    eval_strategy: str = field(default="steps", metadata={"help": "When validation rows are scored."})
    eval_steps: float | None = field(
        default=0.1, metadata={"help": "Steps between evaluations, or a share of all below 1."}
    )
    save_strategy: str = field(default="steps", metadata={"help": "When checkpoints are written."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints, or a share of all below 1."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When a line is logged."})

    def __post_init__(self) -> None:
        self._check()
        if self.patience or self.load_best_model_at_end:  # type: ignore[has-type]  # a field of transformers'
            self.load_best_model_at_end = self.greater_is_better = True
            self.metric_for_best_model = self.metric_for_best_model or "AUC"  # type: ignore[has-type]
        super().__post_init__()

    def _check(self) -> None:
        check_inherited(self, TrainingArguments, USED, REFUSED_BY_RANK)
        self._check_training()
        check_range(self, {"patience": (0, 2**24)})
        best = bool(self.patience) or self.load_best_model_at_end
        check_idle(self, {"metric_for_best_model": (best, "patience or load_best_model_at_end")})
        check_metric(self.metric_for_best_model, METRICS)
        if best:
            align_saving(self)


RANK_CONFIGS = (RankDataConfig, RankerConfig, RankConfig)
