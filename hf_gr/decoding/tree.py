"""Beam search on a tree: the prompt is read once, beams are branches of its cache.

Every step feeds the newest tokens of each prompt's W beams as one row of columns. An additive mask lets each see the
prompt and its own ancestors, so the cache is never copied or reordered.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..errors import HfGrError
from ..grammar import DEAD, SidGrammar, Successors, check_scores
from ..search_config import SearchConfig
from . import choose
from .beams import Beams
from .branching import Branches
from .call import Call, check_filter, check_prompts, settled
from .graphs import SearchGraphs
from .reflection import Reflection
from .support import tree_support
from .trunk import Trunk, step_log_probs


@torch.no_grad()
def tree_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    config: SearchConfig | None = None,
    call: Call | None = None,
    **options: Any,
) -> Beams:
    """Searches the answers that best continue each prompt.

    Args:
        model: A full-attention decoder ([`tree_support`]); else [`HfGrError`].
        prompts: B lists of token ids, of any lengths ≥ 1.
        grammar: What may follow. Every beam is a live item's SID; with `method="beam"` and `"gumbel"` no two are alike
            (in an unordered grammar: no two are written alike, unless merged).
        config: Settings; the method is one of [`Method`].
        call: What belongs to this call.
        options: Entries of `config` and of `call` that are otherwise than there.

    Raises:
        HfGrError: If a request's filter leaves no live item, the model's scores are not finite, or options do not go
            together.
    """
    check_prompts(prompts)
    config, call = settled(config, call, options, model.device)
    supported, reason = tree_support(model, max(map(len, prompts)) + grammar.answer_length)
    if not supported:
        raise HfGrError(f"tree search is not for this model: {reason}; use generate_search.")
    check_filter(call.item_filter, grammar, len(prompts))
    if call.feed is None:  # else the first thought waits for the prompt's hidden state
        thought = [*grammar.think_ids[:1]]  # the first thinking token is the same for all beams
        prompts = [prompt + thought for prompt in prompts]
    grammar = grammar.to(model.device)
    if config.graphs and call.graphs is not None and call.item_filter is None:
        beams = _replayed(call.graphs, model, prompts, grammar, config)
    else:
        beams = search_from(Trunk.of(model, prompts, call.prefix_cache), grammar, config, call)
    check_scores(beams.scores)
    return beams


def _replayed(
    graphs: SearchGraphs, model: PreTrainedModel, prompts: list[list[int]], grammar: SidGrammar, config: SearchConfig
) -> Beams:
    """[`search_from`] as a CUDA graph."""
    if grammar.any_order:
        raise HfGrError("CUDA graphs are not for unordered answers, which wait for the device; leave graphs out.")

    def whole(ids: torch.Tensor, mask: torch.Tensor) -> Beams:
        return search_from(Trunk(model, ids, mask), grammar, config)

    return graphs.search(model, prompts, grammar, replace(config, top_k=1), whole)  # which changes no beam


def search_from(
    trunk: Trunk, grammar: SidGrammar, config: SearchConfig | None = None, call: Call | None = None
) -> Beams:
    """[`tree_search`] from prompts that were read; nothing waits for the device.

    The first thinking token is among what was read, unless there is a `feed`. Where scores were not finite, all of the
    prompt's are NaN ([`check_scores`]).
    """
    config, call = config or SearchConfig(), call or Call()
    if config.method == "exhaustive":
        raise HfGrError('method="exhaustive" is no search of the tree; use beam_search or exhaustive_search.')
    if call.feed is not None and not grammar.think_ids:
        raise HfGrError("hidden feedback is for answers with a thinking token before each code; leave feed out.")
    search = _TreeSearch(trunk, grammar, config, call)
    for step in range(grammar.num_codes):
        search.extend(step)
    beams = search.result()
    return merge_sets(beams, grammar) if config.merge == "end" else beams


def merge_sets(beams: Beams, grammar: SidGrammar) -> Beams:
    """Answers of an unordered grammar that hold the same codes as one, best first: their probabilities add up."""
    if not grammar.any_order:
        return beams
    batch, width = beams.scores.shape
    keys = grammar.set_keys(beams.states.flatten(0, 1)).view(batch, width)
    broken = beams.scores.isnan().any(1, keepdim=True)
    scores, order = choose.merge_sets(beams.scores, keys).sort(dim=1, descending=True, stable=True)
    scores = scores.masked_fill(broken, torch.nan)
    dead = torch.isneginf(scores)[..., None]

    def ordered(values: torch.Tensor, fill: int) -> torch.Tensor:
        return values.gather(1, order[..., None].expand(-1, -1, values.shape[2])).masked_fill(dead, fill)

    return replace(
        beams,
        tokens=ordered(beams.tokens, -1),
        states=ordered(beams.states, DEAD),
        scores=scores,
        log_probs=ordered(beams.log_probs, 0),
    )


class _TreeSearch:
    """State of one search: B prompts and up to W beams each.

    `scores` are log-probabilities of beams under the policy, `drawn` those under what draws come from: the same,
    unless there is a filter. `broken` prompts had scores that are NaN.
    """

    def __init__(
        self,
        trunk: Trunk,
        grammar: SidGrammar,
        config: SearchConfig,
        call: Call,
    ):
        self.trunk, self.grammar, self.config, self.call = trunk, grammar, config, call
        self.reflection = call.reflection
        self.batch, self.width, self.device = len(trunk.lengths), config.num_beams, trunk.device
        self.branches = Branches(trunk, grammar, call.feed)
        self.states = self.grammar.initial(self.batch).view(self.batch, 1, -1)
        self.tokens = torch.empty(self.batch, 1, 0, dtype=torch.int64, device=self.device)
        self.log_probs = torch.empty(self.batch, 1, 0, device=self.device)
        self.scores = self.drawn = torch.zeros(self.batch, 1, device=self.device)
        self.broken = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        self.keys: torch.Tensor | None = None
        self.wanted = self.dropped = torch.zeros(self.batch, dtype=torch.int64, device=self.device)

    def extend(self, step: int) -> None:
        """Chooses the codes of `step` and, unless they are the last, feeds them."""
        method, item_filter, generator = self.config.method, self.call.item_filter, self.call.generator
        beams = self.states.shape[1]
        options = self.grammar.successors(self.states.flatten(0, 1), step, item_filter)
        hidden = self.branches.hidden.flatten(0, 1)
        log_probs = step_log_probs(self.trunk.model, hidden, self.grammar, step, options, self.config)
        log_probs = log_probs.view(self.batch, beams, -1)
        num_options = log_probs.shape[2]
        totals = (self.scores[..., None] + log_probs).flatten(1)
        self.broken = self.broken | totals.amax(1).isnan()
        width = min(self.width, beams * num_options)
        keys, share = None, log_probs
        if method != "beam" and item_filter is not None:
            share = choose.renormalized(log_probs)
        if method == "sample":
            chosen = choose.draw(share, self.width, generator)
        elif method == "gumbel":
            before = choose.gumbel(self.scores.shape, self.device, generator) if self.keys is None else self.keys
            keys = choose.perturb(self.drawn, before, share, generator).flatten(1)
            chosen = choose.best(keys, width)
        else:
            every, totals = totals, self._merged(totals, step)
            if self.reflection is not None and step:
                kept = self._consistent(self.reflection, every, step, options)
                self._count_dropped(totals, kept, width)
                totals = self._merged(every.masked_fill(~kept, -torch.inf), step)
            chosen = choose.best(totals, width)
        parent, option = chosen // num_options, chosen % num_options

        def inherit(history: torch.Tensor) -> torch.Tensor:
            return history.gather(1, parent[..., None].expand(-1, -1, history.shape[2]))

        if keys is not None:
            self.keys = keys.gather(1, chosen)
            self.drawn = (self.drawn[..., None] + share).flatten(1).gather(1, chosen)
        self.scores = totals.gather(1, chosen)
        newest = log_probs.flatten(1).gather(1, chosen)
        self.log_probs = torch.cat([inherit(self.log_probs), newest[..., None]], dim=2)
        index = option if options.index is None else options.index.view(self.batch, -1).gather(1, chosen)
        token = self.grammar.step_tokens(step)[index]
        self.tokens = torch.cat([inherit(self.tokens), token[..., None]], dim=2)
        if step + 1 < self.grammar.num_codes:
            self.branches.grow(parent, token)
        states = self.grammar.advance(inherit(self.states).flatten(0, 1), step, option.flatten())
        dead = torch.isneginf(self.scores).flatten()
        self.states = self.grammar.killed(states, dead).view(self.batch, chosen.shape[1], -1)

    def _merged(self, totals: torch.Tensor, step: int) -> torch.Tensor:
        """`totals` (float [B, beams · D]) with those of equal sets at the best of them, if sets are to merge."""
        merging = self.config.merge == "step" and step > 0
        if not merging or not self.grammar.any_order:
            return totals
        sets = self.grammar.set_keys(self.states.flatten(0, 1)).view(self.scores.shape)
        held = self.grammar.code_numbers(self.tokens)
        return choose.merge_best(totals, sets, self.grammar.option_keys, held, self.width)

    def _consistent(
        self, reflection: Reflection, totals: torch.Tensor, step: int, options: Successors
    ) -> torch.Tensor:
        """Which candidates do not contradict themselves, bool like `totals`; all where that leaves a request none.

        Orders of one set are all consistent or none is, so that this may come before they merge.
        """
        held = self.grammar.code_numbers(self.tokens).flatten(0, 1)
        consistent = reflection.keeps(held, self.grammar.code_numbers(self.grammar.step_tokens(step)))
        if options.index is not None:
            consistent = consistent.gather(1, options.index)
        consistent = consistent.view(totals.shape)
        return consistent | ~(consistent & ~torch.isneginf(totals)).any(1, keepdim=True)

    def _count_dropped(self, totals: torch.Tensor, kept: torch.Tensor, width: int) -> None:
        """Counts the best candidates, and those of them that are not kept."""
        best = choose.best(totals, width)
        wanted = ~torch.isneginf(totals.gather(1, best))
        self.wanted = self.wanted + wanted.sum(1)
        self.dropped = self.dropped + (wanted & ~kept.gather(1, best)).sum(1)

    def result(self) -> Beams:
        tokens = self.tokens
        if self.grammar.think_ids:
            thoughts = [torch.full_like(tokens[..., 0], think) for think in self.grammar.think_ids]
            tokens = torch.stack([torch.stack(thoughts, -1), tokens], -1).flatten(2)
        missing = self.width - self.scores.shape[1]
        scores = F.pad(self.scores, (0, missing), value=-torch.inf)
        dead = torch.isneginf(scores)[..., None]
        scores = scores.masked_fill(self.broken[:, None], torch.nan)
        return Beams(
            F.pad(tokens, (0, 0, 0, missing)).masked_fill(dead, -1),
            F.pad(self.states, (0, 0, 0, missing)).masked_fill(dead, DEAD),
            scores,
            F.pad(self.log_probs, (0, 0, 0, missing)),
            None if self.keys is None else F.pad(self.keys, (0, missing), value=-torch.inf),
            None if self.reflection is None else self.dropped / self.wanted.clamp(min=1),
        )
