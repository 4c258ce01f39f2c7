"""Training rows from histories."""

from collections.abc import Iterator

import numpy as np
from datasets import Dataset

from ..catalog import SidCatalog
from ..dataset import Cases, Histories
from ..vocabulary import SidVocabulary


IGNORED = -100


def next_item_rows(train: Histories, catalog: SidCatalog, vocabulary: SidVocabulary) -> Dataset:
    """Every training event as a target once, all positions of a history in one row.

    A history is cut from its end into windows of `max_history` + 1 events, so that the longest prompt that is asked at
    inference is also the longest that was trained. Columns `input_ids` and `labels` (lists of int); labels are the SID
    tokens, −100 on `<items>`, on context tokens, and on items that were removed from the catalogue.
    """
    tokens = vocabulary.event_tokens(train, catalog)
    labels = _labels(tokens, vocabulary.num_levels, catalog.live[train.items])

    def rows() -> Iterator[dict[str, list[int]]]:
        for start, end in zip(train.ptr[:-1], train.ptr[1:], strict=True):
            for first, last in _windows(start, end, vocabulary.max_history + 1):
                yield {
                    "input_ids": [vocabulary.start_id, *tokens[first:last].ravel().tolist()],
                    "labels": [IGNORED, *labels[first:last].ravel().tolist()],
                }

    return Dataset.from_list(list(rows()))


def held_out_rows(cases: Cases, catalog: SidCatalog, vocabulary: SidVocabulary) -> Dataset:
    """One row per case, labels on its target only (unless it was removed); for the evaluation loss in training."""
    targets = vocabulary.item_tokens(catalog)[cases.targets]
    labels = _labels(targets, vocabulary.num_levels, catalog.live[cases.targets])
    prompts = vocabulary.prompts(cases.histories, catalog)
    return Dataset.from_list(
        [
            {"input_ids": [*prompt, *target], "labels": [IGNORED] * len(prompt) + label}
            for prompt, target, label in zip(prompts, targets.tolist(), labels.tolist(), strict=True)
        ]
    )


def _labels(tokens: np.ndarray, num_levels: int, live: np.ndarray) -> np.ndarray:
    """Event tokens [E, L or L + 1] with −100 on context tokens and on items that are no answer (bool [E] `live`)."""
    labels = tokens.copy()
    labels[:, num_levels:] = IGNORED
    labels[~live] = IGNORED
    return labels


def _windows(start: int, end: int, length: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `length` that cover `start:end`, counted from the end."""
    for last in range(end, start, -length):
        yield max(start, last - length), last
