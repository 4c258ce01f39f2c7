"""Streaming sessions of models whose items are one position each: a new event is one more column of a kept cache.

A recursive model's search feeds nothing after the prompt, so that answers need the last hidden state alone, and many
sessions are searched as one batch. (Session, window in blocks and memory budget: our choices.)
"""

import logging
import threading
from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from transformers import PreTrainedModel

from ..catalog import SidCatalog
from ..dataset import Histories
from ..errors import HfGrError
from ..grammar import ItemMask, SidGrammar, check_scores
from ..limits import Limits, shown
from ..models import reader_of
from ..search_config import SearchConfig
from ..vocabulary import SidVocabulary
from .call import Call
from .mixing import mixed_ranking, mixture_of
from .padding import pad_left
from .ranking import ranked
from .tree import search_from
from .trunk import PromptEnds, Trunk


logger = logging.getLogger(__name__)


class Server(Protocol):
    """What sessions ask of a [`Recommender`]."""

    model: PreTrainedModel
    vocabulary: SidVocabulary
    limits: Limits

    @property
    def catalog(self) -> SidCatalog: ...

    @property
    def grammar(self) -> SidGrammar: ...

    def snapshot(self) -> Self: ...

    def call(self, config: SearchConfig) -> Call: ...


Answer = tuple[str, float]  # an item id, and the log-probability of its SID under the grammar


class Session:
    """One user's events, read as they come. Threads may share it.

    A session that starts with a history reads the most recent `vocabulary.max_history` events of it. Until its window
    holds so many, answers are those of [`Recommender.recommend`] to the same history. The event after that drops a
    block of the oldest ones and reads the rest anew, since keys of later events have seen the dropped ones: the model
    then sees from max_history − block + 1 to max_history events.

    Events of items that were removed from the catalog are read as any other. After the model's weights were changed
    in place, or it was moved, make new sessions.

    Args:
        recommender: Of a model of `form: recursive`. A state of the catalog that it is [`swap`]ped to serves live
            sessions at once.
        history: Item ids, oldest first.
        context: The rating (number) or behavior (word) of every event, of a model that reads one; else not looked at.
        block: Events dropped at a time, from 1 to max_history; by default a quarter of max_history, at least 1.
        on_read: Called with the session after every appended event.

    Attributes:
        nbytes: Of keys, values and the last hidden state: layers × 2 × kv_heads × head_dim × positions + d numbers.

    Raises:
        HfGrError: On other models, and on ids that are not in the catalog.
    """

    def __init__(
        self,
        recommender: Server,
        history: Sequence[str] = (),
        *,
        context: Sequence[float | str] | None = None,
        block: int | None = None,
        on_read: "Callable[[Session], None] | None" = None,
    ):
        vocabulary = recommender.vocabulary
        reader = reader_of(recommender.model)
        if reader.branches:
            raise HfGrError(
                f"sessions are for models of form recursive, this one's is {vocabulary.form}; give its Recommender a "
                "PrefixCache, which keeps the older events of users who come back."
            )
        self.recommender, self.block = recommender, max(1, vocabulary.max_history // 4) if block is None else block
        if not 1 <= self.block <= vocabulary.max_history:
            raise HfGrError(f"block is {block}; give 1 to {vocabulary.max_history}, the events that a prompt keeps.")
        supported, reason = reader.cache_support()
        if not supported:
            raise HfGrError(f"sessions are not for this model: {reason}; ask its Recommender with whole histories.")
        self._on_read, self._lock = on_read, threading.Lock()
        recommender.limits.length("history", "history", len(history))
        rows, events = self._tokens(history, context)
        self._seen, self._window = set(rows.tolist()), events[-vocabulary.max_history :]
        self._read_anew()

    @property
    def positions(self) -> int:
        """Columns of the cache: the prompt's opening and the events of the window."""
        return self._trunk.real.shape[1]

    @property
    def num_events(self) -> int:
        """Events that the model sees."""
        return len(self._window)

    def append(self, item_id: str, context: float | str | None = None) -> None:
        """Reads a new event: one position (with context two), or the shortened window where it was full.

        Args:
            item_id: An item of the catalog; [`HfGrError`] else, and nothing was read.
            context: Its rating or behavior, of a model that reads one.
        """
        rows, events = self._tokens([item_id], None if context is None else [context])
        with self._lock:
            self._seen.update(rows.tolist())
            if self.num_events < self.recommender.vocabulary.max_history:
                self._window += events
                self._extend(events[0])
            else:
                self._window = self._window[self.block :] + events
                self._read_anew()
        if self._on_read is not None:
            self._on_read(self)

    def recommend(
        self,
        top_k: int | None = None,
        *,
        search: SearchConfig | None = None,
        exclude_seen: bool = False,
        exclude: Sequence[str] | None = None,
        allow: Sequence[str] | None = None,
        only: ItemMask | None = None,
        **options: Any,
    ) -> list[Answer]:
        """The best next items; the backbone reads nothing for it.

        Args:
            top_k: Items wanted; by default as `search` says.
            search: Settings of the search, with `method="beam"`.
            exclude_seen: Whether no event so far is an answer, those before the window included.
            exclude: Item ids that are no answer.
            allow: Item ids that alone are answers.
            only: Mask of the items that may be answers ([`Recommender.mask`]). Filters compose.
            options: Entries of `search` that are otherwise than there.

        Returns:
            Item ids with their scores (log-probability of the SID under the catalog's grammar, whatever the filters),
            best first: min(top_k, live items) distinct ones.
        """
        return recommend_many(
            [self],
            top_k,
            search=search,
            exclude_seen=exclude_seen,
            exclude=None if exclude is None else [exclude],
            allow=None if allow is None else [allow],
            only=None if only is None else [only],
            **options,
        )[0]

    def state(self) -> tuple[torch.Tensor, np.ndarray, list[int]]:
        """What the next item is read from, float [1, 1, d], catalog rows of all events so far, int64 [n], and the
        tokens of those in the window."""
        with self._lock:
            tokens = [token for event in self._window for token in event]
            return self._trunk.hidden, np.fromiter(self._seen, np.int64), tokens

    def _tokens(
        self, item_ids: Sequence[str], context: Sequence[float | str] | None
    ) -> tuple[np.ndarray, list[list[int]]]:
        """Catalog rows int64 [n] of events, and the token ids of each."""
        vocabulary, catalog = self.recommender.vocabulary, self.recommender.catalog
        rows, values = _rows(item_ids, catalog), [] if context is None else list(context)
        kind = str if vocabulary.context == "behavior" else int | float
        if vocabulary.context == "none":
            values = []
        elif len(values) != len(rows) or not all(isinstance(value, kind) for value in values):
            raise HfGrError(
                f"this model reads a {vocabulary.context} with every item, but context is {values} for {len(rows)} "
                "item(s); give one for each."
            )
        events = Histories(
            np.array([""], object),
            np.array([0, len(rows)]),
            rows,
            np.arange(len(rows)),
            ratings=np.array(values, np.float32) if vocabulary.context == "rating" else None,
            behaviors=np.array(values, object),
        )
        return rows, vocabulary.event_tokens(events, catalog).tolist()

    @torch.no_grad()
    def _read_anew(self) -> None:
        tokens = [*self.recommender.vocabulary.opening, *(token for event in self._window for token in event)]
        model = self.recommender.model
        self._trunk = Trunk(model, *pad_left([tokens], 0, model.device))
        self._count()

    @torch.no_grad()
    def _extend(self, tokens: list[int]) -> None:
        ids = torch.tensor([tokens], device=self._trunk.device)
        self._trunk.extend(ids, torch.ones_like(ids))
        self._count()

    def _count(self) -> None:
        kept = [self._trunk.hidden]
        for layer in self._trunk.cache.layers:
            kept += [layer.keys, layer.values]
        self.nbytes = sum(values.nbytes for values in kept)


@torch.no_grad()
def recommend_many(
    sessions: Sequence[Session],
    top_k: int | None = None,
    *,
    search: SearchConfig | None = None,
    exclude_seen: bool = False,
    exclude: Sequence[Sequence[str] | None] | None = None,
    allow: Sequence[Sequence[str] | None] | None = None,
    only: Sequence[ItemMask | None] | None = None,
    **options: Any,
) -> list[list[Answer]]:
    """[`Session.recommend`] for B sessions of one recommender, searched as one batch.

    Args:
        sessions: B of them, at least one.
        top_k, search, exclude_seen, options: As there, for all.
        exclude, allow, only: As there, one for each session (`None` entries: no filter).

    Returns:
        Answers of each; none where its filters leave no live item.

    Raises:
        HfGrError: If sessions are of several recommenders or none, filters are not as many as they, or the model's
            scores are not finite.
    """
    if not sessions:
        raise HfGrError("there are no sessions to answer; give at least one.")
    check_lengths(len(sessions), "sessions", exclude=exclude, allow=allow, only=only)
    if any(session.recommender is not sessions[0].recommender for session in sessions):
        raise HfGrError("sessions of several recommenders cannot be answered as one batch; call once for each.")
    recommender = sessions[0].recommender.snapshot()
    limits = recommender.limits
    limits.length("the batch", "batch_size", len(sessions))
    config = SearchConfig.of(search, **options | ({} if top_k is None else {"top_k": top_k}))
    config.check_limits(limits)
    if config.method != "beam" or config.graphs:
        option = "graphs" if config.graphs else f'method="{config.method}"'
        raise HfGrError(f"{option} is not for sessions, which search beams; ask the Recommender with histories.")
    _check_limits(limits, exclude=exclude, allow=allow)
    catalog, grammar = recommender.catalog, recommender.grammar
    states = [session.state() for session in sessions]
    hidden, rows = torch.cat([hidden for hidden, _, _ in states]), np.arange(len(sessions))
    deny = _rows_each(exclude, catalog)
    if exclude_seen:
        given = [None] * len(sessions) if deny is None else deny
        deny = [_union(own, seen) for own, (_, seen, _) in zip(given, states, strict=True)]
    item_filter = None
    if deny is not None or allow is not None or only is not None:
        item_filter = grammar.filter(deny, _rows_each(allow, catalog), only)
        rows = (item_filter.live > 0).nonzero()[:, 0].cpu().numpy()
        item_filter = item_filter.rows(torch.from_numpy(rows).to(grammar.device))
    answers: list[list[Answer]] = [[] for _ in sessions]
    if len(rows) < len(sessions):
        logger.warning("%d session(s) have no item to answer with: their lists are empty.", len(sessions) - len(rows))
    if len(rows):
        ends = PromptEnds(recommender.model, hidden[torch.from_numpy(rows).to(hidden.device)])
        call = replace(recommender.call(config), item_filter=item_filter)
        config = replace(config, num_beams=max(config.num_beams, config.top_k))
        if (mixing := mixture_of(recommender.model, config, call)) is not None:
            prompts = [states[row][2] for row in rows]
            found = mixed_ranking(recommender.model, prompts, grammar, config, call, *mixing, trunk=ends)
        else:
            beams = search_from(ends, grammar, config, call)
            check_scores(beams.scores)
            found = ranked(beams, grammar, item_filter, config.top_k)
        items, scores = found.items.cpu().numpy(), found.scores.float().cpu().numpy()
        for row, own, own_scores in zip(rows, items, scores, strict=True):
            answers[row] = [(catalog.item_ids[i], float(s)) for i, s in zip(own, own_scores, strict=True) if i >= 0]
    return answers


def check_lengths(number: int, of: str, **lists: Sized | None) -> None:
    """Raises [`HfGrError`] where a list has more or fewer entries than the `number` of requests (`of` names them)."""
    for name, entries in lists.items():
        if entries is not None and len(entries) != number:
            raise HfGrError(f"{name} has {len(entries)} entries for {number} {of}; give one for each (None: nothing).")


def _rows(item_ids: Sequence[str], catalog: SidCatalog) -> np.ndarray:
    """Catalog rows int64 [n]; [`HfGrError`] on unknown ids."""
    if isinstance(item_ids, str):
        raise HfGrError(f"item ids are given as {shown(item_ids)}; give a list of them.")
    unknown = [item_id for item_id in item_ids if item_id not in catalog.row_of]
    if unknown:
        raise HfGrError(f"item {unknown[0]!r} is not in the catalog of {len(catalog)} items; leave it out.")
    return np.array([catalog.row_of[item_id] for item_id in item_ids], np.int64)


def _check_limits(limits: Limits, **lists: Sequence[Sequence[str] | None] | None) -> None:
    for name, entries in lists.items():
        for ids in entries or []:
            limits.length(name, "ids", 0 if ids is None else len(ids))


def _union(denied: np.ndarray | None, seen: np.ndarray) -> np.ndarray:
    return seen if denied is None else np.union1d(denied, seen)


def _rows_each(given: Sequence[Sequence[str] | None] | None, catalog: SidCatalog) -> list[np.ndarray | None] | None:
    return None if given is None else [None if ids is None else _rows(ids, catalog) for ids in given]
