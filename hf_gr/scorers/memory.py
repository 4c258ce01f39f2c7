"""What followed what in training histories, remembered and not learned: a scorer of items without a training.

A model generalizes, a memory does not, and each is right where the other is not: the idea of kNN language models
(Khandelwal et al., ICLR 2020) with counts of item pairs (item-based neighbors, Sarwar et al., WWW 2001) in place of
hidden states. [ours]
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from ..artifacts import read_json, write_json
from ..errors import HfGrError, first_line
from ..histories import Histories
from ..models.item_features import NOWHERE, Sources
from ..options import check_range
from ..scoring import DenseScores, Requests
from ..tables import TimeKind
from .tails import TAILS_FILE, Tails


UNIT = 2**16  # one pair of neighboring events: weights are whole numbers, whose sums no order of adding changes
CONFIG_FILE, COUNTS_FILE = "memory.json", "memory.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class MemoryConfig:
    """What a memory counts, and how it reads the counts.

    The first two say what is counted; the others can be changed at any time ([`Memory.read_as`]).

    Attributes:
        window: Two events of a user are a pair if they stand at most so many events apart.
        decay: δ ≥ 0: a pair at distance d counts d^−δ.
        backward: β from 0 to 1, what a pair counts from the later item to the earlier one; the other way it counts 1.
        normalizer: α from 0 to 1: what follows an item counts less the more events the item has, by events^−α.
        discount: ν from 0 to 1: an item counts less the more events it has itself, by events^−ν. With α = ν = ½ and
            β = 1 affinities are cosines, those of item-item kNN.
        recency: γ ≥ 0: the event before last counts 2^−γ of the last one, the one before that 3^−γ, and so on.
        temperature: T > 0: affinities are raised to 1/T before they become probabilities.
        popularity: μ in (0, 1], what goes to all items by their number of events (plus one), so that none has 0.
        latest: Events of a history that are read.

    Raises [`HfGrError`] on values outside these bounds.
    """

    window: int = 10
    decay: float = 0.5
    backward: float = 0.25
    normalizer: float = 0.5
    discount: float = 0.0
    recency: float = 1.0
    temperature: float = 1.0
    popularity: float = 0.01
    latest: int = 50

    def __post_init__(self) -> None:
        check_range(
            self,
            {
                "window": (1, 1000),
                "decay": (0, 100),
                "backward": (0, 1),
                "normalizer": (0, 1),
                "discount": (0, 1),
                "recency": (0, 100),
                "temperature": (0.01, 100),
                "popularity": (1e-9, 1),
                "latest": (1, 100_000),
            },
        )


@dataclass(frozen=True, eq=False)
class Memory:
    """Counts of what followed what, and the scorer that reads them. Nothing in it ever changes: what learns more
    events is another one, so that a search sees one state from its begin to its end.

    An item is its row in the catalog. Items that came after the counts have no events, and no probability but that of
    popularity.

    Attributes:
        config: How counts are read.
        follows: int64 [N, N], in row a and column b the pairs in which b came after a, each d^−δ, in 1/65,536.
        events: int64 [N], events of every item.
        tails: The last events of every user; `None` where they are not known, as of a memory from the Hub.
    """

    config: MemoryConfig
    follows: sparse.csr_array
    events: np.ndarray
    tails: Tails | None = None

    @classmethod
    def of(
        cls, histories: Histories, num_items: int, config: MemoryConfig | None = None, time: TimeKind = "timestamp"
    ) -> Self:
        """Counts the events of some histories, in rows of a catalog of N items, whose times are of a kind."""
        config = config or MemoryConfig()
        empty = sparse.csr_array((num_items, num_items), dtype=np.int64)
        memory = cls(config, empty, np.zeros(num_items, np.int64))._with(histories, num_items)
        return replace(memory, tails=Tails(histories, config.window, time))

    @property
    def num_items(self) -> int:
        return len(self.events)

    def read_as(self, **settings: Any) -> Self:
        """The same counts, read with other settings. Raises [`HfGrError`] for what is counted, not read."""
        if counted := settings.keys() & {"window", "decay"}:
            raise HfGrError(f"{min(counted)} is of what is counted; count again (`Memory.of`).")
        return replace(self, config=replace(self.config, **settings))

    def remember(self, new: Histories, num_items: int) -> tuple[Self, int]:
        """This memory with new events, as if it had been made of the old and the new ones.

        Args:
            new: In rows of the catalog. Those that are no later than what is known of their user are left out
                ([`Tails.joined`]).
            num_items: N of the catalog as it is now, at least as many as before.

        Returns:
            The memory, and how many events were left out.
        """
        tails = Tails.none(self.config.window) if self.tails is None else self.tails
        histories, known, tails, left_out = tails.joined(new, num_items)
        return replace(self._with(histories, num_items, known), tails=tails), left_out

    def _with(self, histories: Histories, num_items: int, known: np.ndarray | None = None) -> Self:
        """Counts further histories; of the first `known` events of each, int64 [U], only pairs with later ones."""
        owners = histories.owners
        is_new = np.ones(len(owners), bool)
        if known is not None:
            is_new = np.arange(len(owners)) - histories.ptr[owners] >= known[owners]
        earlier, later, weights = _pairs(owners, self.config)
        new = is_new[later]
        pairs = histories.items[earlier[new]], histories.items[later[new]]
        added = sparse.coo_array((weights[new], pairs), shape=(num_items, num_items)).tocsr()
        old = self.follows.copy()
        old.resize((num_items, num_items))
        events = np.bincount(histories.items[is_new], minlength=num_items)
        events[: self.num_items] += self.events
        return replace(self, follows=sparse.csr_array(old + added), events=events)

    def with_items(
        self, codes: np.ndarray, new: np.ndarray, items: pa.Table | None = None, sources: Sources = NOWHERE
    ) -> Self:
        """This memory with n further items of the catalog, SIDs int [n, L], of which it knows nothing yet."""
        room = self.num_items + len(new)
        follows = self.follows.copy()
        follows.resize((room, room))
        return replace(self, follows=follows, events=np.append(self.events, np.zeros(len(new), np.int64)))

    def affinities(self, histories: Sequence[np.ndarray], own: Sequence[np.ndarray] | None = None) -> sparse.csr_array:
        """What every item is to B histories: Σ over the events a of a history of
        recency · (pairs a → i + β · pairs i → a) / (events(a)^α · events(i)^ν), float64 [B, N], at least 0.

        Args:
            histories: Rows of the catalog, oldest first; the `latest` ones of each are read.
            own: For every history all events of its user that the memory has counted. They are left out, as if that
                user had not been there: for prompts of the training part, whose answers are in the memory else.
        """
        config, num_items = self.config, self.num_items
        latest = [history[-config.latest :] for history in histories]
        items, owners = _flat(latest)
        lengths = np.array([len(history) for history in latest], np.int64)
        age = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(items))
        known = items < num_items
        # each item of a history once, as history · N + item
        keys, place = np.unique(owners[known] * num_items + items[known], return_inverse=True)
        recency = np.bincount(place, age[known].astype(np.float64) ** -config.recency, minlength=len(keys))
        rows, columns = np.divmod(keys, num_items)
        graph, taken = self._graph, None
        if own is not None:
            taken = _Own(own, config, num_items)
            graph, columns = self._graph_without(taken, keys), np.arange(len(keys))
        weights = recency * self._events_at(keys, taken) ** -config.normalizer
        affinities = sparse.csr_array((weights, (rows, columns)), shape=(len(latest), graph.shape[0])) @ graph
        if config.discount:
            rows = np.repeat(np.arange(len(latest)), np.diff(affinities.indptr))
            affinities.data *= self._events_at(rows * num_items + affinities.indices, taken) ** -config.discount
        return affinities

    def _events_at(self, keys: np.ndarray, taken: "_Own | None") -> np.ndarray:
        """Events of items as histories see them, at least 1, float64 [n]; keys are history · N + item, int64 [n]."""
        events = self.events[keys % self.num_items]
        if taken is not None:
            there, place = _places(keys, taken.keys)
            events[there] -= taken.events[place]
        return np.maximum(events, 1.0)

    def _graph_without(self, taken: "_Own", keys: np.ndarray) -> sparse.csr_array:
        """Rows of the graph for items that histories read (history · N + item, ascending), float64 [n, N], without
        what each history's own user did."""
        items = keys % self.num_items

        def rows(counts: sparse.csr_array, first: np.ndarray, second: np.ndarray) -> sparse.csr_array:
            there, place = _places(taken.users * self.num_items + first, keys)
            pairs = (taken.weights[there], (place, second[there]))
            return counts[items] - sparse.coo_array(pairs, shape=(len(keys), self.num_items)).tocsr()

        graph = rows(self.follows, taken.earlier, taken.later) / UNIT
        if self.config.backward:
            backward = rows(self.follows.T.tocsr(), taken.later, taken.earlier)
            graph = graph + self.config.backward / UNIT * backward
        return sparse.csr_array(graph)

    @cached_property
    def _graph(self) -> sparse.csr_array:
        """Pairs a → b, and β of those b → a, float64 [N, N]."""
        follows = self.follows / UNIT
        return sparse.csr_array(follows + self.config.backward * follows.T) if self.config.backward else follows

    @torch.no_grad()
    def read(self, requests: Requests) -> DenseScores:
        """p(i) = (1 − μ) · affinity(i)^(1/T) / Σ + μ · popularity(i), among the items that may be answers."""
        if requests.histories is None:
            raise HfGrError("a memory reads histories, but none are given; give histories=… (a Recommender does).")
        return DenseScores(self.log_probs(requests.histories, requests.every), requests)

    def log_probs(
        self, histories: Sequence[np.ndarray], every: torch.Tensor, own: Sequence[np.ndarray] | None = None
    ) -> torch.Tensor:
        """Logarithm of [`read`]'s p, float32 [B, N] on the device of `every`.

        Args:
            histories, own: As for [`affinities`].
            every: bool [1, N], items that may be answers: N is at least that of the memory.
        """
        return self.log_probs_of(self.affinities(histories, own), every)

    def log_probs_of(self, affinities: sparse.csr_array, every: torch.Tensor) -> torch.Tensor:
        """The same of [`affinities`] that are known, by temperature and popularity alone."""
        dense = np.zeros((affinities.shape[0], every.shape[1]))
        dense[:, : self.num_items] = affinities.toarray()
        dense /= np.maximum(dense.max(1, keepdims=True, initial=0), 1e-300)  # powers of at most 1 stay finite
        dense **= 1 / self.config.temperature
        popular = np.ones((1, every.shape[1]))
        popular[0, : self.num_items] += self.events
        known, popularity = (torch.from_numpy(part).float().to(every.device) * every for part in (dense, popular))
        total, mu = known.sum(1, keepdim=True), self.config.popularity
        popularity = popularity / popularity.sum()
        mixed = (1 - mu) * known / total.clamp(min=1e-30) + mu * popularity
        return torch.where(total > 0, mixed, popularity).log()

    # Files

    def save(self, folder: str | Path) -> None:
        """Writes `memory.json`, `memory.safetensors` and, for this machine alone, `tails.parquet` into a folder, which
        is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG_FILE, {"format": FORMAT, "num_items": self.num_items} | asdict(self.config))
        follows = self.follows
        arrays = {
            "data": follows.data,
            "columns": follows.indices.astype(np.int32),
            "rows": follows.indptr.astype(np.int64),
            "events": self.events,
        }
        (folder / COUNTS_FILE).unlink(missing_ok=True)  # not written over: it may be a link to another folder's
        save_file(arrays, folder / COUNTS_FILE)
        if self.tails is not None:
            self.tails.save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what [`save`] has written. Raises [`HfGrError`] where it does not fit together."""
        folder = Path(folder)
        config = read_json(folder / CONFIG_FILE)
        names = {field.name for field in fields(MemoryConfig)}
        if (
            not isinstance(config, dict)
            or config.get("format") != FORMAT
            or config.keys() != {"format", "num_items"} | names
        ):
            raise HfGrError(
                f"{folder / CONFIG_FILE} is not of a memory that this release reads; make it again: hf-gr remember."
            )
        try:
            arrays = load_file(folder / COUNTS_FILE)
            data, columns, rows, events = (arrays[name] for name in ("data", "columns", "rows", "events"))
            follows = sparse.csr_array((data, columns, rows), shape=(config["num_items"],) * 2)
            follows.check_format()
            if len(events) != config["num_items"] or min(data.min(initial=1), 1 + events.min(initial=0)) < 1:
                raise ValueError("counts of other items")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise HfGrError(
                f"{folder / COUNTS_FILE} does not hold the counts of {CONFIG_FILE} ({first_line(error)}); copy the "
                "whole folder, or make it again: hf-gr remember."
            ) from None
        tails = Tails.load(folder) if (folder / TAILS_FILE).is_file() else None
        return cls(MemoryConfig(**{name: config[name] for name in names}), follows, events, tails)


class _Own:
    """What each history's own user did.

    Attributes:
        keys, events: Items of each history (history · N + item, ascending) and how often each was taken, int64 [m].
        users, earlier, later, weights: Pairs: history, items, and what each counts in 1/65,536, int64 [P].
    """

    def __init__(self, histories: Sequence[np.ndarray], config: MemoryConfig, num_items: int):
        items, owners = _flat(histories)
        self.keys, self.events = np.unique(owners * num_items + items, return_counts=True)
        earlier, later, self.weights = _pairs(owners, config)
        self.users, self.earlier, self.later = owners[earlier], items[earlier], items[later]


def _pairs(owners: np.ndarray, config: MemoryConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs among events int64 [E] that belong to `owners` (ascending): places of the earlier and of the later
    event, and what each counts in 1/65,536; int64 [P] each."""
    earlier, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for distance in range(1, min(config.window, len(owners) - 1) + 1):
        places = np.flatnonzero(owners[distance:] == owners[:-distance])
        if not len(places):
            break
        earlier.append(places)
        weights.append(np.full(len(places), max(1, round(UNIT * distance**-config.decay))))
    distances = np.repeat(np.arange(len(earlier)), list(map(len, earlier)))
    first = np.concatenate(earlier)
    return first, first + distances, np.concatenate(weights)


def _flat(histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Items of all histories one after the other, and the history of each, int64 [E]."""
    owners = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return np.concatenate([np.empty(0, np.int64), *histories]).astype(np.int64), owners


def _places(keys: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which keys are among some ascending ones, bool [n], and the places there of those that are."""
    place = np.searchsorted(among, keys)
    there = np.append(among, -1)[place] == keys
    return there, place[there]
