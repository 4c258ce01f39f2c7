"""Which rewards there are, and how a setting names some of them with weights."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import HfGrError
from ..settings import mapping
from .interest import interest
from .knowledge import Reward
from .reasoning import category_hit, global_path, step_consistency, step_hit
from .rules import collaborative, exact, ndcg, novelty, prefix, ranking, repeat, semantic


REWARDS: dict[str, Reward] = {
    "exact": exact,
    "ranking": ranking,
    "prefix": prefix,
    "ndcg": ndcg,
    "semantic": semantic,
    "collaborative": collaborative,
    "novelty": novelty,
    "repeat": repeat,
    "interest": interest,
    "step_hit": step_hit,
    "global_path": global_path,
    "category_hit": category_hit,
    "step_consistency": step_consistency,
}


@dataclass(frozen=True)
class Weighted:
    """A reward's weight in a mix, and its own parameters."""

    weight: float = 1.0
    parameters: dict[str, float] = field(default_factory=dict)


def parse_mix(given: Any) -> dict[str, Weighted]:
    """Reads which rewards count, and how much.

    Args:
        given: As it stands in a YAML file or on a command line, in one of the forms
            - `[exact, ranking]` or `"exact,ranking"`: each with weight 1;
            - `{exact: 1, prefix: 0.3}`: each with its weight;
            - `{interest: {weight: 1, prefix_weight: 0.5}}`: with a weight (1 if left out) and its own parameters;
            - a string that holds such a mapping.

    Returns:
        The rewards in the order given.

    Raises:
        HfGrError: On rewards or parameters that there are not, weights that are no finite number, a reward named
            twice, and an empty mix.
    """
    if isinstance(given, list | tuple) and len(given) == 1:  # a command line's list of one word
        given = given[0]
    if isinstance(given, str):
        given = mapping("rewards", given) if ":" in given else [name.strip() for name in given.split(",")]
    if isinstance(given, list | tuple):
        given = _without_weights(list(given))
    if not isinstance(given, Mapping):
        raise HfGrError(f"rewards is {given!r}; give names, or names with weights such as {{exact: 1, prefix: 0.3}}.")
    if not given:
        raise HfGrError(f"rewards is empty; name at least one of: {', '.join(REWARDS)}.")
    return {name: _weighted(name, entry) for name, entry in given.items()}


def _without_weights(names: list[Any]) -> dict[str, int]:
    for name in names:
        if not isinstance(name, str):
            raise HfGrError(f"rewards names {name!r} in a list; give weights as {{exact: 1, prefix: 0.3}}.")
        if names.count(name) > 1:
            raise HfGrError(f"rewards names {name!r} twice; name it once, with a weight: {{{name}: 2}}.")
    return dict.fromkeys(names, 1)


def reward_named(name: str) -> Reward:
    """The reward of this name; raises [`HfGrError`] that lists them if there is none."""
    if name not in REWARDS:
        raise HfGrError(f"no reward is called {name!r}; there are: {', '.join(REWARDS)}.")
    return REWARDS[name]


def _weighted(name: str, entry: Any) -> Weighted:
    known = list(inspect.signature(reward_named(name)).parameters)[2:]  # after the rollouts and the items
    settings = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
    weight = _number(f"the weight of reward {name!r}", settings.pop("weight", 1))
    for parameter in settings:
        if parameter not in known:
            there = f"it has: {', '.join(known)}" if known else "it has none but its weight"
            raise HfGrError(f"reward {name!r} has no parameter {parameter!r}; {there}.")
    return Weighted(weight, {key: _number(f"{key} of reward {name!r}", value) for key, value in settings.items()})


def _number(what: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-3 as a word
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise HfGrError(f"{what} is {value!r}; give a finite number.")
    return number
