"""From prompts to items: one call for every causal LM and every method."""

import logging
from dataclasses import replace
from typing import Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import HfGrError
from ..grammar import ItemFilter, SidGrammar, TrieGrammar
from . import choose
from .exhaustive import exhaustive_search
from .generate import generate_search
from .graphs import SearchGraphs
from .hybrid import ItemVectors, hybrid_ranking, is_hybrid
from .prefix_cache import PrefixCache
from .ranking import Ranking, ranked
from .reflection import Reflection
from .support import tree_support
from .tree import Beams, Merge, Method, check_filter, check_prompts, merged, tree_search
from .trunk import Score, Trunk


logger = logging.getLogger(__name__)


class SearchSettings(TypedDict, total=False):
    """Settings of a search, as [`tree_search`] explains them."""

    method: Method
    score: Score
    temperature: float
    item_filter: ItemFilter | None
    generator: choose.Source
    merge: Merge
    reflection: Reflection | None
    prefix_cache: PrefixCache | None
    graphs: SearchGraphs | None
    feed: nn.Linear | None


def search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    *,
    num_beams: int,
    **settings: Unpack[SearchSettings],
) -> Beams:
    """The answers that best continue each prompt (or draws from the policy), by whichever path suits the model.

    Args and returns: as [`tree_search`]. Where the tree is not to be had (`generate`, slower), generator, prefix
    cache and graphs are not used, sets that merge do so at the end, and a reflection is refused ([`HfGrError`]).
    """
    check_prompts(prompts)
    supported, reason = tree_support(model, max(map(len, prompts)) + grammar.answer_length)
    logger.debug("%s: %s", "tree search" if supported else "generate, slower", reason)
    if supported:
        return tree_search(model, prompts, grammar, num_beams=num_beams, **settings)
    if settings.get("feed") is not None:
        raise HfGrError(f"hidden feedback needs the tree search, which is not for this model: {reason}.")
    if settings.get("reflection") is not None:
        raise HfGrError(f"reflection needs the tree search, which is not for this model: {reason}; leave it out.")
    method = settings.get("method", "beam")
    beams = generate_search(
        model,
        prompts,
        grammar,
        num_beams=num_beams,
        method=method,
        score=settings.get("score", "constrained"),
        temperature=settings.get("temperature", 1.0),
        item_filter=settings.get("item_filter"),
    )
    merging = method == "beam" and settings.get("merge", "step") != "none"
    return merged(beams, grammar) if merging else beams


def beam_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    *,
    num_beams: int = 50,
    top_k: int = 10,
    method: Method | Literal["exhaustive"] = "beam",
    score: Score = "constrained",
    temperature: float = 1.0,
    item_filter: ItemFilter | None = None,
    generator: choose.Source = None,
    merge: Merge = "step",
    reflection: Reflection | None = None,
    prefix_cache: PrefixCache | None = None,
    graphs: SearchGraphs | None = None,
    feed: nn.Linear | None = None,
    item_vectors: ItemVectors | None = None,
) -> Ranking:
    """The items that best continue each prompt.

    A model with a dense output or a retriever ranks by all of its outputs ([`hybrid_ranking`]). On a shared SID the
    items follow in bucket order. Where a search finds fewer than min(K, live items) items (orders of one set that
    merged, repeated draws), it is repeated with the found ones denied; the repeat knows no reflection, so that lists
    are full where few items are consistent.

    Args:
        model: Any causal LM with the grammar's tokens. Full-attention decoders take the tree, others `generate`.
        prompts: B lists of token ids, of any lengths ≥ 1.
        grammar: What may follow.
        num_beams: Width of the search; raised to `top_k`.
        top_k: Items wanted, K.
        method: `"beam"`; `"sample"` and `"gumbel"`: draws from the policy, in order of score; `"exhaustive"`: every
            item is scored (for catalogues of up to some thousand).
        score, temperature, item_filter, generator, merge, reflection, prefix_cache, graphs, feed: As for
            [`tree_search`]. Hidden feedback and a reflection do not go with `"exhaustive"`. A model with several
            outputs takes only filters and the prefix cache: its beams are candidates, and the mixture ranks them.
        item_vectors: Keeps the item vectors of a model with a dense output from one call to the next.

    Returns:
        Items in order of their scores; with a reflection, the items of the repeated search stand after the others. A
        filter changes no score and no order: the list is the whole list without what is filtered out, as far as the
        beams reach.

    Raises:
        HfGrError: If a request's filter leaves no live item, the model's scores are not finite, or options do not go
            together.
    """
    check_filter(item_filter, grammar, len(prompts))
    grammar = grammar.to(model.device)
    if not prompts:
        return Ranking.empty(top_k, grammar.num_codes, model.device)
    exhaustive = method == "exhaustive"
    if is_hybrid(model):
        _check_hybrid(method, score, temperature, reflection, graphs, feed)
        assert isinstance(grammar, TrieGrammar)
        return hybrid_ranking(
            Trunk.of(model, prompts, prefix_cache),
            prompts,
            grammar,
            num_beams=None if exhaustive else num_beams,
            top_k=top_k,
            item_filter=None if item_filter is None else item_filter.to(model.device),
            item_vectors=item_vectors,
        )
    if method == "exhaustive":
        if feed is not None:
            raise HfGrError('hidden feedback needs the tree search; use method="beam" instead of "exhaustive".')
        if reflection is not None:
            raise HfGrError('reflection drops paths of a beam search; use method="beam" instead of "exhaustive".')
        beams = exhaustive_search(
            model, prompts, grammar, score=score, temperature=temperature, item_filter=item_filter
        )
        return ranked(beams, grammar, item_filter, top_k)

    settings: SearchSettings = {
        "method": method,
        "score": score,
        "temperature": temperature,
        "generator": generator,
        "merge": merge,
        "prefix_cache": prefix_cache,
        "graphs": graphs,
        "feed": feed,
    }

    def once(rows: torch.Tensor, rows_filter: ItemFilter | None, rows_reflection: Reflection | None) -> Ranking:
        beams = search(
            model,
            [prompts[row] for row in rows.tolist()],
            grammar,
            num_beams=max(num_beams, top_k),
            **settings | {"item_filter": rows_filter, "reflection": rows_reflection},
        )
        return ranked(beams, grammar, rows_filter, top_k)

    everyone = torch.arange(len(prompts), device=model.device)
    found = once(everyone, item_filter, reflection)
    live = grammar.num_items if item_filter is None else item_filter.live.to(model.device)
    wanted = torch.as_tensor(live, device=model.device).clamp(max=top_k).expand(len(prompts))
    while len(short := ((found.items >= 0).sum(1) < wanted).nonzero()[:, 0]):
        more = once(short, _without(found.items[short], grammar, item_filter, short), None)
        if (stuck := (more.items < 0).all(1).nonzero()[:, 0]).numel():
            row = int(short[stuck[0]])
            raise HfGrError(
                f"the search of prompt {row} found {int((found.items[row] >= 0).sum())} items and then none, but "
                f"{int(wanted[row])} are there: the model gives the others a probability of 0. Its logits are -inf "
                "(load it with dtype float32 or bfloat16)."
            )
        found = _joined(found, short, more, by_score=reflection is None)
    return found


def _check_hybrid(
    method: Method | Literal["exhaustive"],
    score: Score,
    temperature: float,
    reflection: Reflection | None,
    graphs: SearchGraphs | None,
    feed: nn.Linear | None,
) -> None:
    """Raises [`HfGrError`] on what has no meaning, or none yet, where several outputs rank together."""
    refused = {
        f'method="{method}"': method not in ("beam", "exhaustive"),
        f'score="{score}"': score != "constrained",
        f"temperature={temperature}": temperature != 1,
        "reflection": reflection is not None,
        "graphs": graphs is not None,
        "feed": feed is not None,
    }
    for option, is_set in refused.items():
        if is_set:
            raise HfGrError(
                f"{option} is for models that rank by semantic IDs alone; this one mixes them with item vectors or a "
                "retriever: leave it out."
            )


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
