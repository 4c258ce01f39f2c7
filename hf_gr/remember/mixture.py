"""What a memory counts beside a model's other scorers: chosen on validation cases whose candidates all have scored."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..evaluation.metrics import MISS, ndcg
from ..scoring import mixed
from ..search_config import MEMORY, SEMANTIC_ID, MixingRule, Mixture


TEMPERATURES = (0.5, 0.7, 1.0, 1.5, 2.0)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RULES: tuple[MixingRule, ...] = ("probabilities", "log_probs", "shares")


@dataclass(frozen=True, eq=False)
class Scored:
    """Candidates of n validation cases, C of each, and what every scorer says of them.

    Attributes:
        items: int64 [n, C], catalog rows; −1 is none.
        targets: int64 [n].
        seen: bool [n, C], candidates that lists leave out.
        sharing: float32 [n, C], logarithm of how many items stand on the candidate's semantic ID.
        log_probs: float32 [n, C] of every scorer but the memory, by name; that of a semantic ID is the whole one.
        memory: float32 [n, C] of the memory, by temperature.
        num_items: Items that may be answers.
    """

    items: torch.Tensor
    targets: torch.Tensor
    seen: torch.Tensor
    sharing: torch.Tensor
    log_probs: Mapping[str, torch.Tensor]
    memory: Mapping[float, torch.Tensor]
    num_items: int

    def ndcg(self, mixture: Mixture, temperature: float) -> float:
        """NDCG@10 of the lists that a mixture makes."""
        log_probs = {**self.log_probs, MEMORY: self.memory[temperature]}
        if mixture.rule != "shares" and SEMANTIC_ID in log_probs:
            log_probs[SEMANTIC_ID] = log_probs[SEMANTIC_ID] - self.sharing
        parts = [(weight, log_probs[name]) for name, weight in mixture.by_name.items()]
        assert mixture.rule is not None
        scores = mixed(parts, mixture.rule, mixture.smoothing, self.num_items)
        scores = scores.masked_fill((self.items < 0) | self.seen, -torch.inf)
        is_target = self.items == self.targets[:, None]
        target = scores.masked_fill(~is_target, -torch.inf).amax(1, keepdim=True)
        before = torch.arange(scores.shape[1]) < is_target.int().argmax(1, keepdim=True)
        ahead = (scores > target) | ((scores == target) & before)  # equals stand as the search had them
        ranks = torch.where(target[:, 0].isneginf(), MISS, ahead.sum(1))
        return float(ndcg(ranks.numpy(), 10).mean())


@dataclass(frozen=True)
class MixtureTrial:
    """A mixture and temperature of the memory, and their NDCG@10 on the validation cases."""

    mixture: Mixture
    temperature: float
    validation: float


def mixture_trials(scored: Scored, others: Mixture) -> list[MixtureTrial]:
    """Every mixture that was tried, the best one first; of equals the one tried first.

    The memory's share goes from .05 to .95, its temperature from ½ to 2; the other scorers keep their weights to each
    other. Among the trials are they without the memory, and the memory without them.

    Args:
        scored: Candidates of the validation cases.
        others: What the other scorers count among themselves, and their rule.
    """
    total = sum(others.by_name.values())
    rest = {name: weight / total for name, weight in others.by_name.items()}
    alone = [(Mixture(rest, others.rule), 1.0), (Mixture({MEMORY: 1.0}, "probabilities"), 1.0)]
    together = [
        (
            Mixture({name: round((1 - share) * weight, 6) for name, weight in rest.items()} | {MEMORY: share}, rule),
            temperature,
        )
        for rule in RULES
        for temperature in TEMPERATURES
        for share in SHARES
    ]
    trials = [MixtureTrial(*one, scored.ndcg(*one)) for one in alone + together]
    return sorted(trials, key=lambda trial: -trial.validation)
