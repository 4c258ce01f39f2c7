"""From prompts to items: one call for every causal LM and every method."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..errors import HfGrError
from ..grammar import ItemFilter, SidGrammar
from ..search_config import SearchConfig
from .beams import Beams
from .call import Call, check_filter, check_prompts, settled
from .exhaustive import exhaustive_search
from .generate import generate_search
from .mixing import mixed_ranking, mixture_of
from .ranking import Ranking, ranked
from .support import tree_support
from .tree import merge_sets, tree_search


logger = logging.getLogger(__name__)


def search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    config: SearchConfig | None = None,
    call: Call | None = None,
    **options: Any,
) -> Beams:
    """The answers that best continue each prompt (or draws from the policy), by whichever path suits the model.

    Args and returns: as [`tree_search`]. Where the tree is not to be had (`generate`, slower), generator and prefix
    cache are not used, sets that merge do so at the end, and what is for the tree alone is refused ([`HfGrError`]).
    """
    check_prompts(prompts)
    config, call = settled(config, call, options, model.device)
    supported, reason = tree_support(model, max(map(len, prompts)) + grammar.answer_length)
    logger.debug("%s: %s", "tree search" if supported else "generate, slower", reason)
    if supported:
        return tree_search(model, prompts, grammar, config, call)
    needs = {"hidden feedback": call.feed is not None, "reflection": call.reflection is not None}
    for option, wanted in (needs | {"graphs": config.graphs}).items():
        if wanted:
            verb = "need" if option == "graphs" else "needs"
            raise HfGrError(f"{option} {verb} the tree search, which is not for this model: {reason}; leave it out.")
    beams = generate_search(model, prompts, grammar, config, call)
    merging = config.method == "beam" and config.merge != "none"
    return merge_sets(beams, grammar) if merging else beams


def beam_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    config: SearchConfig | None = None,
    call: Call | None = None,
    **options: Any,
) -> Ranking:
    """The items that best continue each prompt.

    A model with several scorers ranks by all of them ([`mixed_ranking`]). On a shared SID the
    items follow in bucket order. Where a search finds fewer than min(K, live items) items (orders of one set that
    merged, repeated draws), it is repeated with the found ones denied; the repeat knows no reflection, so that lists
    are full where few items are consistent.

    Args:
        model: Any causal LM with the grammar's tokens. Full-attention decoders take the tree, others `generate`.
        prompts: B lists of token ids, of any lengths ≥ 1.
        grammar: What may follow.
        config: Settings. Hidden feedback and a reflection do not go with `method="exhaustive"`. A model with several
            outputs takes only filters and the prefix cache: its beams are candidates, and the mixture ranks them.
        call: What belongs to this call.
        options: Entries of `config` and of `call` that are otherwise than there: `num_beams=20, item_filter=…`.

    Returns:
        Items in order of their scores; with a reflection, the items of the repeated search stand after the others. A
        filter changes no score and no order: the list is the whole list without what is filtered out, as far as the
        beams reach.

    Raises:
        HfGrError: If a request's filter leaves no live item, the model's scores are not finite, or options do not go
            together.
    """
    config, call = settled(config, call, options, model.device)
    check_filter(call.item_filter, grammar, len(prompts))
    grammar, top_k = grammar.to(model.device), config.top_k
    if not prompts:
        return Ranking.empty(top_k, grammar.num_codes, model.device)
    if (mixing := mixture_of(model, config, call)) is not None:
        return mixed_ranking(model, prompts, grammar, config, call, *mixing)
    if config.method == "exhaustive":
        beams = exhaustive_search(model, prompts, grammar, config, call)
        return ranked(beams, grammar, call.item_filter, top_k)
    config = replace(config, num_beams=max(config.num_beams, top_k))

    def once(rows: torch.Tensor, asked: SearchConfig, own: Call) -> Ranking:
        beams = search(model, [prompts[row] for row in rows.tolist()], grammar, asked, own)
        return ranked(beams, grammar, own.item_filter, top_k)

    found = once(torch.arange(len(prompts), device=model.device), config, call)
    live = grammar.num_items if call.item_filter is None else call.item_filter.live
    wanted = torch.as_tensor(live, device=model.device).clamp(max=top_k).expand(len(prompts))
    again = replace(config, reflection=0.0)
    while len(short := ((found.items >= 0).sum(1) < wanted).nonzero()[:, 0]):
        rest = _without(found.items[short], grammar, call.item_filter, short).to(model.device)
        more = once(short, again, replace(call, item_filter=rest, reflection=None))
        if (stuck := (more.items < 0).all(1).nonzero()[:, 0]).numel():
            row = int(short[stuck[0]])
            raise HfGrError(
                f"the search of prompt {row} found {int((found.items[row] >= 0).sum())} items and then none, but "
                f"{int(wanted[row])} are there: the model gives the others a probability of 0. Its logits are -inf "
                "(load it with dtype float32 or bfloat16)."
            )
        found = _joined(found, short, more, by_score=call.reflection is None)
    return found


def _without(
    items: torch.Tensor, grammar: SidGrammar, item_filter: ItemFilter | None, rows: torch.Tensor
) -> ItemFilter:
    """The filter of some requests with the items found already (int64 [rows, K], padded with −1) denied as well."""
    asked = None if item_filter is None else item_filter.rows(rows.to(item_filter.live.device))
    found = [row[row >= 0] for row in items.cpu().numpy()]
    if asked is None:
        return grammar.filter(found)
    deny = [new if old is None else np.concatenate([old, new]) for old, new in zip(asked.deny, found, strict=True)]
    return grammar.filter(deny, asked.allow, asked.only)


def _joined(found: Ranking, rows: torch.Tensor, more: Ranking, by_score: bool) -> Ranking:
    """`found` with the items of `more` among those of its rows `rows`: the best of all, or after them."""
    top_k = found.items.shape[1]
    items, scores, sids = torch.clone(found.items), torch.clone(found.scores), torch.clone(found.sids)
    together = torch.cat([items[rows], more.items], dim=1)
    every = torch.cat([scores[rows], more.scores], dim=1)  # −inf where there is no item
    order = every.sort(dim=1, descending=True, stable=True) if by_score else (together < 0).sort(dim=1, stable=True)
    best = order.indices[:, :top_k]
    items[rows] = together.gather(1, best)
    scores[rows] = every.gather(1, best)
    place = best[..., None].expand(-1, -1, sids.shape[2])
    sids[rows] = torch.cat([sids[rows], more.sids], dim=1).gather(1, place)
    return replace(found, items=items, scores=scores, sids=sids)
