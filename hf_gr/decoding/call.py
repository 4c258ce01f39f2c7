"""What one call of a search works with, beside its settings: filters, sources and caches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from ..errors import HfGrError
from ..grammar import ItemFilter, SidGrammar
from ..limits import shown
from ..models import ItemVectors
from ..scoring import Scorer
from ..search_config import Mixture, SearchConfig
from . import choose
from .graphs import SearchGraphs
from .prefix_cache import PrefixCache
from .reflection import Reflection


@dataclass(frozen=True, eq=False)
class Call:
    """What belongs to one call and is no setting: tensors, caches, and sources of random numbers.

    Every search takes one, or its entries as keywords of their own.

    Attributes:
        item_filter: Of the grammar, one row per prompt. It masks: no score depends on it, so that a filtered list is
            the whole list without what is filtered out. Draws have the scores of the whole policy too; each code is
            drawn among those that the filter leaves, in proportion to their probabilities.
        generator: Source of the draws: a generator on the model's device, or [`Draws`] that processes share.
        reflection: Drops paths whose codes contradict each other (CORP): after the second code and each later one,
            what is below its threshold is left out of the choice, so that the beams go to consistent paths. Where
            nothing of a request would remain, nothing of it is left out.
        prefix_cache: Keys and values of earlier prompts.
        graphs: Where captured searches are kept.
        item_vectors: Keeps the item vectors of a model with a dense output from one call to the next.
        feed: Of a model with hidden feedback ([`models.read`]): each thinking token is fed the projected hidden state
            of the token before it. A code and the thought after it then take two passes instead of one.
        histories: Catalog rows of each prompt's history, for scorers that read them.
        scorers: What ranks beside the semantic ID, by name, besides what the model carries in itself.
        mixture: What each scorer counts, unless the settings say otherwise.
    """

    item_filter: ItemFilter | None = None
    generator: choose.Source = None
    reflection: Reflection | None = None
    prefix_cache: PrefixCache | None = None
    graphs: SearchGraphs | None = None
    item_vectors: ItemVectors | None = None
    feed: nn.Linear | None = None
    histories: Sequence[np.ndarray] | None = None
    scorers: Mapping[str, Scorer] | None = None
    mixture: Mixture | None = None

    def to(self, device: torch.device | str) -> Self:
        """Filter and reflection on the model's device."""
        return replace(
            self,
            item_filter=None if self.item_filter is None else self.item_filter.to(device),
            reflection=None if self.reflection is None else self.reflection.to(device),
        )


def settled(
    config: SearchConfig | None, call: Call | None, options: dict[str, Any], device: torch.device
) -> tuple[SearchConfig, Call]:
    """Settings and call of a search, with single options of either set otherwise.

    A reflection or a place for graphs, where it is given, says what the setting of its name says.

    Raises [`HfGrError`] on unknown options, on options that do not go together, and where a setting lacks what it
    works with.
    """
    names = {field.name for field in fields(Call)} - {"mixture"}  # which as an option is a setting
    own = {name: value for name, value in options.items() if name in names}
    own |= {name: own[name] or None for name in ("reflection", "graphs") if name in own}  # 0 and False: off
    call = replace(call or Call(), **own)
    for name, value, kind in (("reflection", call.reflection, Reflection), ("graphs", call.graphs, SearchGraphs)):
        if not isinstance(value, kind | None):
            raise HfGrError(f"{name} is {shown(value)}; give a {kind.__name__} here, or ask a Recommender.")
    settings = {name: value for name, value in options.items() if name not in names}
    if call.reflection is not None:
        settings["reflection"] = call.reflection.threshold
    if call.graphs is not None:
        settings["graphs"] = True
    config = SearchConfig.of(config, **settings)
    if config.reflection and call.reflection is None:
        raise HfGrError("reflection needs the categories of a catalog; give reflection=Reflection.of(catalog, …).")
    if config.graphs and call.graphs is None:
        raise HfGrError("graphs need a place where they are kept; give graphs=SearchGraphs().")
    if config.graphs and (call.prefix_cache is not None or call.feed is not None):
        other = "hidden feedback" if call.prefix_cache is None else "a prefix cache"
        raise HfGrError(f"searches with {other} are not captured as CUDA graphs; leave graphs out.")
    if call.reflection is not None and config.method != "beam":
        raise HfGrError(f'reflection drops paths of a beam search; leave it out of method="{config.method}".')
    if config.seed is not None and call.generator is None:
        call = replace(call, generator=torch.Generator(device).manual_seed(config.seed))
    return config, call.to(device)


def check_prompts(prompts: list[list[int]]) -> None:
    """Raises [`HfGrError`] where there is no prompt, or one without tokens."""
    if not prompts:
        raise HfGrError("there are no prompts to search from; give at least one.")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise HfGrError(f"prompt {number} has no token; a prompt has at least one.")


def check_filter(item_filter: ItemFilter | None, grammar: SidGrammar, requests: int) -> None:
    """Raises [`HfGrError`] where a filter is not of this grammar and so many requests, or one has no live item."""
    if item_filter is None:
        return
    item_filter.check(grammar.identity, requests)
    if (dead := (item_filter.live == 0).nonzero()[:, 0]).numel():
        raise HfGrError(f"the filter of request {dead[0]} leaves no live item; allow more or exclude less.")
