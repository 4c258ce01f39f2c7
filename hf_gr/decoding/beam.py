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
from .hybrid import hybrid_ranking, is_hybrid
from .prefix_cache import PrefixCache
from .ranking import Ranking, ranked
from .reflection import Reflection
from .support import tree_support
from .tree import Beams, Merge, Method, check_filter, merged, tree_search
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
            [`tree_search`]. With hidden feedback or a reflection nothing is scored exhaustively ([`HfGrError`]).

    Raises:
        HfGrError: If a request's filter leaves no live item.
    """
    if method == "exhaustive":
        if feed is not None:
            raise HfGrError('hidden feedback needs the tree search; use method="beam" instead of "exhaustive".')
        if reflection is not None:
            raise HfGrError('reflection drops paths of a beam search; use method="beam" instead of "exhaustive".')
        beams = exhaustive_search(
            model, prompts, grammar, score=score, temperature=temperature, item_filter=item_filter
        )
        return ranked(beams, grammar, item_filter, top_k)

    grammar = grammar.to(model.device)
    if method == "beam" and is_hybrid(model):
        check_filter(item_filter)
        assert isinstance(grammar, TrieGrammar)
        return hybrid_ranking(
            Trunk.of(model, prompts, prefix_cache),
            prompts,
            grammar,
            num_beams=num_beams,
            top_k=top_k,
            item_filter=None if item_filter is None else item_filter.to(model.device),
        )

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
        rest = _without(found.items[short], grammar, item_filter, short)
        found = _joined(found, short, once(short, rest, None))
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


def _joined(found: Ranking, rows: torch.Tensor, more: Ranking) -> Ranking:
    """`found` with the items of `more` after those of its rows `rows`."""
    top_k = found.items.shape[1]
    items, scores, sids = torch.clone(found.items), torch.clone(found.scores), torch.clone(found.sids)
    together = torch.cat([items[rows], more.items], dim=1)
    order = (together < 0).sort(dim=1, stable=True).indices[:, :top_k]
    items[rows] = together.gather(1, order)
    scores[rows] = torch.cat([scores[rows], more.scores], dim=1).gather(1, order)
    place = order[..., None].expand(-1, -1, sids.shape[2])
    sids[rows] = torch.cat([sids[rows], more.sids], dim=1).gather(1, place)
    return replace(found, items=items, scores=scores, sids=sids)
