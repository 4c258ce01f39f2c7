"""What trainers and reports ask of any model, and what a recursive one (IntRR) has to say to it."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import HfGrError
from .dense import dense_loss
from .intrr import OWN_PARTS, recursion_of


def new_parts(model: PreTrainedModel) -> list[str]:
    """Modules beside the pretrained backbone that are new, and trained in full; none of a plain LM."""
    return [] if recursion_of(model) is None else list(OWN_PARTS)


def fixed_parts(model: PreTrainedModel) -> list[str]:
    """Modules beside the pretrained backbone that no training changes; none of a plain LM."""
    return [] if recursion_of(model) is None else ["retriever"]


def recursion_settings(model: PreTrainedModel) -> dict[str, Any] | None:
    """The config's entries, among them those of a [`RecursionConfig`], of a model whose codes come by recursion."""
    recursive = recursion_of(model)
    return None if recursive is None else dict(vars(recursive.config))


def reads_learned_codes(model: PreTrainedModel) -> bool:
    """Whether a model reads items as codes that it learned for them, not as their SIDs or as sums."""
    recursive = recursion_of(model)
    return recursive is not None and recursive.config.read == "assigned"


@torch.no_grad()
def learned_codes(model: PreTrainedModel, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes that a model learned to read items int64 [n] as, int64 [n, L], and the probability of each, float
    [n, L]; [`HfGrError`] of a model without ([`reads_learned_codes`])."""
    recursive = recursion_of(model)
    if recursive is None or not reads_learned_codes(model):
        raise HfGrError("the model has learned no codes for its items; it reads their semantic IDs.")
    return recursive.model.assigned(items.to(model.device))


def side_losses(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    pairs: Callable[[], tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, tuple[float, torch.Tensor]] | None:
    """Losses beside that of the answers, by name: the weight of each, and the loss, float [n].

    Args:
        model: Any; `None` is told of one that has no other loss.
        input_ids: int64, any shape: what was read. Every distinct item counts once in `recursion/input`, which pulls
            the codes learned for it to its SID.
        pairs: Gives hidden states float [m, d] and the item that follows each, int64 [m], for `recursion/dense`.
    """
    recursive = recursion_of(model)
    if recursive is None:
        return None
    config, losses = recursive.config, dict[str, tuple[float, torch.Tensor]]()
    if config.input_weight and config.read == "assigned":
        items = (input_ids[input_ids >= config.first_item_id] - config.first_item_id).unique()
        pull = recursive.model.input_loss(items) if len(items) else input_ids.new_zeros(1, dtype=torch.float32)
        losses["recursion/input"] = config.input_weight, pull
    if config.dense:
        losses["recursion/dense"] = config.dense, dense_loss(recursive, *pairs())
    return losses


def without_retriever(model: PreTrainedModel) -> PreTrainedModel:
    """A model without the retriever that older releases put among its weights; changed in place."""
    recursive = recursion_of(model)
    if recursive is not None:
        recursive.retriever, recursive.config.retriever = None, None
    return model
