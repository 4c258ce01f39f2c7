"""Dropout for decoders whose architecture has none."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ..errors import HfGrError
from .decoder import text_decoder_of
from .intrr import recursion_of


# the last part of a layer's attention and of its MLP, by name
OUTPUTS = ("o_proj", "down_proj", "out_proj", "c_proj", "dense", "dense_4h_to_h", "fc2", "fc_out")
AFTER_NORM = ("post_attention_layernorm", "post_feedforward_layernorm")  # of layers that normalise what they add


def add_dropout(model: PreTrainedModel, p: float) -> None:
    """Hidden dropout while training: on the input embedding and on what every layer's attention and MLP add.

    Forward hooks alone, so that the saved model stays a plain one; a module in evaluation mode drops nothing. Known:
    residual dropout (Vaswani et al. 2017, section 5.4), which small recommenders trained from scratch need.

    Args:
        model: A decoder whose layers are an attention and an MLP that are known by name.
        p: Probability that an element is dropped, in [0, 1).

    Raises:
        HfGrError: On other decoders, before any hook is set.
    """
    recursive = recursion_of(model)
    decoder = text_decoder_of(model) if recursive is None else recursive.model.backbone
    places = list(_added(decoder, model.config.get_text_config().num_hidden_layers))

    def drop(module: nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, p, training=module.training)

    (model.get_input_embeddings() if recursive is None else recursive.model.entry).register_forward_hook(drop)
    for place in places:
        place.register_forward_hook(drop)


def _added(decoder: nn.Module, num_layers: int) -> Iterator[nn.Module]:
    """The modules whose outputs are added to the residual stream, two of every layer."""
    lists = [part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part) == num_layers]
    for layer in lists[0] if lists else [nn.Identity()]:
        children = dict(layer.named_children())
        if AFTER_NORM[1] in children:
            places = [children[name] for name in AFTER_NORM if name in children]
        else:
            # deeper ones are of experts, which are not all of what their block adds
            named = [(name.split("."), module) for name, module in layer.named_modules()]
            places = [module for name, module in named if len(name) <= 2 and name[-1] in OUTPUTS]
        if len(places) != 2:
            raise HfGrError(
                f"hidden_dropout is not for {type(decoder).__name__}: a layer adds two parts to its input, but "
                f"{len(places)} are known by name; leave it out, or set the dropout of the model's own config."
            )
        yield from places
