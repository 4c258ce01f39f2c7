"""What an IntRR model is made of: the settings of its recursion, and the config that is saved with its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from transformers import AutoConfig, PreTrainedConfig

from ..errors import HfGrError
from ..settings import nested


Read = Literal["assigned", "sum"]


@dataclass(frozen=True)
class RecursionConfig:
    """How items are read and their codes told, in `form: recursive`.

    Attributes:
        input_weight: λ, weight of the input side's loss, which pulls an item's learned codes to its SID. [known: .1 in
            the released class, 0 in its recipe; 1 is our choice, by validation]
        item_width: Width of the unique-ID table; 0: the backbone's.
        item_rows: Rows of the table. 0: one for every item; else every item is the sum of two hashed rows, for
            catalogs whose table would not fit.
        hidden: Width of the MLPs' hidden layer, in widths of the backbone.
        read: What the backbone reads of an item: the rows of its `"assigned"` codes [known], or the `"sum"` of its own
            row and the rows of its SID's codes; nothing is pulled then, and `input_weight` not looked at [ours].
        dense: Weight of the loss of a second output, the similarity to every item's own vector (`dense.py`); 0: there
            is none. With it answers are ranked by both outputs.
        dense_share: Share of the second output in the score of an answer, from 0 to 1.
        negatives: Items drawn for each batch's softmax of the second output; 0: all items.
    """

    input_weight: float = 1.0
    item_width: int = 0
    item_rows: int = 0
    hidden: int = 1
    read: Read = "assigned"
    dense: float = 0.0
    dense_share: float = 0.5
    negatives: int = 2048

    def __post_init__(self) -> None:
        for name, least in (("item_width", 0), ("item_rows", 0), ("hidden", 1), ("negatives", 0)):
            value = vars(self)[name]
            if type(value) is not int or value < least:
                raise HfGrError(f"recursion: {name} is {value!r}; give a whole number of at least {least}.")
        if self.read not in get_args(Read):
            raise HfGrError(f"recursion: read is {self.read!r}; choose from {', '.join(get_args(Read))}.")
        for name, most in (("input_weight", None), ("dense", None), ("dense_share", 1)):
            value, told = vars(self)[name], "of at least 0" if most is None else f"from 0 to {most}"
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < float("inf") or (most is not None and value > most):
                raise HfGrError(f"recursion: {name} is {value!r}; give a number {told}.")

    @classmethod
    def of_dict(cls, settings: Mapping[str, Any]) -> Self:
        """From a mapping, as a YAML file has it. Raises [`HfGrError`] on unknown keys and values."""
        return nested(cls, settings, "recursion")


class IntRRConfig(PreTrainedConfig):
    """Of an [`IntRRForCausalLM`].

    Args:
        text_config: Of the backbone, a decoder.
        codebooks: First token id and number of codes of each of the L levels.
        first_item_id: Id that stands for the first item in `input_ids`; the item of row n is `first_item_id` + n.
        num_items: N.
        input_weight, item_width, item_rows, hidden, read, dense, dense_share, negatives: As in [`RecursionConfig`].
        retriever: Arguments of the [`BSARecConfig`] of a dense retriever of the same N items that the model carries;
            `None`: it has none.
        retriever_share: Share of that retriever in the score of an answer, from 0 to 1.
    """

    model_type = "intrr"
    sub_configs: ClassVar = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        codebooks: list[list[int]] | None = None,
        first_item_id: int = 0,
        num_items: int = 1,
        input_weight: float = 1.0,
        item_width: int = 0,
        item_rows: int = 0,
        hidden: int = 1,
        read: Read = "assigned",
        dense: float = 0.0,
        dense_share: float = 0.5,
        negatives: int = 2048,
        retriever: dict[str, Any] | None = None,
        retriever_share: float = 0.5,
        **kwargs: Any,
    ):
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = AutoConfig.for_model("qwen3") if text_config is None else text_config
        self.codebooks = [[0, 1]] if codebooks is None else codebooks
        self.first_item_id, self.num_items = first_item_id, num_items
        self.input_weight, self.item_width, self.item_rows, self.hidden = input_weight, item_width, item_rows, hidden
        self.read, self.dense, self.dense_share, self.negatives = read, dense, dense_share, negatives
        self.retriever, self.retriever_share = retriever, retriever_share
        super().__init__(**{"tie_word_embeddings": True} | kwargs)

    @property
    def width(self) -> int:
        """d, of the backbone."""
        return int(self.get_text_config().hidden_size)

    @property
    def shares(self) -> tuple[float, float, float]:
        """What the semantic ID, the vectors of the model's own and the retriever count in the score of an answer."""
        own = self.dense_share if self.dense else 0.0
        other = self.retriever_share if self.retriever else 0.0
        return (1 - other) * (1 - own), (1 - other) * own, other
