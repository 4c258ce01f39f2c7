"""How items and texts are written as trunks and answers, which all tasks share."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..branches import IGNORED
from ..catalog import SidCatalog
from ..errors import HfGrError
from ..vocabulary import SidVocabulary, encode_text
from .rows import Answers, lists, matrix, rows_of


def answer_tokens(vocabulary: SidVocabulary, catalog: SidCatalog, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How items are written as answers, by the vocabulary's form.

    Args:
        vocabulary: Of form `"flat"` (the L codes), `"stepwise"` (think₀ s₀ think₁ s₁ …), `"upfront"` (think₀ … then
            s₀ …) or `"unordered"` (the codes, whose order is chosen while they are trained: here last level first,
            so that none is mistaken for the next item of a history, whose columns could not be written anew), or
            `"recursive"` (no token, as codes are read from the history's last item alone).
        catalog: Whose codes these are.
        items: int64 [n], rows of the catalogue.

    Returns:
        Tokens int64 [n, A], and labels int64 [n, A]: the same, but −100 on thinking tokens, which are forced; in the
        form `"recursive"` labels alone, and tokens [n, 0].
    """
    codes = vocabulary.item_tokens(catalog, items)
    thoughts = np.broadcast_to(np.array(vocabulary.think_ids, np.int64), codes.shape)
    ignored = np.full_like(codes, IGNORED)
    if vocabulary.form == "flat":
        return codes, codes
    if vocabulary.form == "stepwise":
        return _interleaved(thoughts, codes), _interleaved(ignored, codes)
    if vocabulary.form == "unordered":
        return codes[:, ::-1], codes[:, ::-1]
    if vocabulary.form == "recursive":
        return codes[:, :0], codes
    return np.concatenate([thoughts, codes], axis=1), np.concatenate([ignored, codes], axis=1)


def texts_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_text: int) -> list[list[int]]:
    """Token ids of every text, at most `max_text` each."""
    found = [encode_text(tokenizer, text)[:max_text] for text in texts]
    if found and not any(token != tokenizer.unk_token_id for tokens in found for token in tokens):
        raise HfGrError(
            "the task needs texts, but items have none or the model reads none; set text: true or drop it."
        )
    return found


def filled(entries: Sequence[Sequence]) -> np.ndarray:
    """Which of n entries hold anything, bool [n]."""
    return np.array([len(entry) > 0 for entry in entries], bool)


def named(texts: list[list[int]], marker: list[int], tokenizer: PreTrainedTokenizerBase, items: np.ndarray) -> Answers:
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


def _interleaved(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n, 2 L] of two [n, L]: a column of the one, then of the other."""
    return np.stack([one, other], axis=2).reshape(len(one), 2 * one.shape[1])
