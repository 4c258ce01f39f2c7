"""The decoder inside a causal LM."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The part of a causal LM that makes the hidden states that its head reads."""
    base = model.base_model
    return model.get_submodule("model") if base is model else base  # in some families the prefix names no part of it


def text_decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The decoder that reads text alone: of a model that reads images too, its language model."""
    text = decoder_of(model) if model.config.get_text_config() is model.config else model.get_decoder()
    return cast(PreTrainedModel, text)
