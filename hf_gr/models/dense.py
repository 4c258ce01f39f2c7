"""A second opinion on the next item: the similarity of what a recursive model has read to every item's own vector.

Semantic IDs share what items have in common; a vector of its own tells an item from its like. Both are read off one
hidden state and trained together, and a search adds up their log-probabilities. Known: generative and dense retrieval
in one model (LIGER, Yang et al. 2024). Ours: the vectors are the unique-ID rows that the model has anyway plus the
rows of the item's codes, and what is ranked is a weighted sum of log-probabilities over the candidates of both.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .bsarec import BSARecModel
from .intrr import IntRRForCausalLM, recursion_of


def dense_logits(model: IntRRForCausalLM, hidden: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """h · v of hidden states float [n, d] and items int64 [m], float32 [n, m]."""
    vectors = model.model.vectors(items)
    return F.linear(hidden.to(vectors.dtype), vectors).float()


def dense_loss(model: IntRRForCausalLM, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """−log softmax of the next items' logits, float32 [n].

    The softmax is over all items or, with `negatives` in the model's config, over so many drawn uniformly and all
    targets of the batch, without a correction for the draw [ours].

    Args:
        model: With `dense` in its config.
        hidden: float [n, d], what each next item is read from.
        targets: int64 [n], rows of the catalog.
    """
    count, drawn = model.config.num_items, model.config.negatives
    items, place = torch.arange(count, device=targets.device), targets
    if 0 < drawn < count:
        negatives = torch.randint(count, (drawn,), device=targets.device)
        items, place = torch.cat([targets, negatives]).unique(return_inverse=True)
    return F.cross_entropy(dense_logits(model, hidden, items), place[: len(targets)], reduction="none")


def shares_of(model: PreTrainedModel) -> tuple[float, float, float]:
    """What the semantic ID, the vectors of the model's own and the retriever count in the score of an answer."""
    recursive = recursion_of(model)
    return (1.0, 0.0, 0.0) if recursive is None else recursive.config.shares


class ItemVectors:
    """Vectors of all items of a model with a dense output, made once for a state of its weights. Threads may share it.

    They are made anew after weights moved or were changed in place, as PyTorch counts changes; it does not count what
    is written through `.data`. Memory: N × d numbers on the model's device.
    """

    def __init__(self) -> None:
        self._made: tuple[tuple, torch.Tensor] | None = None  # for a state of the weights

    def of(self, model: IntRRForCausalLM) -> torch.Tensor:
        """float [N, d]."""
        parts = [*model.model.items.parameters(), *model.get_input_embeddings().parameters(), model.model.sids]
        state = tuple((id(part), part.data_ptr(), part.dtype, _version(part)) for part in parts)
        made = self._made
        if made is None or made[0] != state:
            items = torch.arange(model.config.num_items, device=model.device)
            self._made = made = state, model.model.vectors(items)
        return made[1]


def _version(part: torch.Tensor) -> int:
    """How often a tensor was changed in place, as PyTorch counts; tensors of inference mode cannot be changed."""
    return 0 if part.is_inference() else part._version


def inner_outputs(model: PreTrainedModel) -> tuple[IntRRForCausalLM | None, BSARecModel | None]:
    """The model, if it has vectors of items that were trained with it, and the retriever that it carries."""
    recursive = recursion_of(model)
    if recursive is None:
        return None, None
    return (recursive if recursive.config.dense else None), recursive.retriever


def histories_in(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[np.ndarray] | None:
    """Catalog rows of the items in each prompt, int64 [n] each, of a model that reads an item as one token; else
    `None`."""
    recursive = recursion_of(model)
    if recursive is None:
        return None
    first = recursive.config.first_item_id
    return [np.array([token - first for token in prompt if token >= first], np.int64) for prompt in prompts]
