"""Small language models from scratch, for the papers' sizes and for quick trials."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ..errors import HfGrError
from ..settings import nested
from .architectures import TREE_MODEL_TYPES


MAX_POSITIONS = 4096


@dataclass(frozen=True)
class ScratchConfig:
    """A model from scratch.

    Attributes:
        architecture: Model type of transformers, one of `TREE_MODEL_TYPES`.
        layers: Decoder layers.
        width: Hidden size d; the MLP has 4 d.
        heads: Attention heads of d / heads dimensions. 0: heads of 64 dimensions (32 below d = 128), at least one.
        text: Whether the vocabulary holds bytes, so that free text can be read and written. Without, it is of SIDs
            alone, as in the papers' recommenders.
    """

    architecture: str = "qwen3"
    layers: int = 4
    width: int = 256
    heads: int = 0
    text: bool = False

    def __post_init__(self) -> None:
        if self.architecture not in TREE_MODEL_TYPES:
            raise HfGrError(
                f"model: architecture is {self.architecture!r}; from scratch there are {', '.join(TREE_MODEL_TYPES)}."
            )
        for name, least in (("layers", 1), ("width", 1), ("heads", 0)):
            size = vars(self)[name]
            if type(size) is not int or size < least:
                raise HfGrError(f"model: {name} is {size!r}; give a whole number of at least {least}.")
        if type(self.text) is not bool:
            raise HfGrError(f"model: text is {self.text!r}; give true or false.")
        heads, head_dim = self.head_shape
        if self.width % heads or head_dim % 2:
            raise HfGrError(
                f"model: a width of {self.width} is no whole number of dimensions for {heads} heads, or an odd one; "
                "give a width that is a multiple of 64, or other heads."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "ScratchConfig":
        """From a mapping, as a YAML file has it. Raises [`HfGrError`] on unknown keys and values."""
        return nested(cls, settings, "model")

    @property
    def head_shape(self) -> tuple[int, int]:
        """Number of heads and dimensions of each."""
        if self.heads:
            return self.heads, self.width // self.heads
        head_dim = 64 if self.width >= 128 else 32
        return max(1, self.width // head_dim), head_dim


def from_scratch(settings: Mapping[str, Any], seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A decoder with random weights, full attention and a tied head, and its tokenizer, which gets its SIDs later.

    Args:
        settings: Keys and values of [`ScratchConfig`]: `{"architecture": "qwen3", "layers": 4, "width": 256}`.
        seed: Of the weights.

    Raises:
        HfGrError: On an unknown key, architecture or size.
    """
    scratch = ScratchConfig.of(settings)
    tokenizer = byte_tokenizer() if scratch.text else sid_tokenizer()
    heads, head_dim = scratch.head_shape
    config = AutoConfig.for_model(
        scratch.architecture,
        vocab_size=len(tokenizer),
        hidden_size=scratch.width,
        intermediate_size=4 * scratch.width,
        num_hidden_layers=scratch.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        max_position_embeddings=MAX_POSITIONS,
        sliding_window=None,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config), tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer without merges: 256 bytes, `<pad>`, `<eos>`, `<unk>`."""
    return _tokenizer(sorted(pre_tokenizers.ByteLevel.alphabet()))


def sid_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of no words: `<pad>`, `<eos>`, `<unk>`, and later the SID tokens. All text is `<unk>`."""
    return _tokenizer([])


def _tokenizer(alphabet: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {token: row for row, token in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()  # without one, decoding puts blanks between tokens, to be read as others
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
