"""A memory for a model: counted, chosen on validation, and given its share in what the model ranks by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ..dataset import Cases
from ..decoding import Recommender
from ..decoding.mixing import candidate_scores, mixture_of
from ..scorers import Memory
from ..scorers.own import own_mixture
from ..scoring import Scorer
from ..search_config import MEMORY, SEMANTIC_ID, Mixture, SearchConfig
from ..splits import Split
from ..tables import TimeKind
from ..validation import drawn_cases
from .choose import Trial, choose_memory
from .mixture import TEMPERATURES, MixtureTrial, Scored, mixture_trials


@dataclass(frozen=True, eq=False)
class FittedMemory:
    """A memory, and how it came about.

    Attributes:
        memory: Of the training events.
        mixture: What the memory and the model's other scorers count.
        exclude_seen: Whether lists without items of the history chose.
        memories: What was tried of the memory alone.
        mixtures: What was tried of all together, the best first.
    """

    memory: Memory
    mixture: Mixture
    exclude_seen: bool
    memories: list[Trial]
    mixtures: list[MixtureTrial]

    @property
    def summary(self) -> str:
        """One line: what was chosen, and NDCG@10 of the model alone, the memory alone, and both."""
        config, (best, *_) = self.memory.config, self.mixtures
        by = {trial.mixture.by_name.get(MEMORY, 0.0): trial.validation for trial in reversed(self.mixtures)}
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in best.mixture.by_name.items())
        protocol = "without" if self.exclude_seen else "with"
        return (
            f"window {config.window}, {weights} by {best.mixture.rule}; NDCG@10 on validation, lists {protocol} seen "
            f"items: the model alone {by[0.0]:.4f}, the memory alone {by[1.0]:.4f}, both {best.validation:.4f}"
        )


def fit_memory(
    recommender: Recommender,
    split: Split,
    time: TimeKind,
    *,
    users: int = 1000,
    num_beams: int = 50,
    batch_size: int = 64,
    exclude_seen: bool = False,
    seed: int = 0,
) -> FittedMemory:
    """Makes the memory of the training part, for a model that may rank by several scorers already.

    Its own settings are those of the highest NDCG@10 alone ([`choose_memory`]), its temperature, share and rule of
    mixing those of the highest NDCG@10 together ([`mixture_trials`]), both on validation cases alone.

    Args:
        recommender: With the model; a memory that it has is left out.
        split: In rows of its catalog.
        time: What the times of the events are.
        users: Validation cases that choose the share.
        num_beams: Of their search.
        batch_size: Cases at a time.
        exclude_seen: Whether the lists that choose leave out what is in the history.
        seed: Of the cases drawn.
    """
    num_items = len(recommender.catalog)
    memory, memories = choose_memory(
        split.train, split.validation, num_items, time, exclude_seen=exclude_seen, seed=seed
    )
    cases = drawn_cases(split.validation, users, seed)
    others = _without_memory(recommender.mixture or own_mixture(recommender.model))
    readings = {temperature: memory.read_as(temperature=temperature) for temperature in TEMPERATURES}
    batches = (
        cases.take(np.arange(start, min(start + batch_size, len(cases)))) for start in range(0, len(cases), batch_size)
    )
    scored = _joined(
        [_scored(recommender, others, memory, readings, batch, num_beams, exclude_seen) for batch in batches]
    )
    mixtures = mixture_trials(scored, others)
    memory = memory.read_as(temperature=mixtures[0].temperature)
    mixture = mixtures[0].mixture
    if MEMORY not in mixture.by_name:
        mixture = replace(mixture, weights=mixture.by_name | {MEMORY: 0.0})
    return FittedMemory(memory, mixture, exclude_seen, memories, mixtures)


def _without_memory(mixture: Mixture | None) -> Mixture:
    """What the other scorers of a model count among themselves."""
    weights = {} if mixture is None else {name: w for name, w in mixture.by_name.items() if name != MEMORY and w > 0}
    if mixture is None or not weights:
        return Mixture({SEMANTIC_ID: 1.0}, "shares")
    return replace(mixture, weights=weights)


def _scored(
    recommender: Recommender,
    others: Mixture,
    memory: Memory,
    readings: Mapping[float, Memory],
    cases: Cases,
    num_beams: int,
    exclude_seen: bool,
) -> Scored:
    """Candidates of some cases, and what every scorer says of them: the memory by each of its readings."""
    histories = list(cases)
    mixture = Mixture(others.by_name | {MEMORY: 1.0}, "shares")  # of semantic IDs the whole probability
    config = SearchConfig(num_beams=num_beams, top_k=num_beams, mixture=mixture)
    call = recommender.call(config)
    scorers: Mapping[str, Scorer] = {**(call.scorers or {}), MEMORY: memory}
    call = replace(call, histories=histories, scorers=scorers)
    several = mixture_of(recommender.model, config, call)
    assert several is not None
    model, grammar = recommender.model, recommender.grammar
    prompts = recommender.prompts(cases.histories)
    items, log_probs = candidate_scores(model, prompts, grammar, config, call, *several)
    affinities, every = memory.affinities(histories), grammar.live()
    of_memory = {
        temperature: reading.log_probs_of(affinities, every).gather(1, items.clamp(min=0)).cpu()
        for temperature, reading in readings.items()
    }
    items = items.cpu()
    seen = torch.zeros_like(items, dtype=torch.bool)
    if exclude_seen:
        rows = [np.isin(row, history) for row, history in zip(items.numpy(), histories, strict=True)]
        seen = torch.from_numpy(np.stack(rows))
    sharing = grammar.sharing[items.clamp(min=0).to(grammar.device)].clamp(min=1).log().cpu()
    of_others = {name: values.float().cpu() for name, values in log_probs.items() if name != MEMORY}
    return Scored(items, torch.from_numpy(cases.targets), seen, sharing, of_others, of_memory, grammar.num_items)


def _joined(parts: list[Scored]) -> Scored:
    """Cases of several batches as one; rows of fewer candidates are filled up with −1."""
    width = max(part.items.shape[1] for part in parts)

    def joined(tensors: list[torch.Tensor], value: float) -> torch.Tensor:
        return torch.cat([F.pad(one, (0, width - one.shape[1]), value=value) for one in tensors])

    return Scored(
        joined([part.items for part in parts], -1),
        torch.cat([part.targets for part in parts]),
        joined([part.seen for part in parts], False),
        joined([part.sharing for part in parts], 0),
        {n: joined([part.log_probs[n] for part in parts], -torch.inf) for n in parts[0].log_probs},
        {t: joined([part.memory[t] for part in parts], -torch.inf) for t in parts[0].memory},
        parts[0].num_items,
    )
