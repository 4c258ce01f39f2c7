"""The recommender: a model with its tokenizer, catalog and vocabulary, and one call that answers with items."""

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..catalog import SidCatalog
from ..dataset import Histories
from ..errors import HfGrError
from ..grammar import ItemMask, SidGrammar
from ..hub import READ_FILES
from ..limits import Limits, shown
from ..models import ItemVectors, ThinkingHeads, check_window
from ..models.thinking import THINKING_FILES
from ..offline import local_folder
from ..scorers import Memory, load_scorers
from ..scoring import Scorer
from ..search_config import MEMORY, Mixture, SearchConfig, check_threshold
from ..vocabulary import SidVocabulary, reads_text, text_ids
from .beam import beam_search
from .call import Call
from .graphs import SearchGraphs
from .prefix_cache import PrefixCache
from .reflection import Reflection
from .session import Session, check_lengths
from .sessions import Sessions
from .support import check_model


MAX_KEPT = 64  # masks, and reflections, kept at once; the oldest goes first

logger = logging.getLogger(__name__)

_Words = tuple[frozenset[str], frozenset[str]]
_Key = TypeVar("_Key", bound=Hashable)
_Made = TypeVar("_Made")


class Answers(NamedTuple):
    """Answers to B histories.

    Attributes:
        items: int64 [B, K], catalog rows, best first: min(K, live items) distinct ones, then −1.
        scores: float32 [B, K], log-probability of the item's SID under the catalog's grammar, of a model with several
            outputs the mixture of [`mixed_ranking`]; −inf after the last. No filter changes them, so that scores of
            several calls may be compared, and the list without page 1 begins where page 1 ended.
        pruned: float32 [B], with reflection: the share of paths that it dropped (as in [`Beams`]); NaN where filters
            left no item.
    """

    items: np.ndarray
    scores: np.ndarray
    pruned: np.ndarray | None


class _Served(NamedTuple):
    """What belongs together, so that one assignment replaces all of it."""

    catalog: SidCatalog
    grammar: SidGrammar
    masks: dict[_Words, ItemMask]
    reflections: dict[float, Reflection]


class Recommender:
    """Answers histories with items. Threads may share one.

    Args:
        model: Causal LM with the SID tokens.
        tokenizer: Saved with it.
        catalog: Items and their SIDs; its fingerprint must be the one the vocabulary was made for.
        vocabulary: Of the model.
        prefix_cache: Keeps keys and values of prompts for users who come back with a longer history.
        thinking: S²GR's heads, of a model that was trained with them. With hidden feedback, answers need them.
        limits: Of what a request may ask; [`Limits`] if left out.
        scorers: What ranks beside the semantic IDs, by name, besides what the model carries in itself.
        mixture: What each scorer counts, unless a request says otherwise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        catalog: SidCatalog,
        vocabulary: SidVocabulary,
        prefix_cache: PrefixCache | None = None,
        thinking: ThinkingHeads | None = None,
        limits: Limits | None = None,
        scorers: Mapping[str, Scorer] | None = None,
        mixture: Mixture | None = None,
    ):
        vocabulary.check(catalog, tokenizer, model.config.name_or_path or "the model")
        check_model(model, vocabulary.token_ids)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.vocabulary = vocabulary
        self.prefix_cache = prefix_cache
        self.limits = limits or Limits()
        self.scorers, self.mixture = scorers, mixture
        self.thinking = None if thinking is None else thinking.to(model.device)
        self.item_vectors, self.graphs = ItemVectors(), SearchGraphs()
        self._served = _Served(catalog, vocabulary.grammar(catalog).to(model.device), {}, {})
        self._lock, self._remembering = threading.Lock(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process, so that another one (joblib's, Spark's) can have a copy; its prefix
        cache is empty."""
        state = {name: value for name, value in vars(self).items() if name not in ("_lock", "_remembering")}
        return state | {"_served": _Served(self.catalog, self.grammar, {}, {}), "item_vectors": ItemVectors()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _remembering=threading.Lock())

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str | None = None,
        revision: str | None = None,
        prefix_cache: PrefixCache | None = None,
        limits: Limits | None = None,
    ) -> "Recommender":
        """Loads a model folder or Hub repo; onto a GPU where there is one unless `device` says otherwise."""
        folder = local_folder(path, revision=revision, files=READ_FILES)  # once: all of it is of one commit
        vocabulary, catalog = SidVocabulary.load(folder), SidCatalog.load(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        default = "cuda" if torch.cuda.is_available() else "cpu"
        thinking = load_thinking(folder, catalog, vocabulary)
        scorers, mixture = load_scorers(folder, catalog)
        model = model.to(device or default)
        return cls(model, tokenizer, catalog, vocabulary, prefix_cache, thinking, limits, scorers, mixture)

    @property
    def catalog(self) -> SidCatalog:
        return self._served.catalog

    @property
    def grammar(self) -> SidGrammar:
        return self._served.grammar

    def swap(self, catalog: SidCatalog) -> None:
        """Serves another state of the catalog from now on: items removed or live again, other titles or stock.

        Requests in flight finish on the old one. Ids and SIDs must be those that the model was trained on
        ([`HfGrError`]); where no item is live, nothing is changed.
        """
        if not isinstance(catalog, SidCatalog):
            raise HfGrError(f"swap is given {shown(catalog)}; give SidCatalog.load(folder).")
        self.vocabulary.check(catalog, self.tokenizer, self.model.config.name_or_path or "the model")
        self._served = _Served(catalog, self.vocabulary.grammar(catalog).to(self.model.device), {}, {})

    def remember(self, events: Histories) -> int:
        """Takes events into the memory that ranks beside the model, from the next request on.

        Requests in flight finish on the memory as it was. The model's files stay as they are (`hf-gr remember` changes
        those).

        Args:
            events: In rows of the catalog, of users by their ids.

        Returns:
            How many were left out, as they are no later than what is known of their user.

        Raises:
            HfGrError: If the model has no memory, or events are of items outside the catalog.
        """
        if len(events.items) and not 0 <= events.items.min() <= events.items.max() < len(self.catalog):
            raise HfGrError(f"an item lies outside 0 to {len(self.catalog) - 1}; count in rows of the catalog.")
        with self._remembering:  # of two threads neither is lost
            memory = (self.scorers or {}).get(MEMORY)
            if not isinstance(memory, Memory):
                raise HfGrError("the model has no memory; make one: hf-gr remember MODEL DATASET.")
            memory, left_out = memory.remember(events, len(self.catalog))
            self.scorers = {**(self.scorers or {}), MEMORY: memory}
        return left_out

    def snapshot(self) -> Self:
        """This recommender as it is now, for several calls that must see one catalog: a later [`swap`] of the
        original does not reach it. Costs nothing, shares model and caches."""
        snapshot = object.__new__(type(self))  # not copy.copy, which takes the state for other processes
        vars(snapshot).update(vars(self))
        return snapshot

    def mask(self, category: str | Sequence[str] = (), where: str | Sequence[str] = ()) -> ItemMask:
        """The items that words pick out, for `recommend(only=…)`; made once for the same words.

        It belongs to the catalog served now: use a [`snapshot`] where a swap may come between.

        Args:
            category, where: A name or several, as for [`SidCatalog.matching`].
        """
        served, words = self._served, (_names(category), _names(where))
        with self._lock:
            return _kept(served.masks, words, lambda: served.grammar.mask(served.catalog.matching(*words)))

    def reflection(self, threshold: float) -> Reflection | None:
        """What drops paths that contradict themselves; `None` for 0. Made once for a threshold.

        Raises [`HfGrError`] where the threshold is not between 0 and 1, or the catalog has no telling categories.
        """
        served = self._served
        check_threshold(threshold)
        if threshold == 0:
            return None

        def make() -> Reflection:
            return Reflection.of(served.catalog, threshold).to(self.model.device)

        with self._lock:
            return _kept(served.reflections, threshold, make)

    def call(self, config: SearchConfig) -> Call:
        """What a search of these settings works with: this recommender's caches, and of the catalog served now what
        drops its contradicting paths.

        Raises [`HfGrError`] where reflection finds no telling categories in the catalog.
        """
        return Call(
            reflection=self.reflection(config.reflection),
            prefix_cache=self.prefix_cache,
            graphs=self.graphs if config.graphs else None,
            item_vectors=self.item_vectors,
            feed=None if self.thinking is None else self.thinking.feed,
            scorers=self.scorers,
            mixture=self.mixture,
        )

    def recommend(
        self,
        histories: Histories,
        search: SearchConfig | None = None,
        *,
        exclude: Sequence[np.ndarray | None] | None = None,
        allow: Sequence[np.ndarray | None] | None = None,
        only: Sequence[ItemMask | None] | None = None,
        queries: Sequence[str | None] | None = None,
        **options: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items after each of B histories, fed as one batch.

        Args:
            histories: Items as catalog rows, oldest first; the most recent `vocabulary.max_history` are used. An
                empty history is a cold user.
            search: Settings of the search.
            exclude: Rows of the catalog that are no answer, per history.
            allow: Rows that alone are answers, per history (`None` entries: all).
            only: Masks of the items that may be answers, per history ([`mask`]). The three compose.
            queries: Free text put before each history.
            options: Entries of `search` that are otherwise than there: `top_k=5, num_beams=20`.

        Returns:
            Items int64 [B, top_k] and scores float32 [B, top_k] (log-probability of the SID under the catalog's
            grammar, whatever the filters), best first: min(top_k, live items) distinct items, then −1 and −inf.

        Raises:
            HfGrError: If filters or queries are not as many as histories, on options of the search that are unknown or
                do not go together, on what is out of the recommender's `limits`, or if the model's scores are not
                finite.
        """
        answers = self.answers(histories, search, exclude=exclude, allow=allow, only=only, queries=queries, **options)
        return answers.items, answers.scores

    def answers(
        self,
        histories: Histories,
        search: SearchConfig | None = None,
        *,
        exclude: Sequence[np.ndarray | None] | None = None,
        allow: Sequence[np.ndarray | None] | None = None,
        only: Sequence[ItemMask | None] | None = None,
        queries: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Answers:
        """As [`recommend`], with what is known of the search beside the lists."""
        if not isinstance(histories, Histories):
            raise HfGrError(
                f"histories are {shown(histories)}; give Histories of catalog rows, or item ids to the pipeline."
            )
        config = SearchConfig.of(search, **options)
        config.check_limits(self.limits)
        top_k = config.top_k
        check_lengths(len(histories), "histories", exclude=exclude, allow=allow, only=only, queries=queries)
        self._check_limits(histories, [*(exclude or []), *(allow or [])], queries)
        grammar, call = self.grammar, self.call(config)
        prompts = self.prompts(histories, queries)
        items = np.full((len(prompts), top_k), -1, np.int64)
        scores = np.full((len(prompts), top_k), -np.inf, np.float32)
        pruned = None if call.reflection is None else np.full(len(prompts), np.nan, np.float32)
        item_filter, rows = None, np.arange(len(prompts))
        if exclude is not None or allow is not None or only is not None:
            item_filter = grammar.filter(exclude, allow, only)
            rows = (item_filter.live > 0).nonzero()[:, 0].cpu().numpy()
            item_filter = item_filter.rows(torch.from_numpy(rows).to(grammar.device))
        if len(rows) < len(prompts):
            logger.warning(
                "%d request(s) leave no item to answer with: their lists are empty.", len(prompts) - len(rows)
            )
        if len(rows):
            every = list(histories)
            found = beam_search(
                self.model,
                [prompts[row] for row in rows],
                grammar,
                config,
                replace(call, item_filter=item_filter, histories=[every[row] for row in rows]),
            )
            items[rows], scores[rows] = found.items.cpu().numpy(), found.scores.float().cpu().numpy()
            if pruned is not None and found.pruned is not None:
                pruned[rows] = found.pruned.cpu().numpy()
        return Answers(items, scores, pruned)

    def _check_limits(
        self,
        histories: Histories,
        lists: Sequence[np.ndarray | None],
        queries: Sequence[str | None] | None,
    ) -> None:
        self.limits.length("the batch", "batch_size", len(histories))
        self.limits.length("a history", "history", int(histories.lengths.max(initial=0)))
        rows = max((len(x) for x in lists if x is not None), default=0)
        if rows > len(self.catalog):  # a list of the catalog's own rows is no longer than the catalog
            self.limits.length("a list of items", "ids", rows)
        self.limits.length("a query", "query", max((len(query) for query in queries or [] if query), default=0))

    def session(
        self, history: Sequence[str] = (), *, context: Sequence[float | str] | None = None, block: int | None = None
    ) -> Session:
        """A user's stream of events, each read once, for models of `form: recursive`; takes and answers item ids.

        Args:
            history: Item ids so far, oldest first.
            context, block: As for [`Session`].
        """
        return Session(self, history, context=context, block=block)

    def sessions(self, max_bytes: int, *, block: int | None = None) -> Sessions:
        """Sessions of many users within `max_bytes` of memory, least recently used dropped first ([`Sessions`])."""
        return Sessions(self, max_bytes, block=block)

    def prompts(self, histories: Histories, queries: Sequence[str | None] | None = None) -> list[list[int]]:
        """Token ids of each prompt: the query's text, then the history.

        Raises [`HfGrError`] on a query to a model whose tokenizer has no words, and where query and history are longer
        than what the model reads.
        """
        prompts = self.vocabulary.prompts(histories, self.catalog)
        if queries is None:
            return prompts
        if any(queries) and not reads_text(self.tokenizer):
            raise HfGrError(
                "the model was made from SIDs alone and reads no query; train one with text: true, or from a "
                "pretrained LM."
            )
        texts = [text_ids(self.tokenizer, query) if query else [] for query in queries]
        longest = max((len(text) + len(prompt) for text, prompt in zip(texts, prompts, strict=True)), default=0)
        check_window(
            self.model, longest + self.grammar.answer_length, "a query with its history and an answer", "shorten it"
        )
        return [text + prompt for text, prompt in zip(texts, prompts, strict=True)]


def load_thinking(path: str | Path, catalog: SidCatalog, vocabulary: SidVocabulary) -> ThinkingHeads | None:
    """Thinking heads of a model folder or Hub repo; `None` where it has none, or writes no thoughts."""
    if not vocabulary.sid_form.thinks:
        return None
    folder = local_folder(path, files=["config.json", *THINKING_FILES])
    return ThinkingHeads.load(folder, catalog) if (folder / THINKING_FILES[0]).is_file() else None


def _kept(made: dict[_Key, _Made], key: _Key, make: Callable[[], _Made]) -> _Made:
    """What was made for a key, made where it was not; of too many the oldest goes."""
    if key not in made:
        new = make()
        if len(made) == MAX_KEPT:
            del made[next(iter(made))]
        made[key] = new
    return made[key]


def _names(value: str | Sequence[str]) -> frozenset[str]:
    return frozenset([value] if isinstance(value, str) else value)
