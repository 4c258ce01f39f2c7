"""Beam search on a tree: the prompt is read once, beams are branches of its cache.

Every step feeds the newest tokens of each prompt's W beams as one row of columns. An additive mask lets each see the
prompt and its own ancestors, so the cache is never copied or reordered.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ..errors import HfGrError
from ..grammar import DEAD, ItemFilter, SidGrammar, Successors, UnorderedGrammar, check_scores
from ..models import feedback, recursion_of
from . import choose
from .prefix_cache import PrefixCache
from .reflection import Reflection
from .support import tree_support
from .trunk import Score, Trunk, step_log_probs


if TYPE_CHECKING:
    from .graphs import SearchGraphs

Method = Literal["beam", "sample", "gumbel"]
Merge = Literal["step", "end", "none"]


@dataclass(frozen=True, eq=False)
class Beams:
    """Answers to B prompts, W each.

    Attributes:
        tokens: int64 [B, W, T], the answers as written, thinking tokens included; −1 in beams that hold no answer
            (fewer SIDs than beams).
        states: int64 [B, W, S], the grammar's final states; negative likewise.
        scores: float32 [B, W], log-probability of the answer (its codes; forced tokens count 0), −inf likewise.
            Falling for `method="beam"`. Where equal sets were merged, the log-probability of all their orders.
        log_probs: float32 [B, W, C], log-probability of every code in the order written; empty ([B, W, 0]) from
            `generate_search`.
        keys: float32 [B, W], Gumbel keys, falling (`method="gumbel"` only): the answers with the largest of all keys,
            each being its log-probability (under a filter: renormalized at each code among what the filter leaves)
            plus standard Gumbel noise of its own.
        pruned: float32 [B], only with a reflection: of the paths that would have been kept without it, over all steps
            after the first, the share that it dropped.
    """

    tokens: torch.Tensor
    states: torch.Tensor
    scores: torch.Tensor
    log_probs: torch.Tensor
    keys: torch.Tensor | None = None
    pruned: torch.Tensor | None = None


@torch.no_grad()
def tree_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    *,
    num_beams: int,
    method: Method = "beam",
    score: Score = "constrained",
    temperature: float = 1.0,
    item_filter: ItemFilter | None = None,
    generator: choose.Source = None,
    merge: Merge = "step",
    reflection: Reflection | None = None,
    prefix_cache: PrefixCache | None = None,
    graphs: "SearchGraphs | None" = None,
    feed: nn.Linear | None = None,
) -> Beams:
    """Searches the answers that best continue each prompt.

    Args:
        model: A full-attention decoder ([`tree_support`]); else [`HfGrError`].
        prompts: B lists of token ids, of any lengths ≥ 1.
        grammar: What may follow. Every beam is a live item's SID; with `method="beam"` and `"gumbel"` no two are alike
            (in an unordered grammar: no two are written alike, unless merged).
        num_beams: W.
        method: `"beam"`; `"sample"` for W independent draws from the constrained policy; `"gumbel"` for W draws
            without replacement (stochastic beams).
        score: `"constrained"`: log-probabilities among what the catalog has (the policy that GRPO trains);
            `"model"`: among the whole vocabulary, as `generate` with a logits processor has them.
        temperature: Divides the logits.
        item_filter: Of this grammar, one row per prompt. It masks: no score depends on it, so that a filtered list is
            the whole list without what is filtered out. Draws have the scores of the whole policy too; each code is
            drawn among those that the filter leaves, in proportion to their probabilities. A row without live items
            raises [`HfGrError`].
        generator: Source of the draws: a generator on the model's device, or [`Draws`] that processes share.
        merge: What becomes of beams of an unordered grammar that hold the same codes, with `method="beam"`. `"step"`:
            they are merged after every step (their probabilities add up, the best order's cache goes on). `"end"`:
            beams are whole orders, and those of one set are merged when all is written; with beams for all orders the
            scores are exact. `"none"`: they stay apart.
        reflection: Drops paths whose codes contradict each other (CORP), with `method="beam"`: after the second code
            and each later one, what is below its threshold is left out of the choice, so that the beams go to
            consistent paths. Where nothing of a request would remain, nothing of it is left out.
        prefix_cache: Keys and values of earlier prompts.
        graphs: Replays whole searches as CUDA graphs: for beams on a trie, on a GPU, without filter, prefix cache
            and reflection; other calls go the usual way.
        feed: Of a model with hidden feedback ([`models.read`]): each thinking token is fed the projected hidden state
            of the token before it. A code and the thought after it then take two passes instead of one. Not with
            `graphs`.

    Raises:
        HfGrError: If the model's scores are not finite, or options do not go together.
    """
    check_prompts(prompts)
    supported, reason = tree_support(model, max(map(len, prompts)) + grammar.answer_length)
    if not supported:
        raise HfGrError(f"tree search is not for this model: {reason}; use generate_search.")
    check_filter(item_filter, grammar, len(prompts))
    check_score(method, score)
    if method != "beam" and reflection is not None:
        raise HfGrError(f'reflection drops paths of a beam search, not draws; leave it out of method="{method}".')
    if feed is None:  # else the first thought waits for the prompt's hidden state
        thought = [*grammar.think_ids[:1]]  # the first thinking token is the same for all beams
        prompts = [prompt + thought for prompt in prompts]
    elif graphs is not None:
        raise HfGrError("searches with hidden feedback are not captured as CUDA graphs; leave graphs out.")
    grammar = grammar.to(model.device)
    plain = method == "beam" and item_filter is None and prefix_cache is None and reflection is None
    if graphs is not None and plain and not isinstance(grammar, UnorderedGrammar):
        settings = {"num_beams": num_beams, "score": score, "temperature": temperature, "merge": merge}
        beams = graphs.search(model, prompts, grammar, **settings)
    else:
        beams = search_from(
            Trunk.of(model, prompts, prefix_cache),
            grammar,
            num_beams=num_beams,
            method=method,
            score=score,
            temperature=temperature,
            item_filter=None if item_filter is None else item_filter.to(model.device),
            generator=generator,
            merge=merge,
            reflection=None if reflection is None else reflection.to(model.device),
            feed=feed,
        )
    check_scores(beams.scores)
    return beams


def search_from(
    trunk: Trunk,
    grammar: SidGrammar,
    *,
    num_beams: int,
    method: Method = "beam",
    score: Score = "constrained",
    temperature: float = 1.0,
    item_filter: ItemFilter | None = None,
    generator: choose.Source = None,
    merge: Merge = "step",
    reflection: Reflection | None = None,
    feed: nn.Linear | None = None,
) -> Beams:
    """[`tree_search`] from prompts that were read; nothing waits for the device.

    The first thinking token is among what was read, unless there is a `feed`. Where scores were not finite, all of the
    prompt's are NaN ([`check_scores`]).
    """
    if feed is not None and not grammar.think_ids:
        raise HfGrError("hidden feedback is for answers with a thinking token before each code; leave feed out.")
    merging = merge == "step" and method == "beam"
    search = _TreeSearch(trunk, grammar, num_beams, score, temperature, merging, reflection, feed)
    for step in range(grammar.num_codes):
        search.extend(step, method, item_filter, generator)
    beams = search.result()
    return merged(beams, grammar) if merge == "end" and method == "beam" else beams


def merged(beams: Beams, grammar: SidGrammar) -> Beams:
    """Answers of an unordered grammar that hold the same codes as one, best first: their probabilities add up."""
    if not isinstance(grammar, UnorderedGrammar):
        return beams
    batch, width = beams.scores.shape
    keys = choose.set_keys(grammar, beams.states.flatten(0, 1)).view(batch, width)
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


def check_score(method: Method, score: Score) -> None:
    """Raises [`HfGrError`] where draws, which come from the constrained policy, are to be scored by another."""
    if method != "beam" and score == "model":
        raise HfGrError(f'method="{method}" draws from the constrained policy; it has no score="model".')


class _TreeSearch:
    """State of one search: B prompts and up to W beams each.

    `ancestors` are a beam's columns since the prompts, `scores` log-probabilities of beams under the policy, `drawn`
    those under what draws come from: the same, unless there is a filter. `broken` prompts had scores that are NaN.
    """

    def __init__(
        self,
        trunk: Trunk,
        grammar: SidGrammar,
        num_beams: int,
        score: Score,
        temperature: float,
        merging: bool,
        reflection: Reflection | None,
        feed: nn.Linear | None,
    ):
        self.trunk, self.grammar, self.score, self.temperature = trunk, grammar, score, temperature
        self.merging, self.reflection, self.feed = merging, reflection, feed
        self.batch, self.width, self.device = len(trunk.lengths), num_beams, trunk.device
        self.hidden = trunk.hidden  # what the next code is read from: [B, 1, d], later [B, beams, d]
        self.states = self.grammar.initial(self.batch).view(self.batch, 1, -1)
        self.tokens = self.ancestors = torch.empty(self.batch, 1, 0, dtype=torch.int64, device=self.device)
        self.log_probs = torch.empty(self.batch, 1, 0, device=self.device)
        self.scores = self.drawn = torch.zeros(self.batch, 1, device=self.device)
        self.broken = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        self.keys: torch.Tensor | None = None
        self.wanted = self.dropped = torch.zeros(self.batch, dtype=torch.int64, device=self.device)

    def extend(self, step: int, method: Method, item_filter: ItemFilter | None, generator: choose.Source) -> None:
        """Feeds the codes chosen last (if any) and chooses those of `step`."""
        self._feed_newest(step)
        beams = self.states.shape[1]
        options = self.grammar.successors(self.states.flatten(0, 1), step, item_filter)
        log_probs = step_log_probs(
            self.trunk.model, self.hidden.flatten(0, 1), self.grammar, step, options, self.score, self.temperature
        ).view(self.batch, beams, -1)
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
        self.ancestors = inherit(self.ancestors)
        states = self.grammar.advance(inherit(self.states).flatten(0, 1), step, option.flatten())
        dead = torch.isneginf(self.scores).flatten()
        self.states = self.grammar.killed(states, dead).view(self.batch, chosen.shape[1], -1)

    def _merged(self, totals: torch.Tensor, step: int) -> torch.Tensor:
        """`totals` (float [B, beams · D]) with those of equal sets at the best of them, if sets are to merge."""
        if not (self.merging and step and isinstance(self.grammar, UnorderedGrammar)):
            return totals
        sets = choose.set_keys(self.grammar, self.states.flatten(0, 1)).view(self.scores.shape)
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

    def _feed_newest(self, step: int) -> None:
        """Feeds every beam's newest code and, with thinking, the token after it."""
        new = self.tokens[..., -1:]
        if (recursive := recursion_of(self.trunk.model)) is not None:
            if step:
                self.hidden = recursive.query(step, new[..., 0], self.trunk.hidden.expand(-1, new.shape[1], -1))
            return
        if not self.grammar.think_ids:
            self._feed(new)
            return
        thought = torch.full_like(self.scores, self.grammar.think_ids[step], dtype=torch.int64)[..., None]
        if self.feed is None:
            self._feed(torch.cat([new, thought], dim=2) if step else new)  # the first one stands in the prompt
        else:
            self._feed(new)
            self._feed(thought, feedback(self.feed, self.hidden))

    def _feed(self, new: torch.Tensor, added: torch.Tensor | None = None) -> None:
        """One forward pass over n new tokens of every beam, int64 [B, beams, n]; with n = 0, none.

        `added` (float [B, beams, d], for n = 1) is added to their embeddings.
        """
        beams, count = new.shape[1:]
        if not count:
            return
        depth, before = self.ancestors.shape[2] + torch.arange(count, device=self.device), self.trunk.columns
        own = before + torch.arange(beams * count, device=self.device).view(beams, count)
        self.ancestors = torch.cat([self.ancestors, own.expand(self.batch, -1, -1)], dim=2)
        visible = torch.zeros(self.batch, beams, count, before + beams * count, dtype=torch.bool, device=self.device)
        for place in range(count):  # a token sees its ancestors and itself, a code not the thought after it
            lineage = self.ancestors[:, :, : self.ancestors.shape[2] - (count - 1 - place)]
            visible[:, :, place].scatter_(2, lineage, True)
        hidden = self.trunk.feed(new.flatten(1), depth.repeat(beams), visible.flatten(1, 2), added)
        self.hidden = hidden.view(self.batch, beams, count, -1)[:, :, -1]
