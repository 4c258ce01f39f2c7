"""Settings of a dense retriever: which one, and how it trains."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..errors import HfGrError
from ..models import BSARecConfig
from ..options import REFUSED_BY_RETRIEVE, USED, check_idle, check_inherited, check_range
from ..training import DataConfig, TrainerDefaults
from ..validation import align_saving, check_metric, metric_names


_MODEL_LIMITS = {
    "hidden_size": (1, 2**16),
    "num_hidden_layers": (1, 1000),
    "max_history": (1, 2**16),
    "alpha": (0, 1),
    "hidden_dropout": (0, 0.95),
    "attention_dropout": (0, 0.95),
}
_LIMITS = {"negatives": (0, 2**24), "patience": (0, 2**24)}


@dataclass
class RetrieverConfig:
    """Which retriever is trained: settings of a [`BSARecConfig`]."""

    hidden_size: int = field(default=64, metadata={"help": "Width of item embeddings and layers."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers."})
    num_attention_heads: int = field(default=1, metadata={"help": "Heads of the attention; they divide the width."})
    max_history: int = field(default=50, metadata={"help": "Latest events of a history that are read."})
    alpha: float = field(
        default=0.7,
        metadata={"help": "Weight of the frequency filter; the rest is attention's. 0: SASRec; 1: filter alone."},
    )
    cutoff: int = field(
        default=5, metadata={"help": "Lowest frequencies that count as low: an odd number up to the window."}
    )
    causal: bool = field(
        default=False,
        metadata={
            "help": "The filter looks back only and all positions of a history train in one pass: rows are as many as "
            "users, so take smaller batches. Else, as published, it sees the whole history, and every training event "
            "has a row of its own: better, at some four times the time."
        },
    )
    hidden_dropout: float = field(default=0.5, metadata={"help": "Dropout on embeddings and outputs of layers."})
    attention_dropout: float = field(default=0.5, metadata={"help": "Dropout on attention weights."})

    def __post_init__(self) -> None:
        check_range(self, _MODEL_LIMITS)
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise HfGrError(
                f"num_attention_heads is {self.num_attention_heads}, which does not divide hidden_size "
                f"{self.hidden_size}; choose one that does."
            )
        if self.cutoff % 2 == 0 or not 1 <= self.cutoff <= self.max_history + 1:
            raise HfGrError(
                f"cutoff is {self.cutoff}; give an odd number from 1 to {self.max_history + 1}: frequency 0 and pairs."
            )

    def model_config(self, num_items: int) -> BSARecConfig:
        """Of a new model of `num_items` items."""
        return BSARecConfig(num_items, **vars(self))


@dataclass
class RetrieveConfig(TrainerDefaults, TrainingArguments):
    """transformers' [`TrainingArguments`] with what a retriever of item ids adds."""

    negatives: int = field(
        default=2048,
        metadata={
            "help": "Items drawn for each batch's softmax, beside the batch's own targets; 0: the softmax is over all "
            "items, as published. On a CPU 2048 train several times as fast."
        },
    )
    patience: int = field(
        default=5,
        metadata={
            "help": "Stop after so many evaluations without a better NDCG@10 on validation, and take the best "
            "checkpoint; evaluations and checkpoints must come alike. 0: train to the end."
        },
    )

    # other defaults than transformers'
    num_train_epochs: float = field(default=16, metadata={"help": "Epochs, at most."})
    per_device_train_batch_size: int = field(default=512, metadata={"help": "Rows per device and step."})
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Validation cases ranked at a time."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "How the learning rate moves."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or a share of all steps below 1."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradients are clipped to this norm; 0: never."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows have columns of their own."})
    eval_strategy: str = field(default="steps", metadata={"help": "When validation cases are ranked."})
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
            self.metric_for_best_model = self.metric_for_best_model or "NDCG@10"  # type: ignore[has-type]
        super().__post_init__()

    def _check(self) -> None:
        check_inherited(self, TrainingArguments, USED, REFUSED_BY_RETRIEVE)
        self._check_training()
        check_range(self, _LIMITS)
        best = bool(self.patience) or self.load_best_model_at_end
        check_idle(self, {"metric_for_best_model": (best, "patience or load_best_model_at_end")})
        check_metric(self.metric_for_best_model, metric_names())
        if best:
            align_saving(self)


RETRIEVE_CONFIGS = (DataConfig, RetrieverConfig, RetrieveConfig)
