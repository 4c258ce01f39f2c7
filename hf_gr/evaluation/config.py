"""Settings of an evaluation."""

from dataclasses import dataclass, field, fields
from typing import Literal

from ..errors import HfGrError
from ..search_config import Mixture, SearchConfig
from ..splits import SplitKind, check_split


@dataclass
class EvaluateConfig:
    """What to evaluate, on what, and how."""

    dataset: str = field(metadata={"help": "Dataset folder."})
    output_dir: str = field(
        metadata={"help": "Folder for metrics.json, predictions.parquet and report.html; replaced as a whole."}
    )
    model: str | None = field(
        default=None, metadata={"help": "Model folder or Hub id; none: only lists from elsewhere."}
    )
    predictions: str | None = field(
        default=None,
        metadata={
            "help": "Parquet or JSONL with `user_id` and `item_ids` (best first): another system's lists, judged the "
            "same way. Where a user has several cases, `case` numbers them from 0 in order of time; without it the "
            "order of the rows counts."
        },
    )
    split: SplitKind = field(
        default="leave_one_out",
        metadata={
            "help": "`leave_one_out` (last event of every user), `temporal` or `temporal:0.7,0.15` (shares of "
            "training and validation), `temporal:2014-01-01,2014-06-01` (when validation and test begin), `session`, "
            "or `column:NAME`; `@buy` behind it judges events of that behavior alone."
        },
    )
    part: Literal["test", "validation"] = field(default="test", metadata={"help": "Which held-out part is predicted."})
    num_beams: int = field(default=50, metadata={"help": "Beams of the search, at least `top_k`."})
    top_k: int = field(default=50, metadata={"help": "Length of the lists; metrics at larger K are left out."})
    dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto",
        metadata={"help": "Arithmetic of the model: as it was saved, or another (bfloat16 is fast on CPUs with AMX)."},
    )
    batch_size: int = field(default=32, metadata={"help": "Histories per call of the model, on each process."})
    max_users: int | None = field(
        default=None, metadata={"help": "Judge a seeded random sample of so many users; none: all of them."}
    )
    exclude_seen: bool = field(
        default=False,
        metadata={"help": "Never recommend what is in the history; lists from `predictions` are judged without it."},
    )
    method: Literal["beam", "sample", "gumbel", "exhaustive"] = field(
        default="beam",
        metadata={
            "help": "How the model's items are found: the best ones of a beam search, draws from its policy without "
            "(`gumbel`) or with (`sample`) repeats, or every item scored."
        },
    )
    score: Literal["constrained", "model"] = field(
        default="constrained",
        metadata={"help": "Log-probabilities among what the catalog has, or among the whole vocabulary."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides the model's logits."})
    merge: Literal["step", "end", "none"] = field(
        default="step", metadata={"help": "When beams of an unordered model that hold the same codes are merged."}
    )
    reflection: float = field(
        default=0.0,
        metadata={
            "help": "Drop paths whose codes agree less than this in their categories, from 0 (off) to 1 (CORP); the "
            "share of pruned paths is told."
        },
    )
    graphs: bool = field(
        default=False, metadata={"help": "Replay whole searches as CUDA graphs: faster, for beams on a GPU."}
    )
    weights: dict | str | None = field(
        default=None,
        metadata={
            "help": "What each scorer counts, of a model with several: {semantic_id: 0.5, vectors: 0.5}; none: as the "
            "model says."
        },
    )
    mixing: Literal["probabilities", "log_probs", "shares"] | None = field(
        default=None,
        metadata={
            "help": "Rule by which `weights` mix: log Σ w·p, Σ w·log p with each p smoothed, or without (`shares`); "
            "none: the model's own, and `log_probs` where it has none."
        },
    )
    baselines: bool = field(
        default=True,
        metadata={
            "help": "Judge item-item kNN, whose window and neighbours the validation part chooses, and popularity "
            "beside it; first, where there is neither model nor predictions."
        },
    )
    logs: list[str] | None = field(
        default=None, metadata={"help": "Folders whose `training_log.json` gives the report's loss and reward curves."}
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of the bootstrap, the sample of users, the examples and draws."}
    )

    def __post_init__(self) -> None:
        check_split(self.split)
        if (mixture := Mixture.of(self.weights, self.mixing)) is not None:
            self.weights = dict(mixture.weights)  # of words on the command line too
        sizes = {"num_beams": self.num_beams, "top_k": self.top_k, "batch_size": self.batch_size}
        for name, size in sizes.items():
            if size < 1:
                raise HfGrError(f"{name} is {size}; it must be at least 1.")
        if self.max_users is not None and self.max_users < 1:
            raise HfGrError(f"max_users is {self.max_users}; give at least 1, or none for all users.")
        if self.model and self.num_beams < self.top_k:
            raise HfGrError(f"num_beams {self.num_beams} is less than top_k {self.top_k}; raise it, or ask for fewer.")
        if not (self.model or self.predictions or self.baselines):
            raise HfGrError("nothing to evaluate; give model, predictions, or leave baselines on.")
        if self.search != SearchConfig(self.num_beams, self.top_k) and not self.model:
            raise HfGrError("options of the search are set, but there is no model that searches; leave them out.")
        if self.part not in ("test", "validation"):
            raise HfGrError(f"unknown part {self.part!r}; use 'test' or 'validation'.")

    @property
    def search(self) -> SearchConfig:
        """How a generative model searches."""
        names = [option.name for option in fields(SearchConfig) if option.name not in ("seed", "mixture")]
        draws = self.method in ("sample", "gumbel")
        return SearchConfig(
            **{name: getattr(self, name) for name in names},
            seed=self.seed if draws else None,
            mixture=Mixture.of(self.weights, self.mixing),
        )
