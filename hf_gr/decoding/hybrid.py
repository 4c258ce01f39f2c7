"""Answers ranked by several outputs of one model: the semantic ID's probability, the similarity to the item's vector,
and a retriever that it carries.

Each output brings candidates of its own, and each scores those of the others, so that a candidate's rank does not
depend on who found it. [ours]
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ..grammar import ItemFilter, TrieGrammar
from ..models import IntRRForCausalLM, dense_logits, recursion_of
from ..models.bsarec import log_probabilities
from .ranking import Ranking, ranked
from .tree import search_from
from .trunk import Trunk, path_log_probs


def is_hybrid(model: PreTrainedModel) -> bool:
    """Whether a model ranks by more than the semantic ID."""
    recursive = recursion_of(model)
    return recursive is not None and recursive.config.shares[0] < 1


@torch.no_grad()
def hybrid_ranking(
    trunk: Trunk,
    prompts: Sequence[Sequence[int]],
    grammar: TrieGrammar,
    *,
    num_beams: int,
    top_k: int,
    item_filter: ItemFilter | None = None,
) -> Ranking:
    """The items that best continue prompts that were read.

    With log p the log-probability of an item's semantic ID under the grammar, and log q and log r those of the item in
    softmaxes over all live items of the model's own vectors and of its retriever, a candidate scores
    (1 − v) · ((1 − w) · log p + w · log q) + v · log r; w is the model's `dense_share`, v its `retriever_share`.
    Candidates are the items of the best `num_beams` semantic IDs and as many items of the largest q and of the largest
    r: at least min(top_k, live items). Items that share a semantic ID have equal p.

    Args:
        trunk: Of a model with a dense output or a retriever.
        prompts: Token ids of each prompt, from which the retriever takes the history.
        grammar: What may follow, on its device.
        num_beams: Width of the search; raised to `top_k`.
        top_k: Items wanted.
        item_filter: One row per prompt, each with live items.
    """
    model = trunk.model
    assert isinstance(model, IntRRForCausalLM)
    width, (sid_share, *shares) = max(num_beams, top_k), model.config.shares
    found = ranked(search_from(trunk, grammar, num_beams=width, item_filter=item_filter), grammar, item_filter, width)
    live, items = grammar.live(item_filter), found.items
    others = [
        (share, logits.masked_fill(~live, -torch.inf).log_softmax(1))
        for share, logits in _logits(trunk, prompts, shares, grammar.catalog_size)
    ]
    for _, dense in others:
        closest = dense.topk(min(width, dense.shape[1]), dim=1)
        added = torch.where(closest.values.isneginf(), -1, closest.indices)
        again = (added[:, :, None] == items[:, None]).any(2)
        items = torch.cat([items, added.masked_fill(again, -1)], dim=1)
    tokens, place = model.model.sids[items.clamp(min=0)], items.clamp(min=0)
    scores = sid_share * sid_log_probs(trunk, tokens, grammar, item_filter)
    for share, dense in others:
        scores = scores + share * dense.gather(1, place)
    best = scores.masked_fill(items < 0, -torch.inf).topk(min(top_k, items.shape[1]), dim=1)
    gone = best.values.isneginf()
    chosen = items.gather(1, best.indices).masked_fill(gone, -1)
    sids = grammar.codes(tokens.gather(1, best.indices[..., None].expand(-1, -1, tokens.shape[2])))
    return Ranking(chosen, best.values, sids.masked_fill(gone[..., None], -1))


def _logits(
    trunk: Trunk, prompts: Sequence[Sequence[int]], shares: Sequence[float], num_items: int
) -> Iterator[tuple[float, torch.Tensor]]:
    """Share and logits float32 [B, N] of the model's own vectors and of its retriever, of those that count."""
    model, (own, other) = trunk.model, shares
    assert isinstance(model, IntRRForCausalLM)
    if own:
        yield own, dense_logits(model, trunk.hidden[:, 0], torch.arange(num_items, device=trunk.device))
    if other:
        assert model.retriever is not None
        first = model.config.first_item_id
        histories = [np.array([token - first for token in prompt if token >= first], np.int64) for prompt in prompts]
        yield other, log_probabilities(model.retriever, histories)


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
