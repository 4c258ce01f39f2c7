"""A memory for a model: counted, chosen on validation, and given its share in what the model ranks by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ..dataset import Histories
from ..decoding import Recommender
from ..decoding.mixing import candidate_scores, mixture_of
from ..errors import HfGrError
from ..scorers import Memory
from ..scorers.own import own_mixture
from ..scoring import Scorer
from ..search_config import SEMANTIC_ID, Mixture, SearchConfig
from ..splits import Split
from ..tables import TimeKind
from ..validation import drawn_cases
from .choose import Trial, chosen_memory, nobody_repeats
from .mixture import MEMORY, TEMPERATURES, MixtureTrial, Scored, chosen_mixture


@dataclass(frozen=True, eq=False)
class Made:
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
    def said(self) -> str:
        """One line: what was chosen, and NDCG@10 of the model alone, the memory alone, and both."""
        config, (best, *_) = self.memory.config, self.mixtures
        by = {trial.mixture.by_name.get(MEMORY, 0.0): trial.validation for trial in reversed(self.mixtures)}
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in best.mixture.by_name.items())
        protocol = "without" if self.exclude_seen else "with"
        return (
            f"window {config.window}, {weights} by {best.mixture.rule}; NDCG@10 on validation, lists {protocol} seen "
            f"items: the model alone {by[0.0]:.4f}, the memory alone {by[1.0]:.4f}, both {best.validation:.4f}"
        )


def made(
    recommender: Recommender,
    split: Split,
    time: TimeKind,
    *,
    users: int = 1000,
    num_beams: int = 50,
    batch_size: int = 64,
    exclude_seen: bool | None = None,
    seed: int = 0,
) -> Made:
    """Makes the memory of the training part, for a model that may rank by several scorers already.

    Its own settings are those of the highest NDCG@10 alone ([`chosen_memory`]), its temperature, share and rule of
    mixing those of the highest NDCG@10 together ([`chosen_mixture`]), both on validation cases alone.

    Args:
        recommender: With the model; a memory that it has is left out.
        split: In rows of its catalog.
        time: What the times of the events are.
        users: Validation cases that choose the share.
        num_beams: Of their search.
        batch_size: Cases at a time.
        exclude_seen: Whether lists leave out what is in the history; none: where nobody repeats
            ([`nobody_repeats`]).
        seed: Of the cases drawn.
    """
    if exclude_seen is None:
        exclude_seen = nobody_repeats(split.validation)
    num_items = len(recommender.catalog)
    memory, memories = chosen_memory(
        split.train, split.validation, num_items, time, exclude_seen=exclude_seen, seed=seed
    )
    cases = drawn_cases(split.validation, users, seed)
    parts = []
    for start in range(0, len(cases), batch_size):
        some = cases.take(np.arange(start, min(start + batch_size, len(cases))))
        parts.append(_scored(recommender, memory, some.histories, some.targets, num_beams, exclude_seen))
    others = without_memory(recommender.mixture or own_mixture(recommender.model))
    mixtures = chosen_mixture(_joined(parts), others)
    memory = memory.read_as(temperature=mixtures[0].temperature)
    mixture = mixtures[0].mixture
    if MEMORY not in mixture.by_name:
        mixture = replace(mixture, weights=mixture.by_name | {MEMORY: 0.0})
    return Made(memory, mixture, exclude_seen, memories, mixtures)


def without_memory(mixture: Mixture | None) -> Mixture:
    """What the other scorers of a model count among themselves."""
    weights = {} if mixture is None else {name: w for name, w in mixture.by_name.items() if name != MEMORY and w > 0}
    if mixture is None or not weights:
        return Mixture({SEMANTIC_ID: 1.0}, "probabilities")
    return replace(mixture, weights=weights)


def _scored(
    recommender: Recommender,
    memory: Memory,
    histories: Histories,
    targets: np.ndarray,
    num_beams: int,
    exclude_seen: bool,
) -> Scored:
    """Candidates of some cases, and what every scorer says of them."""
    read = list(histories)
    config = SearchConfig(num_beams=num_beams, top_k=num_beams)
    weights = without_memory(recommender.mixture or own_mixture(recommender.model)).by_name
    call = recommender.call(config)
    scorers: Mapping[str, Scorer] = {**(call.scorers or {}), MEMORY: memory}
    call = replace(call, histories=read, scorers=scorers)
    config = replace(config, mixture=Mixture(weights | {MEMORY: 1.0}, "probabilities"))
    several = mixture_of(recommender.model, config, call)
    assert several is not None
    grammar = recommender.grammar
    items, log_probs = candidate_scores(
        recommender.model, recommender.prompts(histories), grammar, config, call, *several
    )
    log_probs = {name: values.float().cpu() for name, values in log_probs.items() if name != MEMORY}
    every = grammar.live()
    remembered = {
        temperature: memory.read_as(temperature=temperature).log_probs(read, every).gather(1, items.clamp(min=0)).cpu()
        for temperature in TEMPERATURES
    }
    items = items.cpu()
    seen = torch.zeros_like(items, dtype=torch.bool)
    if exclude_seen:
        seen = torch.from_numpy(np.stack([np.isin(row, one) for row, one in zip(items.numpy(), read, strict=True)]))
    return Scored(items, torch.from_numpy(targets), seen, log_probs, remembered, grammar.num_items)


def _joined(parts: list[Scored]) -> Scored:
    """Cases of several batches as one; rows of fewer candidates are filled up with −1."""
    if not parts:
        raise HfGrError("there are no validation cases to choose on; take another split.")
    width = max(part.items.shape[1] for part in parts)

    def joined(tensors: list[torch.Tensor], value: float) -> torch.Tensor:
        return torch.cat([F.pad(one, (0, width - one.shape[1]), value=value) for one in tensors])

    return Scored(
        joined([part.items for part in parts], -1),
        torch.cat([part.targets for part in parts]),
        joined([part.seen for part in parts], False),
        {n: joined([part.log_probs[n] for part in parts], -torch.inf) for n in parts[0].log_probs},
        {t: joined([part.memory[t] for part in parts], -torch.inf) for t in parts[0].memory},
        parts[0].num_items,
    )
