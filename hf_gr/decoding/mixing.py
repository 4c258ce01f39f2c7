"""Items ranked by several scorers: the semantic ID under the grammar, and whatever else a model or a caller brings.

Each scorer brings candidates of its own, and each scores those of the others, so that a candidate's rank does not
depend on who found it. A candidate that the beams did not score is scored as a branch of the cached prompt. [ours]
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..errors import HfGrError
from ..grammar import SidGrammar, check_scores
from ..models import ItemVectors, histories_in, reader_of
from ..scorers.own import own_mixture, own_scorers
from ..scoring import Requests, Scorer, mixed
from ..search_config import SEMANTIC_ID, Mixture, SearchConfig
from .call import Call
from .generate import generate_search
from .given import item_log_probs, row_log_probs
from .ranking import Ranking, ranked
from .support import tree_support
from .tree import search_from
from .trunk import Trunk


CHUNK_ITEMS = 4096  # whose semantic IDs are scored at once


def mixture_of(model: PreTrainedModel, config: SearchConfig, call: Call) -> tuple[Mixture, dict[str, Scorer]] | None:
    """What each scorer of a search counts, and the scorers beside the semantic ID; `None` where that alone ranks.

    Raises [`HfGrError`] where a scorer with a weight is not there, or settings have no meaning where several rank.
    """
    usual = call.mixture or own_mixture(model)
    mixture = config.mixture or usual
    if mixture is None:
        return None
    if mixture.rule is None:
        mixture = replace(mixture, rule=(usual and usual.rule) or "log_probs")
    scorers = own_scorers(model, call.item_vectors or ItemVectors()) | dict(call.scorers or {})
    weights = {name: weight for name, weight in mixture.by_name.items() if weight > 0}
    if missing := weights.keys() - {SEMANTIC_ID, *scorers}:
        known = ", ".join([SEMANTIC_ID, *sorted(scorers)])
        raise HfGrError(f"the mixture weighs {min(missing)!r}, but the model's scorers are: {known}.")
    if weights.keys() == {SEMANTIC_ID}:
        return None
    names = ", ".join(sorted(weights))
    refused = {
        f'method="{config.method}"': config.method not in ("beam", "exhaustive"),
        f'score="{config.score}"': config.score != "constrained",
        f"temperature={config.temperature}": config.temperature != 1,
        "reflection": call.reflection is not None,
        "graphs": config.graphs,
        "feed": call.feed is not None and not reader_of(model).branches,  # which has no thought to feed
    }
    for option, is_set in refused.items():
        if is_set:
            raise HfGrError(
                f"{option} is for models that rank by semantic IDs alone; this one mixes {names}: leave it out, or "
                "give weights {semantic_id: 1}."
            )
    return mixture, {name: scorer for name, scorer in scorers.items() if name in weights}


@torch.no_grad()
def mixed_ranking(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    grammar: SidGrammar,
    config: SearchConfig,
    call: Call,
    mixture: Mixture,
    scorers: Mapping[str, Scorer],
    trunk: Trunk | None = None,
) -> Ranking:
    """The items that best continue each prompt, by several scorers.

    Candidates are the items of the best `num_beams` semantic IDs and as many of every other scorer: at least
    min(top_k, live items). Their scores are [`mixed`] by the mixture's rule. A filter changes no score. Items that
    share a semantic ID share its probability, where the rule is not `"shares"`. An item of an unordered grammar scores
    by the one order of its codebooks.

    Args:
        model: Any causal LM with the grammar's tokens.
        prompts: Token ids of each.
        grammar: What may follow, on its device.
        config: Of the search, whose `num_beams` (raised to `top_k`) and `top_k` count. With `method="exhaustive"`
            every item is a candidate, which is exact, and for catalogs of some thousand items.
        call: What belongs to this call; its filter has live items for every prompt.
        mixture: What each scorer counts.
        scorers: Those beside the semantic ID.
        trunk: The prompts, where they were read already, with the first thinking token unless there is a `feed`.

    Raises [`HfGrError`] if scores are not finite.
    """
    mixing = _Mixing(model, trunk, prompts, grammar, config, call, mixture)
    return mixing.ranking(*mixing.scored(scorers))


@torch.no_grad()
def candidate_scores(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    grammar: SidGrammar,
    config: SearchConfig,
    call: Call,
    mixture: Mixture,
    scorers: Mapping[str, Scorer],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The candidates of [`mixed_ranking`], unmixed: int64 [B, C], −1 is none; and what each scorer that the mixture
    weighs says of them, float32 [B, C] by name. Weights do not matter, but for those that are 0."""
    return _Mixing(model, None, prompts, grammar, config, call, mixture).scored(scorers)


class _Mixing:
    """One ranking by several scorers; `trunk` is `None` for models that take rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        trunk: Trunk | None,
        prompts: Sequence[Sequence[int]],
        grammar: SidGrammar,
        config: SearchConfig,
        call: Call,
        mixture: Mixture,
    ):
        if trunk is None and tree_support(model, max(map(len, prompts)) + grammar.answer_length)[0]:
            thought = [*grammar.think_ids[:1]] if call.feed is None else []
            trunk = Trunk.of(model, [[*prompt, *thought] for prompt in prompts], call.prefix_cache)
        self.model, self.trunk, self.grammar, self.call, self.mixture = model, trunk, grammar, call, mixture
        self.prompts = [list(prompt) for prompt in prompts]
        self.config = replace(config, num_beams=max(config.num_beams, config.top_k), mixture=None)
        self.weights = mixture.by_name
        self.live = grammar.live(call.item_filter)

    def scored(self, scorers: Mapping[str, Scorer]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Candidates int64 [B, C], and log-probabilities float32 [B, C] of them by every scorer, by name."""
        items_read = histories_in(self.model, self.prompts)
        histories = self.call.histories if items_read is None else items_read
        hidden = None if self.trunk is None else self.trunk.hidden[:, 0]
        requests = Requests(self.prompts, histories, hidden, self.live, self.grammar.live())
        scores = {name: scorer.read(requests) for name, scorer in scorers.items()}
        beams = None
        if self.config.method == "exhaustive":
            rows = torch.arange(self.grammar.catalog_size, device=self.live.device)
            items = torch.where(self.live, rows, -1).expand(len(self.prompts), -1)
        else:
            lists = [score.candidates(self.config.num_beams) for score in scores.values()]
            if self.weights.get(SEMANTIC_ID, 0) > 0:
                beams = self._searched()
                lists = [beams.items, *lists]
            items = _joined(lists)
        items = F.pad(items, (0, max(0, self.config.top_k - items.shape[1])), value=-1)
        log_probs = {name: score.log_probs(items) for name, score in scores.items()}
        if self.weights.get(SEMANTIC_ID, 0) > 0:
            log_probs = {SEMANTIC_ID: self._semantic(items, beams)} | log_probs
        return items, log_probs

    def ranking(self, items: torch.Tensor, log_probs: Mapping[str, torch.Tensor]) -> Ranking:
        """The best `top_k` of the candidates."""
        parts = [(self.weights[name], values) for name, values in log_probs.items()]
        assert self.mixture.rule is not None
        total = mixed(parts, self.mixture.rule, self.mixture.smoothing, self.grammar.num_items)
        total = total.masked_fill(items < 0, -torch.inf)
        check_scores(total)
        best = total.topk(self.config.top_k, dim=1)
        chosen = items.gather(1, best.indices).masked_fill(best.values.isneginf(), -1)
        sids = self.grammar.sids[chosen.clamp(min=0)]
        return Ranking(chosen, best.values, sids.masked_fill(chosen[..., None] < 0, -1))

    def _searched(self) -> Ranking:
        """The items of the beams."""
        if self.trunk is None:
            beams = generate_search(self.model, self.prompts, self.grammar, self.config, self.call)
        else:
            beams = search_from(self.trunk, self.grammar, self.config, self.call)
        check_scores(beams.scores)
        return ranked(beams, self.grammar, self.call.item_filter, self.config.num_beams)

    def _semantic(self, items: torch.Tensor, beams: Ranking | None) -> torch.Tensor:
        """Log-probability float32 [B, n] of items' semantic IDs; beams have scored those that stand first already."""
        scored = 0 if beams is None or self.grammar.any_order else beams.items.shape[1]
        parts = [] if beams is None else [beams.scores[:, :scored]]
        parts += [self._given(part) for part in items[:, scored:].split(CHUNK_ITEMS, dim=1) if part.shape[1]]
        log_probs = torch.cat(parts, dim=1)
        if self.mixture.rule == "shares":
            return log_probs
        return log_probs - self.grammar.sharing[items.clamp(min=0)].clamp(min=1).log()

    def _given(self, items: torch.Tensor) -> torch.Tensor:
        # candidates to the left, so that nothing is fed for columns without any
        order = (items < 0).sort(dim=1, stable=True).indices
        count = int((items >= 0).sum(1).max())
        some = items.gather(1, order[:, :count])
        if self.trunk is None:
            log_probs = row_log_probs(self.model, self.prompts, some, self.grammar)
        else:
            log_probs = item_log_probs(self.trunk, some, self.grammar, feed=self.call.feed)
        every = torch.full(items.shape, -torch.inf, device=items.device)
        return every.scatter(1, order[:, :count], log_probs)


def _joined(lists: Sequence[torch.Tensor]) -> torch.Tensor:
    """Lists of items int64 [B, n] side by side; an item that stood in one before is −1."""
    items = lists[0]
    for added in lists[1:]:
        again = (added[:, :, None] == items[:, None]).any(2)
        items = torch.cat([items, added.masked_fill(again, -1)], dim=1)
    return items
