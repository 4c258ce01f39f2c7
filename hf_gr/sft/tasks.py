"""What SFT learns from: tasks as plain functions that return rows of trunks and answers (see [`branches`]).

Every task reads the training part only, and no removed item is ever an answer, though it stays in histories. Columns
of every data set: those of [`branches.Row`].
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from ..branches import IGNORED
from ..catalog import SidCatalog
from ..dataset import Cases, Histories
from ..errors import HfGrError
from ..vocabulary import SidVocabulary


_TOKENS = List(Value("int64"))
FEATURES = Features(
    {
        "input_ids": _TOKENS,
        "attach": _TOKENS,
        "answers": List(_TOKENS),
        "labels": List(_TOKENS),
        "weights": List(Value("float64")),
    }
)


def answer_tokens(vocabulary: SidVocabulary, catalog: SidCatalog, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How items are written as answers, by the vocabulary's form.

    Args:
        vocabulary: Of form `"flat"` (the L codes), `"stepwise"` (think₀ s₀ think₁ s₁ …) or `"upfront"` (think₀ … then
            s₀ …).
        catalog: Whose codes these are.
        items: int64 [n], rows of the catalogue.

    Returns:
        Tokens int64 [n, A], and labels int64 [n, A]: the same, but −100 on thinking tokens, which are forced.

    Raises:
        HfGrError: For form `"unordered"`, whose order is chosen while it is trained.
    """
    codes = vocabulary.item_tokens(catalog, items)
    thoughts = np.broadcast_to(np.array(vocabulary.think_ids, np.int64), codes.shape)
    ignored = np.full_like(codes, IGNORED)
    if vocabulary.form == "flat":
        return codes, codes
    if vocabulary.form == "stepwise":
        return _interleaved(thoughts, codes), _interleaved(ignored, codes)
    if vocabulary.form == "upfront":
        return np.concatenate([thoughts, codes], axis=1), np.concatenate([ignored, codes], axis=1)
    raise HfGrError(f"SFT does not train form {vocabulary.form!r}; use flat, stepwise or upfront.")


def next_item(
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    *,
    steps: int = 1,
    decay: float = 0.5,
    prompt: Sequence[int] = (),
) -> Dataset:
    """Every training event as a target once, all positions of a history in one row.

    A history is cut from its end into windows of `max_history` + 1 events, so that the longest prompt that is asked at
    inference is also the longest that was trained; each is the trunk `<items>` + events. Rows without any target are
    left out.

    Args:
        train: Items as catalogue rows.
        catalog, vocabulary: Of the model.
        steps: The items of how many events after a position are its targets (within the window).
        decay: The k-th of them weighs decay**(k − 1).
        prompt: Token ids ([`encode_text`]) that stand before `<items>`, once a row; at inference give the same text as
            the query.
    """
    if steps < 1 or not 0 < decay <= 1:
        raise HfGrError(f"steps is {steps} and decay {decay}; use at least 1 step and a decay above 0, up to 1.")
    first, last = _windows(train, vocabulary.max_history + 1)
    row, position, target, step = _following(first, last, catalog.live[train.items], steps)
    return _rows(
        _lists([[*prompt, vocabulary.start_id]] * len(first)),
        _matrix(vocabulary.event_tokens(train, catalog)),
        (first, last),
        row,
        position,
        _sids(vocabulary, catalog, train.items[target]),
        decay**step,
    )


def held_out(cases: Cases, catalog: SidCatalog, vocabulary: SidVocabulary, *, prompt: Sequence[int] = ()) -> Dataset:
    """One row per case: its prompt, and its target as the only answer; for the evaluation loss in training.

    Cases whose target was removed are left out. `prompt` as in [`next_item`].
    """
    histories = cases.histories
    kept = np.flatnonzero(catalog.live[cases.targets])
    last = histories.ptr[1:][kept]
    first = np.maximum(histories.ptr[:-1][kept], last - vocabulary.max_history)
    return _rows(
        _lists([[*prompt, vocabulary.start_id]] * len(kept)),
        _matrix(vocabulary.event_tokens(histories, catalog)),
        (first, last),
        np.arange(len(kept)),
        last,
        _sids(vocabulary, catalog, cases.targets[kept]),
        np.ones(len(kept)),
    )


def _windows(histories: Histories, length: int) -> tuple[np.ndarray, np.ndarray]:
    """First event of windows of at most `length` events that cover every history, counted from its end, and the event
    after their last; int64 [rows], users in order, of each the latest window first."""
    counts = -(-histories.lengths // length)
    number = _ranges(np.zeros_like(counts), counts)
    last = np.repeat(histories.ptr[1:], counts) - number * length
    return np.maximum(np.repeat(histories.ptr[:-1], counts), last - length), last


def _following(
    first: np.ndarray, last: np.ndarray, live: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Targets of every position of windows `first:last` of events, those of one position together.

    Returns:
        int64 [n] each: row (number of the window), position (the event that the history ends before), target (an event
        of the window that is `live`, at most `steps` − 1 after the position), and how many after.
    """
    row, position = np.repeat(np.arange(len(first)), last - first), _ranges(first, last)
    target = position[:, None] + np.arange(steps)
    inside = target < last[row][:, None]
    place, step = (inside & live[np.where(inside, target, 0)]).nonzero()
    return row[place], position[place], target[place, step], step


def _rows(
    fronts: pa.ListArray,
    events: pa.ListArray,
    windows: tuple[np.ndarray, np.ndarray],
    row: np.ndarray,
    position: np.ndarray,
    answers: tuple[pa.ListArray, pa.ListArray],
    weights: np.ndarray,
) -> Dataset:
    """Rows whose trunk is a front and the tokens of a window of events.

    Args:
        fronts: Tokens that open each row.
        events: Tokens of every event.
        windows: First event of every row and the one after its last.
        row: int64 [n], ascending: which row each answer belongs to. Rows without one are left out.
        position: int64 [n], the event before which the answer is attached.
        answers: Tokens and labels of the n answers.
        weights: float64 [n].
    """
    counts = np.bincount(row, minlength=len(fronts))
    before = _offsets(events.value_lengths())
    opened = fronts.value_lengths().to_numpy()
    attach = opened[row] + before[position] - before[windows[0][row]]
    kept = np.flatnonzero(counts)
    first, last, fronts = windows[0][kept], windows[1][kept], fronts.take(kept)
    read = _offsets(before[last] - before[first])
    flat = events.take(_ranges(first, last)).flatten().to_numpy()
    trunks = np.insert(flat, np.repeat(read[:-1], opened[kept]), fronts.flatten().to_numpy())
    by_row = _offsets(counts[kept])
    columns = {
        "input_ids": _split(trunks, read + _offsets(opened[kept])),
        "attach": _split(attach, by_row),
        "answers": _split(answers[0], by_row),
        "labels": _split(answers[1], by_row),
        "weights": _split(weights, by_row),
    }
    return Dataset.from_dict(columns, features=FEATURES)


def _sids(vocabulary: SidVocabulary, catalog: SidCatalog, items: np.ndarray) -> tuple[pa.ListArray, pa.ListArray]:
    tokens, labels = answer_tokens(vocabulary, catalog, items)
    return _matrix(tokens), _matrix(labels)


def _interleaved(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n, 2 L] of two [n, L]: a column of the one, then of the other."""
    return np.stack([one, other], axis=2).reshape(len(one), 2 * one.shape[1])


def _ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The numbers of every range `first:last`, one range after the other."""
    lengths = last - first
    return np.arange(lengths.sum()) + np.repeat(first - _offsets(lengths)[:-1], lengths)


def _offsets(lengths: np.ndarray | pa.Array) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _split(values: np.ndarray | pa.Array, offsets: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _matrix(values: np.ndarray) -> pa.ListArray:
    """The rows of an array [n, m] as lists."""
    return _split(values.ravel(), np.arange(len(values) + 1) * values.shape[1])


def _lists(lists: Iterable[Sequence[int]]) -> pa.ListArray:
    return pa.array(lists, pa.list_(pa.int64()))
