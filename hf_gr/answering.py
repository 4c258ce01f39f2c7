"""Parsed requests, answered by a recommender: batches, caps by category, and requests that fail alone.

Our modules that import transformers are imported for types alone: the pipeline, which is loaded with
`transformers.pipelines`, needs this one.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .dataset import Histories
from .errors import HfGrError
from .limits import whole
from .requests import Request
from .search_config import SearchConfig


if TYPE_CHECKING:
    from .decoding import Recommender
    from .grammar import ItemMask

Answer = tuple[np.ndarray, np.ndarray]  # items and scores


def answer(
    recommender: "Recommender",
    requests: Sequence[Request],
    search: SearchConfig | None = None,
    *,
    max_per_category: int | None = None,
    batch_size: int = 16,
    **options: Any,
) -> list[Answer]:
    """Items (int64) and scores (float32) for every request, best first: min(top_k, live items) distinct items.

    Where filters leave no live item the list is empty, with a warning. All requests see one state of the catalog.

    Args:
        recommender: The model.
        requests: Parsed for its catalog.
        search: Settings of the search.
        max_per_category: At most so many items of one category (our choice: an item counts for the first of its
            categories; items without any are not capped). While a list is short the search goes on without the items
            found and the categories that are full; the lists are shorter than `top_k` only when nothing is left.
            Scores are those without any filter; one rises only where a later search saw what few beams had missed.
        batch_size: Requests per call of the model; similar lengths go together.
        options: Entries of `search` that are otherwise than there: `top_k=5, num_beams=20`.

    Raises:
        HfGrError: On settings out of the recommender's limits, and on a request that cannot be answered.
    """
    answers = answer_each(
        recommender, requests, search, max_per_category=max_per_category, batch_size=batch_size, **options
    )
    for result in answers:
        if isinstance(result, HfGrError):
            raise result
    return [result for result in answers if not isinstance(result, HfGrError)]


def answer_each(
    recommender: "Recommender",
    requests: Sequence[Request | HfGrError],
    search: SearchConfig | None = None,
    *,
    max_per_category: int | None = None,
    batch_size: int = 16,
    **options: Any,
) -> list[Answer | HfGrError]:
    """As [`answer`], but what is wrong with one request is that one's: its place holds the error.

    Args:
        requests: Errors among them, of requests that could not be read, are passed on.
        recommender, search, max_per_category, batch_size, options: As for [`answer`].

    Raises:
        HfGrError: On settings, which are for all.
    """
    recommender = recommender.snapshot()
    batch_size = recommender.limits.number("batch_size", batch_size)
    config = SearchConfig.of(search, **options)
    config.check_limits(recommender.limits)
    cap = None if max_per_category is None else whole("max_per_category", max_per_category)
    recommender.call(config)  # refused for all

    def answered(batch: list[Request]) -> list[Answer]:
        if cap is None:
            return _search(recommender, batch, [request.exclude for request in batch], config)
        return _capped_search(recommender, batch, config, cap)

    read = {row: request for row, request in enumerate(requests) if isinstance(request, Request)}
    answers: list[Answer | HfGrError] = [
        request if isinstance(request, HfGrError) else (np.empty(0), np.empty(0)) for request in requests
    ]
    order = sorted(read, key=lambda row: -len(read[row].history))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for row, result in zip(rows, _alone(answered, [read[row] for row in rows]), strict=True):
            answers[row] = result
    return answers


def _alone(search: Callable[[list[Request]], list[Answer]], batch: list[Request]) -> list[Answer | HfGrError]:
    """Answers of a batch; if it cannot be answered, those of its requests, asked one by one, and their errors."""
    try:
        return [*search(batch)]
    except HfGrError as error:
        if len(batch) == 1:
            return [error]
    return [result for request in batch for result in _alone(search, [request])]


def _search(
    recommender: "Recommender", batch: Sequence[Request], exclude: Sequence[np.ndarray], config: SearchConfig
) -> list[tuple[np.ndarray, np.ndarray]]:
    allow, only = [request.allow for request in batch], _masks(recommender, batch)
    filtered = any(map(len, exclude)) or any(x is not None for x in (*allow, *only))
    items, scores = recommender.recommend(
        histories_of(batch, recommender.vocabulary.context),
        config,
        exclude=exclude if filtered else None,
        allow=allow if filtered else None,
        only=only if filtered else None,
        queries=[request.query for request in batch],
    )
    return [(row[row >= 0], score[row >= 0]) for row, score in zip(items, scores, strict=True)]


def _capped_search(
    recommender: "Recommender",
    batch: Sequence[Request],
    config: SearchConfig,
    cap: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    top_k, category = config.top_k, recommender.catalog.first_categories
    found: list[list[tuple[int, float]]] = [[] for _ in batch]
    exclude = [request.exclude for request in batch]
    counts = np.zeros((len(batch), category.max() + 2), np.int64)  # the last column: items without a category (−1)
    unfinished = list(range(len(batch)))
    while unfinished:
        open_requests = [batch[row] for row in unfinished]
        results = _search(recommender, open_requests, [exclude[row] for row in unfinished], config)
        for row, (items, scores) in zip(unfinished, results, strict=True):
            for item, score in zip(items.tolist(), scores.tolist(), strict=True):
                kind = category[item]
                if len(found[row]) < top_k and (kind < 0 or counts[row, kind] < cap):
                    found[row].append((item, score))
                    counts[row, kind] += 1
            full = np.flatnonzero(counts[row, :-1] >= cap)
            exclude[row] = np.unique(np.concatenate([exclude[row], items, np.flatnonzero(np.isin(category, full))]))
        short = [row for row in unfinished if len(found[row]) < top_k]
        left = _live_items(recommender, [exclude[row] for row in short], [batch[row] for row in short])
        unfinished = [row for row, live in zip(short, left, strict=True) if live > 0]
    return [
        (np.array([item for item, _ in pairs], np.int64), np.array([score for _, score in pairs], np.float32))
        for pairs in found
    ]


def _live_items(recommender: "Recommender", exclude: Sequence[np.ndarray], batch: Sequence[Request]) -> list[int]:
    if not batch:
        return []
    allow = [request.allow for request in batch]
    return recommender.grammar.filter(exclude, allow, _masks(recommender, batch)).live.tolist()


def _masks(recommender: "Recommender", batch: Sequence[Request]) -> list["ItemMask | None"]:
    return [recommender.mask(r.category, r.where) if r.category or r.where else None for r in batch]


def histories_of(requests: Sequence[Request], context: str) -> Histories:
    """The histories of requests, for a model whose vocabulary has this `context`."""
    events = np.concatenate([request.history for request in requests])
    values = None if context == "none" else np.concatenate([r.context for r in requests if r.context is not None])
    return Histories(
        user_ids=np.array([str(row) for row in range(len(requests))], dtype=object),
        ptr=np.concatenate([[0], np.cumsum([len(request.history) for request in requests])]).astype(np.int64),
        items=events,
        timestamps=np.arange(len(events)),
        ratings=values if context == "rating" else None,
        behaviors=values if context == "behavior" else None,
    )
