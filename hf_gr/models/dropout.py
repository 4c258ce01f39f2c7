"""Dropout for decoders whose architecture has none."""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .intrr import recursion_of


OUTPUTS = ("o_proj", "down_proj")  # what a layer adds to the residual stream, in every architecture we know


def add_dropout(model: PreTrainedModel, p: float) -> None:
    """Hidden dropout while training: on the input embedding and on what every layer's attention and MLP add.

    Forward hooks alone, so that the saved model stays a plain one; a module in evaluation mode drops nothing. Known:
    residual dropout (Vaswani et al. 2017, section 5.4), which small recommenders trained from scratch need.

    Args:
        model: A decoder of `TREE_MODEL_TYPES`.
        p: Probability that an element is dropped, in [0, 1).
    """

    def drop(module: torch.nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, p, training=module.training)

    recursive = recursion_of(model)
    (model.get_input_embeddings() if recursive is None else recursive.model.entry).register_forward_hook(drop)
    for name, module in model.base_model.layers.named_modules():
        if name.rpartition(".")[2] in OUTPUTS:
            module.register_forward_hook(drop)
