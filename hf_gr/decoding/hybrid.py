"""Answers ranked by several outputs of one model: the semantic ID's probability, the similarity to the item's vector,
and a retriever that it carries.

Each output brings candidates of its own, and each scores those of the others, so that a candidate's rank does not
depend on who found it. [ours]
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..errors import HfGrError
from ..grammar import ItemFilter, SidGrammar, check_scores
from ..models import ItemVectors, item_logits, item_tokens, shares_of
from ..search_config import SearchConfig
from .call import Call
from .ranking import Ranking, ranked
from .tree import search_from
from .trunk import Trunk, path_log_probs


CHUNK_ITEMS = 4096  # items whose semantic IDs are scored at once


def is_hybrid(model: PreTrainedModel) -> bool:
    """Whether a model ranks by more than the semantic ID."""
    return shares_of(model)[0] < 1


def check_hybrid(config: SearchConfig, call: Call) -> None:
    """Raises [`HfGrError`] on what has no meaning, or none yet, where several outputs rank together."""
    refused = {
        f'method="{config.method}"': config.method not in ("beam", "exhaustive"),
        f'score="{config.score}"': config.score != "constrained",
        f"temperature={config.temperature}": config.temperature != 1,
        "reflection": call.reflection is not None,
        "graphs": config.graphs,
        "feed": call.feed is not None,
    }
    for option, is_set in refused.items():
        if is_set:
            raise HfGrError(
                f"{option} is for models that rank by semantic IDs alone; this one mixes them with item vectors or a "
                "retriever: leave it out."
            )


@torch.no_grad()
def hybrid_ranking(
    trunk: Trunk,
    prompts: Sequence[Sequence[int]],
    grammar: SidGrammar,
    config: SearchConfig,
    call: Call,
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
        config: Of the search, whose `num_beams` (raised to `top_k`) and `top_k` count. With `method="exhaustive"`
            every item is a candidate, which is exact, and for catalogs of some thousand items.
        call: Its filter, one row per prompt, each with live items, and its item vectors count.

    Raises [`HfGrError`] if scores are not finite.
    """
    item_filter, top_k, sid_share = call.item_filter, config.top_k, shares_of(trunk.model)[0]
    live, every = grammar.live(item_filter), grammar.live()
    others = [
        (share, logits.masked_fill(~every, -torch.inf).log_softmax(1))
        for share, logits in item_logits(trunk.model, trunk.hidden[:, 0], prompts, call.item_vectors or ItemVectors())
    ]
    if config.method == "exhaustive":
        rows = torch.arange(grammar.catalog_size, device=trunk.device)
        items = torch.where(live, rows, -1).expand(len(prompts), -1)
        items = F.pad(items, (0, max(0, top_k - items.shape[1])), value=-1)
    else:
        width = max(config.num_beams, top_k)
        beams = search_from(trunk, grammar, replace(config, num_beams=width), call)
        check_scores(beams.scores)
        items = ranked(beams, grammar, item_filter, width).items
        for _, log_probs in others:
            closest = log_probs.masked_fill(~live, -torch.inf).topk(min(width, live.shape[1]), dim=1)
            added = torch.where(closest.values.isneginf(), -1, closest.indices)
            again = (added[:, :, None] == items[:, None]).any(2)
            items = torch.cat([items, added.masked_fill(again, -1)], dim=1)
    place = items.clamp(min=0)
    tokens = item_tokens(trunk.model)[place]
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


def sid_log_probs(
    trunk: Trunk, tokens: torch.Tensor, grammar: SidGrammar, item_filter: ItemFilter | None = None
) -> torch.Tensor:
    """Log-probability float32 [B, n] under the grammar of n semantic IDs for each of B prompts, tokens int64
    [B, n, L]; −inf where the filter leaves no item of it."""
    batch, count, _ = tokens.shape
    answers = tokens.flatten(0, 1)
    read = trunk.reader.all(trunk.hidden.expand(-1, count, -1).flatten(0, 1), answers)
    index = grammar.step_index(answers)
    return path_log_probs(trunk.model, read, index, grammar, SearchConfig(), item_filter).view(batch, count)
