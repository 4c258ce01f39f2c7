"""Answers ranked by two outputs of one model: the semantic ID's probability and the similarity to the item's vector.

Each output brings candidates of its own, and each scores those of the other, so that a candidate's rank does not
depend on who found it. [ours]
"""

import torch
from transformers import PreTrainedModel

from ..grammar import ItemFilter, TrieGrammar
from ..models import IntRRForCausalLM, dense_logits, recursion_of
from .ranking import Ranking, ranked
from .tree import search_from
from .trunk import Trunk, path_log_probs


def is_hybrid(model: PreTrainedModel) -> bool:
    """Whether a model ranks by two outputs."""
    recursive = recursion_of(model)
    return recursive is not None and recursive.config.dense > 0 and recursive.config.dense_share > 0


@torch.no_grad()
def hybrid_ranking(
    trunk: Trunk, grammar: TrieGrammar, *, num_beams: int, top_k: int, item_filter: ItemFilter | None = None
) -> Ranking:
    """The items that best continue prompts that were read.

    With log p the log-probability of an item's semantic ID under the grammar and log q that of the item in a softmax
    over all live items, a candidate scores (1 − w) · log p + w · log q; w is the model's `dense_share`. Candidates are
    the items of the best `num_beams` semantic IDs and as many items of the largest q: at least min(top_k, live items).
    Items that share a semantic ID have equal p.

    Args:
        trunk: Of a model with a dense output.
        grammar: What may follow, on its device.
        num_beams: Width of the search; raised to `top_k`.
        top_k: Items wanted.
        item_filter: One row per prompt, each with live items.
    """
    model = trunk.model
    assert isinstance(model, IntRRForCausalLM)
    width, share = max(num_beams, top_k), model.config.dense_share
    found = ranked(search_from(trunk, grammar, num_beams=width, item_filter=item_filter), grammar, item_filter, width)
    everything = torch.arange(grammar.catalog_size, device=trunk.device)
    logits = dense_logits(model, trunk.hidden[:, 0], everything)
    dense = logits.masked_fill(~grammar.live(item_filter), -torch.inf).log_softmax(1)
    closest = dense.topk(min(width, dense.shape[1]), dim=1)
    added = torch.where(closest.values.isneginf(), -1, closest.indices)
    again = (added[:, :, None] == found.items[:, None]).any(2)
    items = torch.cat([found.items, added.masked_fill(again, -1)], dim=1)
    tokens = model.model.sids[items.clamp(min=0)]
    generative = sid_log_probs(trunk, tokens, grammar, item_filter)
    scores = (1 - share) * generative + share * dense.gather(1, items.clamp(min=0))
    best = scores.masked_fill(items < 0, -torch.inf).topk(min(top_k, items.shape[1]), dim=1)
    gone = best.values.isneginf()
    chosen = items.gather(1, best.indices).masked_fill(gone, -1)
    sids = grammar.codes(tokens.gather(1, best.indices[..., None].expand(-1, -1, tokens.shape[2])))
    return Ranking(chosen, best.values, sids.masked_fill(gone[..., None], -1))


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
