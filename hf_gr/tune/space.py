"""The space of a search: options of a recipe, and the values that each may take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import HfGrError
from ..settings import read_yaml


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them; whole ones if both are whole. `log`: alike by factor."""

    low: float
    high: float
    log: bool = False

    def drawn(self, random: np.random.Generator) -> float | int:
        """Returns a number of the range, with three digits where it is no whole number."""
        if isinstance(self.low, int) and isinstance(self.high, int) and not self.log:
            return int(random.integers(self.low, self.high + 1))
        low, high = (math.log(end) if self.log else float(end) for end in (self.low, self.high))
        value = random.uniform(low, high)
        value = math.exp(value) if self.log else value
        if isinstance(self.low, int) and isinstance(self.high, int):
            return round(value)
        return float(f"{value:.3g}")


@dataclass(frozen=True)
class Space:
    """What a trial may change.

    Attributes:
        options: By name of an option, or `option.key` for a key of an option that is a mapping (`model.width`): the
            values to choose from, all alike, or a [`Range`].
    """

    options: Mapping[str, list[Any] | Range]

    @classmethod
    def load(cls, file: Path) -> "Space":
        """Reads a YAML file of lists and ranges: `{low: 1.0e-3, high: 6.0e-3, log: true}`. Raises [`HfGrError`] on
        what is neither."""
        try:
            told = read_yaml(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise HfGrError(f"{file} cannot be read ({' '.join(str(error).split())}); give a YAML file.") from None
        if not isinstance(told, dict) or not told:
            raise HfGrError(f"{file} holds no options; write one `option: [values]` a line.")
        return cls({name: _values(file, name, values) for name, values in told.items()})

    def drawn(self, seed: int, trial: int) -> dict[str, Any]:
        """Returns the settings of a trial: a value of every option, the same whenever it is asked for."""
        random = np.random.default_rng([seed, trial])
        return {
            name: values.drawn(random) if isinstance(values, Range) else values[int(random.integers(len(values)))]
            for name, values in self.options.items()
        }


def changed(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe with the settings of a trial in it."""
    result = dict(recipe)
    for name, value in settings.items():
        option, _, key = name.partition(".")
        if not key:
            result[option] = value
            continue
        inner = result.get(option)
        if not isinstance(inner, dict):
            raise HfGrError(f"the space changes {name}, but {option} of the recipe is {inner!r} and no mapping.")
        result[option] = inner | {key: value}
    return result


def _values(file: Path, name: str, told: Any) -> list[Any] | Range:
    if isinstance(told, list) and told:
        return told
    if isinstance(told, dict) and {"low", "high"} <= told.keys() <= {"low", "high", "log"}:
        found = Range(**told)
        if found.low < found.high and (found.low > 0 or not found.log):
            return found
    raise HfGrError(
        f"{file}: {name} is {told!r}; give a list of values, or a range {{low: 1, high: 8}} with low below high (and "
        "above 0 if log: true)."
    )
