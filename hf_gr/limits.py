"""How large a request may be: one place for the pipeline, batches, the recommender and sessions."""

import dataclasses
import sys
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from .errors import HfGrError


@dataclass(frozen=True)
class Limits:
    """Upper bounds of what a request may ask. They keep one request from taking a service's memory (our choice).

    Attributes:
        history: Events of a history. The most recent `max_history` of the vocabulary are read.
        ids: Item ids of `exclude`, and of `allow`.
        query: Characters of a query.
        top_k: Items wanted.
        num_beams: Width of the search.
        batch_size: Requests that the model reads at once.
    """

    history: int = 100_000
    ids: int = 100_000
    query: int = 2_000
    top_k: int = 1_000
    num_beams: int = 1_000
    batch_size: int = 1_024

    def number(self, name: str, value: Any) -> int:
        """A setting (`top_k`, `num_beams`, `batch_size`) as int; [`HfGrError`] unless it is 1 to its limit."""
        number = whole(name, value)
        self._check(f"{name} is {number}", name, number)
        return number

    def length(self, what: str, name: str, length: int) -> None:
        """Raises [`HfGrError`] if something of a request, such as its `exclude`, is longer than the limit `name`."""
        self._check(f"{what} has a length of {length}", name, length)

    def _check(self, told: str, name: str, value: int) -> None:
        limit = dataclasses.asdict(self)[name]
        if value > limit:
            raise HfGrError(
                f"{told}, above the limit of {limit}; ask for less, or raise it by limits=Limits({name}=…)."
            )


# For evaluation, where nobody else asks.
NO_LIMITS = Limits(*[sys.maxsize] * len(dataclasses.fields(Limits)))


def whole(name: str, value: Any) -> int:
    """A whole number of at least 1 as int, NumPy's too; [`HfGrError`] otherwise (`True` is none)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise HfGrError(f"{name} is {shown(value)}; give a whole number of at least 1.")
    return int(value)


def shown(value: Any) -> str:
    """A value as a message tells it: on one line, cut, and with its type."""
    text = " ".join(repr(value).split())
    return f"{text[:40]}{'…' if len(text) > 40 else ''} ({type(value).__name__})"
