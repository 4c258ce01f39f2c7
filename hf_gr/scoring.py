"""What ranks items beside each other: what a scorer is, and the rules by which several are mixed.

A ranking is a mixture of scorers. Each brings candidates, and each scores the candidates of all, so that the rank of
an item does not depend on who found it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from .errors import HfGrError
from .search_config import MixingRule


@dataclass(frozen=True, eq=False)
class Requests:
    """B requests, as scorers read them.

    Attributes:
        prompts: Token ids of each prompt.
        histories: Catalog rows of each history, oldest first, int64 [n] each; `None` where they are not known.
        hidden: float [B, d], what the model read each prompt as; `None` where it was not read.
        live: bool [B, N] or [1, N], rows of the catalog that may be answers.
        every: bool [1, N], those that may be answers without a request's filter.
    """

    prompts: Sequence[Sequence[int]]
    histories: Sequence[np.ndarray] | None
    hidden: torch.Tensor | None
    live: torch.Tensor
    every: torch.Tensor


class Scores(Protocol):
    """What a scorer has to say on B requests."""

    def candidates(self, k: int) -> torch.Tensor:
        """The best k items that may be answers, int64 [B, k], distinct in a row; −1 where there are fewer."""

    def log_probs(self, items: torch.Tensor) -> torch.Tensor:
        """Log-probability of given items among all of the catalog, float32 [B, n] of int64 [B, n]; no filter changes
        one. −1 in `items` is no item: any number."""


class Scorer(Protocol):
    """Something that ranks items.

    It counts items by their rows in the catalog. A removed item is never a candidate (`Requests.live`), and its
    log-probability is −inf. A scorer that does not know an item that was added later gives it −inf as well.
    """

    def read(self, requests: Requests) -> Scores:
        """Reads B requests; raises [`HfGrError`] where they lack what it reads."""


class DenseScores:
    """Scores of a scorer that scores every item: a softmax over all items that may be answers.

    Args:
        logits: float [B, N] on the device of `requests.live`.
        requests: Of these logits.
    """

    def __init__(self, logits: torch.Tensor, requests: Requests):
        self.every = logits.float().masked_fill(~requests.every, -torch.inf).log_softmax(1)
        self.live = requests.live

    def candidates(self, k: int) -> torch.Tensor:
        among = self.every.masked_fill(~self.live, -torch.inf)
        best = among.topk(min(k, among.shape[1]), dim=1)
        return best.indices.masked_fill(best.values.isneginf(), -1)

    def log_probs(self, items: torch.Tensor) -> torch.Tensor:
        return self.every.gather(1, items.clamp(min=0))


def mixed(
    parts: Sequence[tuple[float, torch.Tensor]], rule: MixingRule, smoothing: float, num_items: int
) -> torch.Tensor:
    """Scores of items by several scorers, float32 [B, n].

    - `"probabilities"`: log Σ w·p.
    - `"log_probs"`: Σ w·log((1 − ε)·p + ε/N), so that one scorer's 0 is no veto.
    - `"shares"`: Σ w·log p.

    Args:
        parts: Weight and log-probabilities float32 [B, n] of every scorer.
        rule: One of the three.
        smoothing: ε, of `"log_probs"`.
        num_items: N, items that may be answers.
    """
    weights, log_probs = zip(*[(weight, values) for weight, values in parts if weight > 0], strict=True)
    stacked = torch.stack(log_probs)
    weight = torch.tensor(weights, device=stacked.device)[:, None, None]
    if rule == "probabilities":
        return (stacked + weight.log()).logsumexp(0)
    if rule == "log_probs":
        stacked = ((1 - smoothing) * stacked.exp() + smoothing / num_items).log()
    elif rule != "shares":
        raise HfGrError(f"there is no rule {rule!r} of mixing.")
    return (weight * stacked).sum(0)
