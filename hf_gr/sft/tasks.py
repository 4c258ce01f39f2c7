"""What SFT learns from: tasks as plain functions that return rows of trunks and answers (see [`branches`]).

Every task reads the training part only, and no removed item is ever an answer, though it stays in histories. Columns
of every data set: those of [`branches.Row`].
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from ..branches import IGNORED
from ..catalog import SidCatalog
from ..dataset import Cases, Histories
from ..errors import HfGrError
from ..vocabulary import SidVocabulary, text_ids
from .rows import following, lists, matrix, offsets, rows_of, windows_of
from .writing import answer_tokens, filled, of_items, sids, text_answers, texts_of


TITLE = "\nTitle:"  # asks for a title after SIDs


def next_item(
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    *,
    steps: int = 1,
    decay: float = 0.5,
    trunk_weight: float = 0.0,
) -> Dataset:
    """Every training event as a target once, all positions of a history in one row.

    A history is cut from its end into windows of `max_history` + 1 events, so that the longest prompt that is asked at
    inference is also the longest that was trained; each is the trunk `<items>` + events. Rows without any target are
    left out.

    Args:
        train: Items as catalog rows.
        catalog, vocabulary: Of the model.
        steps: The items of how many events after a position are its targets (within the window).
        decay: The k-th of them weighs decay**(k − 1).
        trunk_weight: Above 0, in forms whose `trunk_predicts`, the next item is also predicted by the trunk itself,
            without thinking tokens and in the order of the codebooks, with this weight: it takes no further column,
            and trains what the branches only read [ours].
    """
    if steps < 1 or not 0 < decay <= 1:
        raise HfGrError(f"steps is {steps} and decay {decay}; use at least 1 step and a decay above 0, up to 1.")
    first, last = windows_of(train, vocabulary.max_history + 1)
    row, position, target, step = following(first, last, catalog.live[train.items], steps)
    answers, weights = sids(vocabulary, catalog, train.items[target]), decay**step
    if trunk_weight and vocabulary.sid_form.trunk_predicts:
        inline = np.flatnonzero(step == 0)
        codes = matrix(vocabulary.item_tokens(catalog, train.items[target[inline]]))
        row, position = np.concatenate([row, row[inline]]), np.concatenate([position, position[inline]])
        weights = np.concatenate([weights, np.full(len(inline), trunk_weight)])
        order = np.argsort(row, kind="stable")
        row, position, weights = row[order], position[order], weights[order]
        answers = tuple(pa.concat_arrays([own, codes]).take(order) for own in answers)
    return rows_of(
        lists([vocabulary.opening] * len(first)),
        matrix(vocabulary.event_tokens(train, catalog)),
        (first, last),
        row,
        position,
        answers,
        weights,
    )


def held_out(cases: Cases, catalog: SidCatalog, vocabulary: SidVocabulary) -> Dataset:
    """One row per case: its prompt, and its target as the only answer; for the evaluation loss in training.

    Cases whose target was removed are left out.
    """
    kept = np.flatnonzero(catalog.live[cases.targets])
    histories = cases.take(kept).latest(vocabulary.max_history)
    first, last = histories.ptr[:-1], histories.ptr[1:]
    return rows_of(
        lists([vocabulary.opening] * len(kept)),
        matrix(vocabulary.event_tokens(histories, catalog)),
        (first, last),
        np.arange(len(kept)),
        last,
        sids(vocabulary, catalog, cases.targets[kept]),
    )


def title_to_sid(
    catalog: SidCatalog, vocabulary: SidVocabulary, tokenizer: PreTrainedTokenizerBase, *, max_text: int = 64
) -> Dataset:
    """What an item is called, to its SID: the trunk is title, `<items>`, as a query of a cold user is asked.

    One row for every live item that has a title, whether anybody took it or not (LC-Rec) [known]; titles are cut to
    `max_text` tokens.
    """
    titles = texts_of(tokenizer, catalog.titles, max_text)
    items = np.flatnonzero(catalog.live & filled(titles))
    return of_items(
        items,
        lists([[*title, *vocabulary.opening] for title in titles]),
        sids(vocabulary, catalog, items),
    )


def sid_to_title(
    catalog: SidCatalog, vocabulary: SidVocabulary, tokenizer: PreTrainedTokenizerBase, *, max_text: int = 64
) -> Dataset:
    """The reverse of [`title_to_sid`]: the trunk is `<items>`, the codes, "Title:"; the answer the title and the
    end-of-text token, over the whole vocabulary."""
    titles = texts_of(tokenizer, catalog.titles, max_text)
    items = np.flatnonzero(catalog.live & filled(titles))
    marker = text_ids(tokenizer, TITLE)
    codes = vocabulary.item_tokens(catalog).tolist()
    return of_items(
        items,
        lists([[vocabulary.start_id, *sid, *marker] for sid in codes]),
        text_answers(titles, [], tokenizer, items),
    )


def title_history_to_sid(
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_text: int = 64,
    max_titles: int = 20,
) -> Dataset:
    """The next item's SID from the titles of a history, one a line.

    Windows as in [`next_item`], but of at most `max_titles` + 1 events, since a title takes many more tokens than a
    SID [ours]; at every position but a window's first (where no title was read yet) a branch `<items>` and the SID.
    """
    titles, line = texts_of(tokenizer, catalog.titles, max_text), text_ids(tokenizer, "\n")
    windows = windows_of(train, min(vocabulary.max_history, max_titles) + 1)
    row, position, target, _ = following(*windows, catalog.live[train.items], 1)
    read = position > windows[0][row]
    row, position, target = row[read], position[read], target[read]
    tokens, labels = answer_tokens(vocabulary, catalog, train.items[target])
    opened = np.full_like(tokens[:, :1], vocabulary.start_id)
    return rows_of(
        lists([[]] * len(windows[0])),
        lists([[*title, *line] for title in titles]).take(train.items),
        windows,
        row,
        position,
        (matrix(np.hstack([opened, tokens])), matrix(np.hstack([np.full_like(opened, IGNORED), labels]))),
    )


def sid_history_to_title(
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_text: int = 64,
) -> Dataset:
    """The next item's title from a history: rows of [`next_item`], at every position a branch "Title:", the title and
    the end-of-text token."""
    titles, marker = texts_of(tokenizer, catalog.titles, max_text), text_ids(tokenizer, TITLE)
    windows = windows_of(train, vocabulary.max_history + 1)
    row, position, target, _ = following(*windows, (catalog.live & filled(titles))[train.items], 1)
    return rows_of(
        lists([vocabulary.opening] * len(windows[0])),
        matrix(vocabulary.event_tokens(train, catalog)),
        windows,
        row,
        position,
        text_answers(titles, marker, tokenizer, train.items[target]),
    )


def query_to_sid(
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    max_text: int = 64,
) -> Dataset:
    """The next item from what the user asks for and the history, which is what a pipeline's `query` is.

    Data sets hold no queries, so they are made of the target's own words: of each user one event is drawn, and one to
    three of its item's categories, or its brand, or one to three words of its title stand before `<items>` and the
    history before it [ours].

    Args:
        train: Items as catalog rows. Users who took nothing that is live and has words are left out.
        catalog, vocabulary, tokenizer: Of the model.
        seed: Of the draws.
        max_text: Tokens that a query keeps.
    """
    random = np.random.default_rng(seed)
    words = _words(catalog)
    usable = np.flatnonzero((catalog.live & filled(words))[train.items])
    users, counts = np.unique(np.searchsorted(train.ptr, usable, side="right") - 1, return_counts=True)
    drawn = usable[offsets(counts)[:-1] + random.integers(counts)]
    queries = [_query(words[item], random) for item in train.items[drawn]]
    return rows_of(
        lists([[*query, *vocabulary.opening] for query in texts_of(tokenizer, queries, max_text)]),
        matrix(vocabulary.event_tokens(train, catalog)),
        (np.maximum(train.ptr[users], drawn - vocabulary.max_history), drawn),
        np.arange(len(drawn)),
        drawn,
        sids(vocabulary, catalog, train.items[drawn]),
    )


def mixture(tasks: Mapping[str, Dataset], weights: Mapping[str, float], seed: int) -> Dataset:
    """The rows of an epoch, one task after the other: of each task `weights[name]` times its rows.

    Args:
        tasks: Rows of tasks by name; those that `weights` does not name are left out.
        weights: 1: every row once; 0.5: half of them, drawn anew by `seed`; 2.5: each twice and half of them again.
        seed: Of the draws.

    Raises:
        HfGrError: On names that are no task, weights below 0, or if no row is left.
    """
    for name, weight in weights.items():
        if name not in tasks:
            raise HfGrError(f"the mixture names a task {name!r}, but has rows of {', '.join(tasks)}.")
        if weight < 0:
            raise HfGrError(f"the mixture gives {name} the weight {weight}; use 0 or more.")
    random = np.random.default_rng(seed)
    parts = []
    for name, weight in weights.items():
        rows, size = tasks[name], len(tasks[name])
        whole = int(weight)
        some = random.permutation(size)[: round((weight - whole) * size)]
        parts.append(rows.select(np.concatenate([np.tile(np.arange(size), whole), np.sort(some)]).astype(np.int64)))
    if not sum(map(len, parts)):
        raise HfGrError(f"the mixture {dict(weights)} has no rows; raise a weight.")
    return concatenate_datasets([part for part in parts if len(part)])


TASKS: dict[str, Callable[..., Dataset]] = {
    task.__name__: task
    for task in (next_item, title_to_sid, sid_to_title, title_history_to_sid, sid_history_to_title, query_to_sid)
}


def build(
    name: str,
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int = 1,
    decay: float = 0.5,
    trunk_weight: float = 0.0,
    max_text: int = 64,
    seed: int = 0,
) -> Dataset:
    """The rows of one of [`TASKS`] by its name; each takes of the arguments what it has use for."""
    if name not in TASKS:
        raise HfGrError(f"{name!r} is no task; choose from {', '.join(TASKS)}.")
    if name == "next_item":
        return next_item(train, catalog, vocabulary, steps=steps, decay=decay, trunk_weight=trunk_weight)
    if name == "query_to_sid":
        return query_to_sid(train, catalog, vocabulary, tokenizer, seed=seed, max_text=max_text)
    of_catalog = name in ("title_to_sid", "sid_to_title")
    given = (catalog, vocabulary, tokenizer) if of_catalog else (train, catalog, vocabulary, tokenizer)
    return TASKS[name](*given, max_text=max_text)


def _words(catalog: SidCatalog) -> list[list[list[str]]]:
    """What may be asked of every item: its categories, its brand, the words of its title; those that it has."""
    brands = catalog.items["brand"].to_pylist() if "brand" in catalog.items.column_names else [None] * len(catalog)
    return [
        [words for words in (list(filter(None, categories)), [brand] if brand else [], title.split()) if words]
        for categories, brand, title in zip(catalog.categories, brands, catalog.titles, strict=True)
    ]


def _query(sources: list[list[str]], random: np.random.Generator) -> str:
    """One to three words, in their order, of one of the sources."""
    words = sources[random.integers(len(sources))]
    places = np.sort(random.permutation(len(words))[: random.integers(1, 4)])
    return " ".join(words[place] for place in places)
