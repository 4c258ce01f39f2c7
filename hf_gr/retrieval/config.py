"""Settings of a dense retriever: which one, and how it trains."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from ..errors import HfGrError
from ..models import BSARecConfig, TowersConfig
from ..models.item_features import ID, SID, TAG_COLUMNS, FeatureRecipe
from ..options import REFUSED_BY_RETRIEVE, USED, check_idle, check_inherited, check_range
from ..training import DataConfig, TrainerDefaults
from ..validation import align_saving, check_metric, metric_names
from .index import IndexKind
from .negatives import NegativesFrom


_MODEL_LIMITS = {
    "hidden_size": (1, 2**16),
    "num_hidden_layers": (1, 1000),
    "max_history": (1, 2**16),
    "alpha": (0, 1),
    "hidden_dropout": (0, 0.95),
    "attention_dropout": (0, 0.95),
    "id_dropout": (0, 1),
}
_LIMITS = {"negatives": (0, 2**24), "patience": (0, 2**24), "temperature": (1e-3, 1e3), "index_recall": (0.5, 1)}
_TOWER_ONLY = ("item_features", "vectors", "catalog", "id_dropout")


@dataclass
class RetrieverConfig:
    """Which retriever is trained: settings of a [`BSARecConfig`], and what its item tower reads."""

    item_features: list[str] = field(
        default_factory=lambda: [ID],
        metadata={
            "help": "What is known of an item: id, sid (codes of the catalog), category, brand, and parts of the item "
            "vectors (text, image, behavior, file). The id alone is a plain table of items."
        },
    )
    vectors: str | None = field(
        default=None, metadata={"help": "Folder of `hf-gr embed`, whose parts item_features names."}
    )
    catalog: str | None = field(
        default=None, metadata={"help": "Folder of `hf-gr quantize`, whose codes the feature sid reads."}
    )
    id_dropout: float = field(
        default=0.1,
        metadata={
            "help": "Share of items that a step reads without their ids, so that the other features learn to stand "
            "alone: new items have no id of their own."
        },
    )
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
        self._check_features()
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise HfGrError(
                f"num_attention_heads is {self.num_attention_heads}, which does not divide hidden_size "
                f"{self.hidden_size}; choose one that does."
            )
        if self.cutoff % 2 == 0 or not 1 <= self.cutoff <= self.max_history + 1:
            raise HfGrError(
                f"cutoff is {self.cutoff}; give an odd number from 1 to {self.max_history + 1}: frequency 0 and pairs."
            )

    def _check_features(self) -> None:
        names = self.item_features
        if not names or len({*names}) < len(names):
            raise HfGrError(f"item_features is {names}; name each feature once, and one at least.")
        parts = set(names) - {ID, SID, *TAG_COLUMNS}
        needs = {
            "vectors": (bool(parts), "a part of item vectors (text, behavior, …) in item_features"),
            "catalog": (SID in names, "sid in item_features"),
            "id_dropout": (ID in names and len(names) > 1, "id and another feature in item_features"),
        }
        check_idle(self, needs)
        if SID in names and self.catalog is None:
            raise HfGrError("item_features names sid, but catalog is not set; set it to a folder of `hf-gr quantize`.")

    @property
    def encoder(self) -> dict[str, Any]:
        """Settings of the model of histories."""
        return {name: value for name, value in vars(self).items() if name not in _TOWER_ONLY}

    def model_config(self, num_items: int) -> BSARecConfig:
        """Of a new model of `num_items` ids."""
        return BSARecConfig(num_items, **self.encoder)

    def towers_config(self, num_items: int, recipe: FeatureRecipe, temperature: float | None) -> TowersConfig:
        """Of a new model of two towers."""
        return TowersConfig(
            num_items,
            num_items,
            recipe.names,
            recipe.dims,
            recipe.tag_sizes,
            self.id_dropout if len(recipe.names) > 1 else 0.0,
            temperature,
            self.encoder,
        )


@dataclass
class RetrieveConfig(TrainerDefaults, TrainingArguments):
    """transformers' [`TrainingArguments`] with what a dense retriever adds."""

    negatives: int = field(
        default=2048,
        metadata={
            "help": "Items drawn for each batch's softmax; 0: the softmax is over all items, as published. On a CPU "
            "2048 train several times as fast."
        },
    )
    negatives_from: NegativesFrom = field(
        default="mixed",
        metadata={
            "help": "Where the softmax's other items come from: uniform, popularity (both draw `negatives`), in_batch "
            "(the other rows' targets), or mixed (those and uniform ones)."
        },
    )
    log_q: bool = field(
        default=False,
        metadata={
            "help": "Weigh drawn items by how often they were expected, so that the loss tends to that over all items."
        },
    )
    loss: Literal["softmax", "info_nce"] = field(
        default="softmax", metadata={"help": "softmax (inner products) or info_nce (cosines over a temperature)."}
    )
    temperature: float = field(default=0.05, metadata={"help": "By which info_nce divides cosines."})
    index: IndexKind = field(
        default="auto",
        metadata={
            "help": "How items are found: flat (every product), ivf or hnsw (faiss, approximate), or auto: flat "
            "up to 200,000 items, then ivf."
        },
    )
    index_recall: float = field(
        default=0.98,
        metadata={"help": "Share of the true best 50 that an approximate index finds on validation, at least."},
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
        self._check_loss()
        best = bool(self.patience) or self.load_best_model_at_end
        check_idle(self, {"metric_for_best_model": (best, "patience or load_best_model_at_end")})
        check_metric(self.metric_for_best_model, metric_names())
        if best:
            align_saving(self)

    def _check_loss(self) -> None:
        for name, kind in (("negatives_from", NegativesFrom), ("loss", None), ("index", IndexKind)):
            known = ("softmax", "info_nce") if kind is None else get_args(kind)
            if vars(self)[name] not in known:
                raise HfGrError(f"{name} is {vars(self)[name]!r}; it is one of {', '.join(known)}.")
        drawn = (self.negatives > 0, "negatives above 0")
        approximate = (self.index != "flat", "index: auto, ivf or hnsw")
        needs = {"temperature": (self.loss == "info_nce", "loss: info_nce"), "index_recall": approximate}
        check_idle(self, needs | {"negatives_from": drawn, "log_q": drawn})
        if self.negatives_from == "in_batch" and self.negatives != 2048:
            raise HfGrError("negatives is set, but negatives_from: in_batch draws none; leave one of the two out.")


RETRIEVE_CONFIGS = (DataConfig, RetrieverConfig, RetrieveConfig)
