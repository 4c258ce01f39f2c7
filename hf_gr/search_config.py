"""How a search goes: one frozen config, the same from the command line down to the tree."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal, Self, get_args

from .errors import HfGrError
from .limits import Limits, shown, whole
from .settings import mapping


Method = Literal["beam", "sample", "gumbel"]
Score = Literal["constrained", "model"]
Merge = Literal["step", "end", "none"]
MixingRule = Literal["probabilities", "log_probs", "shares"]
SEMANTIC_ID = "semantic_id"  # the scorer that every model has: its search
MEMORY = "memory"  # the scorer that a training leaves beside a model
METHODS: tuple[str, ...] = (*get_args(Method), "exhaustive")


@dataclass(frozen=True)
class Mixture:
    """What each scorer counts in a ranking by several.

    Attributes:
        weights: Weight of each scorer by its name, of at least 0; `"semantic_id"` is the model's own search. One that
            is not named counts nothing. (Kept as pairs in order of the names.)
        rule: `"probabilities"`: log Σ w·p. `"log_probs"`: Σ w·log p, each p smoothed. `"shares"`: Σ w·log p without
            smoothing. On a shared semantic ID the items share its probability, in the first two rules; in the third
            each has all of it. None: that of the model's own mixture, and `"log_probs"` where it has none.
        smoothing: ε from 0 to 1, of `"log_probs"`: p becomes (1 − ε)·p + ε/N among N items.

    Raises [`HfGrError`] on other values.
    """

    weights: Mapping[str, float] | tuple[tuple[str, float], ...]
    rule: MixingRule | None = None
    smoothing: float = 0.001

    @classmethod
    def of(cls, weights: Mapping[str, float] | str | None, rule: MixingRule | None) -> Self | None:
        """Weights and rule as options have them, weights perhaps as words of a command line; `None` without either.

        Raises [`HfGrError`] on a rule without weights, and on weights that are no mapping or out of range.
        """
        if weights is None:
            if rule is not None:
                raise HfGrError(f"mixing is {rule!r}, but there are no weights to mix by; give weights.")
            return None
        return cls(mapping("weights", weights) if isinstance(weights, str) else weights, rule)

    def __post_init__(self) -> None:
        try:
            weights = dict(self.weights)
        except (TypeError, ValueError):
            raise HfGrError(f"weights are {shown(self.weights)}; give a weight for each scorer by its name.") from None
        for name, weight in weights.items():
            if not isinstance(weight, Real) or isinstance(weight, bool) or not 0 <= weight < math.inf:
                raise HfGrError(f"the weight of {name} is {shown(weight)}; give a number of at least 0.")
        if not any(weights.values()):
            raise HfGrError("no scorer has a weight above 0; give at least one.")
        object.__setattr__(self, "weights", tuple(sorted((name, float(w)) for name, w in weights.items())))
        if self.rule is not None and self.rule not in get_args(MixingRule):
            raise HfGrError(f"rule is {shown(self.rule)}; choose from {', '.join(get_args(MixingRule))}.")
        if isinstance(self.smoothing, bool) or not isinstance(self.smoothing, Real) or not 0 <= self.smoothing <= 1:
            raise HfGrError(f"smoothing is {shown(self.smoothing)}; give a number from 0 to 1.")

    @property
    def by_name(self) -> dict[str, float]:
        """Weight of each scorer."""
        return dict(self.weights)


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search, as `GenerationConfig` holds those of `generate`.

    Attributes:
        num_beams: Width of the search, W; raised to `top_k` where items are wanted.
        top_k: Items wanted, K. A search for answers as written ([`search`], [`tree_search`]) gives W of them instead.
        method: `"beam"`; `"sample"` for W independent draws from the constrained policy; `"gumbel"` for W draws
            without replacement (stochastic beams); `"exhaustive"`: every item is scored (for catalogs of up to some
            thousand).
        score: `"constrained"`: log-probabilities among what the catalog has (the policy that GRPO trains);
            `"model"`: among the whole vocabulary, as `generate` with a logits processor has them.
        temperature: Divides the logits.
        merge: What becomes of beams of an unordered grammar that hold the same codes, with `method="beam"`. `"step"`:
            they are merged after every step (their probabilities add up, the best order's cache goes on). `"end"`:
            beams are whole orders, and those of one set are merged when all is written; with beams for all orders the
            scores are exact. `"none"`: they stay apart.
        reflection: Paths whose codes agree less than this in their categories are dropped, from 0 (off) to 1 (CORP,
            see [`Reflection`]), with `method="beam"`.
        graphs: Whether whole searches are replayed as CUDA graphs: for beams on a trie, on a GPU. Requests with a
            filter go the usual way.
        seed: Of the draws of a call; none: PyTorch's own random numbers.
        mixture: What each scorer counts, of a model with several; none: as the model says.

    Raises [`HfGrError`] on a value that is none of these, and on options that do not go together.
    """

    num_beams: int = 50
    top_k: int = 10
    method: Method | Literal["exhaustive"] = "beam"
    score: Score = "constrained"
    temperature: float = 1.0
    merge: Merge = "step"
    reflection: float = 0.0
    graphs: bool = False
    seed: int | None = None
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        for name in ("num_beams", "top_k"):
            object.__setattr__(self, name, whole(name, vars(self)[name]))
        for name, choices in (("method", METHODS), ("score", get_args(Score)), ("merge", get_args(Merge))):
            if vars(self)[name] not in choices:
                raise HfGrError(f"{name} is {shown(vars(self)[name])}; choose from {', '.join(choices)}.")
        number = isinstance(self.temperature, Real) and not isinstance(self.temperature, bool)
        if not number or not 0 < self.temperature < math.inf:
            raise HfGrError(f"temperature is {shown(self.temperature)}; give a number above 0.")
        check_threshold(self.reflection)
        if not isinstance(self.graphs, bool):
            raise HfGrError(f"graphs is {shown(self.graphs)}; give true or false.")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise HfGrError(f"seed is {shown(self.seed)}; give a whole number of at least 0.")
        if not isinstance(self.mixture, Mixture | None):
            raise HfGrError(f"mixture is {shown(self.mixture)}; give a Mixture.")
        self._check_together()

    def _check_together(self) -> None:
        draws, method = self.method in ("sample", "gumbel"), self.method
        if draws and self.score == "model":
            raise HfGrError(f'method="{method}" draws from the constrained policy; it has no score="model".')
        if self.reflection and method != "beam":
            instead = f'leave it out of method="{method}"' if draws else 'use method="beam" instead of "exhaustive"'
            raise HfGrError(f"reflection drops paths of a beam search{', not draws' * draws}; {instead}.")
        if self.merge != "step" and method != "beam":
            raise HfGrError(f'merge="{self.merge}" is about beams; leave it out of method="{method}".')
        if self.graphs and (self.reflection or method != "beam"):
            other = "reflection" if self.reflection else f'method="{method}"'
            raise HfGrError(f"CUDA graphs are captured of beams alone, not with {other}; leave graphs out.")
        if self.seed is not None and not draws:
            raise HfGrError(f'seed is of draws, and method="{method}" draws nothing; leave it out.')

    @classmethod
    def of(cls, config: "SearchConfig | None" = None, **options: Any) -> Self:
        """`config` (the defaults, if left out) with some options set otherwise.

        Raises [`HfGrError`] on an unknown option, and as the config itself does.
        """
        if not isinstance(config, SearchConfig | None):
            raise HfGrError(f"the settings of the search are {shown(config)}; give a SearchConfig.")
        names = [field.name for field in fields(cls)]
        if unknown := options.keys() - set(names):
            raise HfGrError(f"a search has no option {min(unknown)!r}; it has: {', '.join(names)}.")
        return replace(config or cls(), **options)  # type: ignore[return-value]

    def check_limits(self, limits: Limits) -> None:
        """Raises [`HfGrError`] on what is above the limits of a request."""
        for name in ("top_k", "num_beams"):
            limits.number(name, vars(self)[name])


def check_threshold(threshold: float) -> None:
    """Raises [`HfGrError`] where θ is not a number from 0 to 1."""
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not (number and 0 <= threshold <= 1):
        raise HfGrError(f"the threshold of reflection is {threshold!r}; give a number between 0 (off) and 1.")
