"""Settings of supervised fine-tuning."""

from dataclasses import dataclass, field
from typing import Literal

from trl import SFTConfig

from ..training import RunArguments
from ..vocabulary import ContextKind, RowStart


@dataclass
class SidSFTConfig(RunArguments, SFTConfig):
    """TRL's [`SFTConfig`] with what a generative recommender adds. `output_dir/model` becomes a Hub-ready repo."""

    catalog: str = field(default="", metadata={"help": "SID catalogue folder, as written by `hf-gr quantize`."})
    model_name_or_path: str = field(
        default="wheel:smollm2-135m-instruct",
        metadata={"help": "Causal LM to start from: Hub id, folder, `wheel:smollm2-135m-instruct`, or `scratch`."},
    )
    continue_from: str | None = field(
        default=None,
        metadata={
            "help": "A model made by hf_gr to go on training, in place of `model_name_or_path`; same catalogue."
        },
    )
    scratch_layers: int = field(default=4, metadata={"help": "Decoder layers of a model from `scratch`."})
    scratch_width: int = field(default=256, metadata={"help": "Hidden size of a model from `scratch`."})
    max_history: int = field(default=50, metadata={"help": "Events of a history that a prompt keeps."})
    context: ContextKind = field(
        default="none",
        metadata={"help": "Token after each item of a history: `none`, its `rating`, or its `behavior`."},
    )
    row_start: RowStart = field(
        default="random",
        metadata={
            "help": "How new token rows start: `random` (mean and deviation of the LM's rows), `codes` "
            "(code vectors), `text` (titles of the items that carry the code), `mean` (transformers' mean resizing; "
            "learns badly)."
        },
    )
    loss: Literal["constrained", "full"] = field(
        default="constrained",
        metadata={
            "help": "Softmax over what the grammar allows (needs only the SID rows of the head), or over the `full` "
            "vocabulary (TRL's loss; the one for DeepSpeed ZeRO-3)."
        },
    )
    train_rows_only: bool = field(
        default=False, metadata={"help": "Train only the new token rows (a first stage before all weights)."}
    )

    # other defaults than TRL's, because rows are SIDs
    max_length: int | None = field(default=None, metadata={"help": "Unused: `max_history` bounds the rows."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows (windows of histories) per device."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or a share of all steps below 1."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
