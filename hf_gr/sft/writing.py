"""How items and texts are written as trunks and answers, which all tasks share."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..branches import IGNORED
from ..catalog import SidCatalog
from ..errors import HfGrError
from ..references import references
from ..vocabulary import SidVocabulary, text_ids
from .rows import Answers, lists, matrix, rows_of


@dataclass(frozen=True)
class RowVocabulary(SidVocabulary):
    """A vocabulary that writes [`~hf_gr.references.references`] for the codes of items: rows written with it stay true
    when items get other codes. All other tokens are as they were."""

    @classmethod
    def of(cls, vocabulary: SidVocabulary) -> Self:
        """Makes it of a model's vocabulary."""
        return cls(**{field.name: vars(vocabulary)[field.name] for field in fields(vocabulary)})

    def item_tokens(self, catalog: SidCatalog, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Returns references to the codes of some items, as the parent does their tokens: int64 [n, L]."""
        return references(np.arange(len(catalog))[items], self.num_levels)


def answer_tokens(vocabulary: SidVocabulary, catalog: SidCatalog, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how items are written as answers of training rows ([`SidVocabulary.answers`]), int64 [n, A] each.

    Codes of a set are chosen their order while they are trained. Here the last level stands first, so that no set is
    mistaken for the next item of a history, whose columns could not be written anew.
    """
    tokens, labels = vocabulary.answers(catalog, items)
    return (tokens[:, ::-1], labels[:, ::-1]) if vocabulary.sid_form.sets else (tokens, labels)


def texts_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_text: int) -> list[list[int]]:
    """Token ids of every text, at most `max_text` each."""
    found = [text_ids(tokenizer, text)[:max_text] for text in texts]
    if found and not any(token != tokenizer.unk_token_id for tokens in found for token in tokens):
        raise HfGrError(
            "the task needs texts, but items have none or the model reads none; set text: true or drop it."
        )
    return found


def filled(entries: Sequence[Sequence]) -> np.ndarray:
    """Which of n entries hold anything, bool [n]."""
    return np.array([len(entry) > 0 for entry in entries], bool)


def text_answers(
    texts: list[list[int]], marker: list[int], tokenizer: PreTrainedTokenizerBase, items: np.ndarray
) -> Answers:
    """Tokens and labels of answers that are texts of some items, after an unlabelled marker and before the end-of-text
    token."""
    end = tokenizer.eos_token_id
    if end is None:
        raise HfGrError(f"the tokenizer of {tokenizer.name_or_path} has no eos_token, with which texts end; set it.")
    tokens = lists([[*marker, *text, end] for text in texts])
    labels = lists([[IGNORED] * len(marker) + [*text, end] for text in texts])
    return tokens.take(items), labels.take(items)


def of_items(items: np.ndarray, trunks: pa.LargeListArray, answers: Answers) -> Dataset:
    """One row for each of some items: its trunk (of `trunks`, one for every item) and its answer."""
    return rows_of(lists([[]] * len(items)), trunks, (items, items + 1), np.arange(len(items)), items + 1, answers)


def sids(vocabulary: SidVocabulary, catalog: SidCatalog, items: np.ndarray) -> Answers:
    """Answers that are the SIDs of n items (see [`answer_tokens`])."""
    tokens, labels = answer_tokens(vocabulary, catalog, items)
    return matrix(tokens), matrix(labels)
