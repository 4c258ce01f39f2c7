"""Answers ranked by several outputs of one model: the semantic ID's probability, the similarity to the item's vector,
and a retriever that it carries.

Each output brings candidates of its own, and each scores those of the others, so that a candidate's rank does not
depend on who found it. [ours]
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..grammar import ItemFilter, TrieGrammar, check_scores
from ..models import IntRRForCausalLM, recursion_of
from ..models.bsarec import log_probabilities
from .ranking import Ranking, ranked
from .tree import search_from
from .trunk import Trunk, path_log_probs


CHUNK_ITEMS = 4096  # items whose semantic IDs are scored at once


def is_hybrid(model: PreTrainedModel) -> bool:
    """Whether a model ranks by more than the semantic ID."""
    recursive = recursion_of(model)
    return recursive is not None and recursive.config.shares[0] < 1


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


@torch.no_grad()
def hybrid_ranking(
    trunk: Trunk,
    prompts: Sequence[Sequence[int]],
    grammar: TrieGrammar,
    *,
    num_beams: int | None,
    top_k: int,
    item_filter: ItemFilter | None = None,
    item_vectors: ItemVectors | None = None,
) -> Ranking:
    """The items that best continue prompts that were read.

    With log p the log-probability of an item's semantic ID under the grammar, and log q and log r those of the item in
    softmaxes over all live items of the model's own vectors and of its retriever, a candidate scores
    (1 − v) · ((1 − w) · log p + w · log q) + v · log r; w is the model's `dense_share`, v its `retriever_share`. A
    filter changes none of the three.
    Candidates are the items of the best `num_beams` semantic IDs and as many items of the largest q and of the largest
    r: at least min(top_k, live items). Items that share a semantic ID have equal p.

    Args:
        trunk: Of a model with a dense output or a retriever.
        prompts: Token ids of each prompt, from which the retriever takes the history.
        grammar: What may follow, on its device.
        num_beams: Width of the search; raised to `top_k`. `None`: every item is a candidate, which is exact, and for
            catalogues of some thousand items.
        top_k: Items wanted.
        item_filter: One row per prompt, each with live items.
        item_vectors: Keeps the model's item vectors from one call to the next.

    Raises [`HfGrError`] if scores are not finite.
    """
    model = trunk.model
    assert isinstance(model, IntRRForCausalLM)
    sid_share, *shares = model.config.shares
    live, every = grammar.live(item_filter), grammar.live()
    others = [
        (share, logits.masked_fill(~every, -torch.inf).log_softmax(1))
        for share, logits in _logits(trunk, prompts, shares, item_vectors or ItemVectors())
    ]
    if num_beams is None:
        rows = torch.arange(grammar.catalog_size, device=trunk.device)
        items = torch.where(live, rows, -1).expand(len(prompts), -1)
        items = F.pad(items, (0, max(0, top_k - items.shape[1])), value=-1)
    else:
        width = max(num_beams, top_k)
        beams = search_from(trunk, grammar, num_beams=width, item_filter=item_filter)
        check_scores(beams.scores)
        items = ranked(beams, grammar, item_filter, width).items
        for _, log_probs in others:
            closest = log_probs.masked_fill(~live, -torch.inf).topk(min(width, live.shape[1]), dim=1)
            added = torch.where(closest.values.isneginf(), -1, closest.indices)
            again = (added[:, :, None] == items[:, None]).any(2)
            items = torch.cat([items, added.masked_fill(again, -1)], dim=1)
    tokens, place = model.model.sids[items.clamp(min=0)], items.clamp(min=0)
    parts = tokens.split(CHUNK_ITEMS, dim=1)
    scores = sid_share * torch.cat([sid_log_probs(trunk, part, grammar, item_filter) for part in parts], dim=1)
    for share, log_probs in others:
        scores = scores + share * log_probs.gather(1, place)
    scores = scores.masked_fill(items < 0, -torch.inf)
    check_scores(scores)
    best = scores.topk(top_k, dim=1)
    gone = best.values.isneginf()
    chosen = items.gather(1, best.indices).masked_fill(gone, -1)
    sids = grammar.codes(tokens.gather(1, best.indices[..., None].expand(-1, -1, tokens.shape[2])))
    return Ranking(chosen, best.values, sids.masked_fill(gone[..., None], -1))


def _logits(
    trunk: Trunk, prompts: Sequence[Sequence[int]], shares: Sequence[float], item_vectors: ItemVectors
) -> Iterator[tuple[float, torch.Tensor]]:
    """Share and logits float32 [B, N] of the model's own vectors and of its retriever, of those that count."""
    model, (vector_share, retriever_share) = trunk.model, shares
    assert isinstance(model, IntRRForCausalLM)
    if vector_share:
        vectors = item_vectors.of(model)
        yield vector_share, F.linear(trunk.hidden[:, 0].to(vectors.dtype), vectors).float()
    if retriever_share:
        assert model.retriever is not None
        first = model.config.first_item_id
        histories = [np.array([token - first for token in prompt if token >= first], np.int64) for prompt in prompts]
        yield retriever_share, log_probabilities(model.retriever, histories)


def _version(part: torch.Tensor) -> int:
    """How often a tensor was changed in place, as PyTorch counts; tensors of inference mode cannot be changed."""
    return 0 if part.is_inference() else part._version


def sid_log_probs(
    trunk: Trunk, tokens: torch.Tensor, grammar: TrieGrammar, item_filter: ItemFilter | None = None
) -> torch.Tensor:
    """Log-probability float32 [B, n] under the grammar of n semantic IDs for each of B prompts, tokens int64
    [B, n, L]; −inf where the filter leaves no item of it."""
    model = trunk.model
    assert isinstance(model, IntRRForCausalLM)
    batch, count, _ = tokens.shape
    answers = tokens.flatten(0, 1)
    read = model.queries(trunk.hidden.expand(-1, count, -1).flatten(0, 1), answers)
    return path_log_probs(model, read, grammar.step_index(answers), grammar, item_filter).view(batch, count)
