"""By which path an item was written: which code first, what it stands for in words, how sure the model was of it, and
whether the codes agree with each other (REG4Rec)."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from .branches import Packed, Row, separate
from .catalog import SidCatalog
from .dataset import Histories
from .decoding import Recommender, tree_support
from .decoding.reflection import Reflection
from .errors import HfGrError
from .models import answer_logits, confident_orders, last_hidden
from .models.feedback import read_thoughts
from .packing import pack
from .vocabulary import SidVocabulary


_WORDS = 6  # of a code or cluster that are told
_TOLD_AT_ONCE = 128  # classes whose words are weighed in one go, each against the whole vocabulary


@dataclass(frozen=True)
class Step:
    """One code of an item as it was written.

    Attributes:
        codebook: Its codebook (level), from 1.
        code: Its number there.
        words: What tells the items that carry it from those of the codebook's other codes, the most telling first;
            none on a digit level, whose codes mean nothing.
        confidence: Its probability among all that could be written here, that is, with which some live item continues.
        consistency: Of the codes up to this one ([`~hf_gr.decoding.reflection.Reflection`]): 1 for the first; `None`
            where items have no categories to tell it by.
    """

    codebook: int
    code: int
    words: list[str]
    confidence: float
    consistency: float | None


@dataclass(frozen=True)
class Path:
    """The codes of one recommended item, in the order written.

    Attributes:
        item: Row of the catalog.
        steps: One for each code.
    """

    item: int
    steps: list[Step]

    def described(self) -> list[dict[str, Any]]:
        """As the pipeline returns it: every [`Step`] as a dict."""
        return [asdict(step) for step in self.steps]


class Paths:
    """Tells the paths of a recommender's answers; threads may share it.

    What codes mean is found out at the first answer that is explained, once for a state of the catalog.

    Args:
        recommender: Of any model.
    """

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender
        self._meanings = _Meanings()

    def serving(self, recommender: Recommender) -> Self:
        """The same for another state of the recommender (a [`Recommender.snapshot`]); what codes mean is shared."""
        other = copy.copy(self)
        other.recommender = recommender
        return other

    @torch.no_grad()
    def explain(
        self, histories: Histories, items: np.ndarray, queries: Sequence[str | None] | None = None
    ) -> list[list[Path]]:
        """The paths of answers, in one forward pass: each prompt is read once, its answers are its branches.

        An unordered item may be written in every order of its codes; told is the most confident one, that begins with
        the code that the model is surest of and goes on so ([`confident_orders`], some C small passes more). For a
        model that takes no mask of ours ([`tree_support`]) it is the order of the codebooks. All other forms have
        that order anyway. Confidence is among all live items, whatever a request's filters left of them; so, where
        nothing was filtered, the product over a path in the order of the levels is the item's probability.

        Args:
            histories: Of B users, as [`Recommender.recommend`] has them.
            items: int64 [B, K], live rows of the catalog; −1 where a list has ended.
            queries: As there.

        Returns:
            For each user the path of every item, in order.

        Raises:
            HfGrError: On an item that was removed, which cannot be written.
        """
        lists: list[list[Path]] = [[] for _ in range(len(items))]
        users, chosen = np.nonzero(items >= 0)[0], items[items >= 0]
        if not len(chosen):
            return lists
        recommender = self.recommender.snapshot()
        catalog = recommender.catalog
        if not catalog.live[chosen].all():
            gone = catalog.item_ids[chosen[~catalog.live[chosen]][0]]
            raise HfGrError(f"item {gone!r} was removed and cannot be written: there is no path to explain it by.")
        numbers, confidence = _written(recommender, packed_items(recommender, histories, items, queries))
        meaning = self._meanings.of(catalog)
        consistency = meaning.consistency(numbers)
        first = np.concatenate([[0], np.cumsum(catalog.codebook_sizes)])
        for row, (user, item) in enumerate(zip(users.tolist(), chosen.tolist(), strict=True)):
            steps = []
            for step, number in enumerate(numbers[row].tolist()):
                codebook = int(np.searchsorted(first, number, side="right")) - 1
                code = number - int(first[codebook])
                agreement = None if consistency is None else consistency[row, step].item()
                words = meaning.words[codebook][code]
                steps.append(Step(codebook + 1, code, words, confidence[row, step].item(), agreement))
            lists[user].append(Path(item, steps))
        return lists


def packed_items(
    recommender: Recommender, histories: Histories, items: np.ndarray, queries: Sequence[str | None] | None = None
) -> Packed:
    """Prompts with items as their answers, thinking tokens among them where the form has some; the codes are labels.

    Args:
        recommender: Its prompts, on its model's device.
        histories: Of B users.
        items: int64 [B, K], −1 where a list has ended; at least one is not.
        queries: As for [`Recommender.prompts`].

    Returns:
        An answer for every item ≥ 0, one user after the other, codes in the order of the codebooks: on branches of
        their prompt, or, for models that take no mask of ours, on rows of their own.
    """
    vocabulary, model = recommender.vocabulary, recommender.model
    prompts = recommender.prompts(histories, queries)
    rows = [
        _row(vocabulary, recommender.catalog, prompt, own[own >= 0])
        for prompt, own in zip(prompts, items, strict=True)
        if own.max() >= 0
    ]
    if not tree_support(model, max(map(len, prompts)) + vocabulary.widths[1], training=True)[0]:
        rows = [single for row in rows for single in separate(row)]
    return pack(rows, think_ids=vocabulary.think_ids).to(model.device)


def hidden_of(model: PreTrainedModel, packed: Packed, feed: nn.Linear | None) -> torch.Tensor:
    """Last hidden states float [B·T, d] of packed rows; `feed`: what thoughts are fed back by, if they are."""
    if feed is None:
        hidden = last_hidden(model, **packed.inputs(model.config._attn_implementation, model.dtype))
    else:
        hidden = read_thoughts(model, packed, feed)
    return hidden.flatten(0, 1)


class ItemWords:
    """The words of live items' titles and categories (of a seeded sample of very many), to tell classes of them by.

    Attributes:
        codes: int [n, L], SIDs of the items that were read.
    """

    def __init__(self, catalog: SidCatalog) -> None:
        from .quantizers.clusters import sampled, word_counts  # scikit-learn takes a second to import

        rows = sampled(np.flatnonzero(catalog.live), seed=0)
        named = [name for name in ("title", "categories") if name in catalog.items.column_names]
        self.codes = catalog.codes[rows]
        self._counts, self._words = word_counts(catalog.items.select(named).take(rows))

    def telling(self, classes: np.ndarray, count: int) -> list[list[str]]:
        """Six words of each of the classes 0 … count − 1, given the class of every item, int [n]; see
        [`telling_words`]."""
        from .quantizers.clusters import telling_words

        found: list[list[str]] = []
        for start in range(0, count, _TOLD_AT_ONCE):
            wanted = range(start, min(start + _TOLD_AT_ONCE, count))
            found += telling_words(self._counts, classes, self._words, wanted, _WORDS)
        return found


class _Meaning(NamedTuple):
    """What the codes of one catalog stand for: words by codebook and code, and how well they go together."""

    catalog: SidCatalog
    words: list[list[list[str]]]
    reflection: Reflection | None

    def consistency(self, numbers: torch.Tensor) -> torch.Tensor | None:
        """Of the codes up to each of int64 [n, C], float32 [n, C]."""
        if self.reflection is None:
            return None
        return torch.stack([self.reflection.consistency(numbers[:, : n + 1]) for n in range(numbers.shape[1])], 1)


class _Meanings:
    """The meaning of the catalog's codes, made when it is asked for and kept until the catalog is another."""

    def __init__(self) -> None:
        self._known: _Meaning | None = None

    def of(self, catalog: SidCatalog) -> _Meaning:
        known = self._known
        if known is None or known.catalog is not catalog:
            known = self._known = _Meaning(catalog, _code_words(catalog), _reflection(catalog))
        return known


def _code_words(catalog: SidCatalog) -> list[list[list[str]]]:
    items = ItemWords(catalog)
    words = [items.telling(items.codes[:, level], size) for level, size in enumerate(catalog.codebook_sizes)]
    if catalog.collisions == "digit":
        words[-1] = [[] for _ in words[-1]]
    return words


def _reflection(catalog: SidCatalog) -> Reflection | None:
    try:
        return Reflection.of(catalog, 0)
    except HfGrError:  # nothing else than categories can be missing
        return None


def _written(recommender: Recommender, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """Of n answers the codes' numbers, counted through all codebooks, in the order written, int64 [n, C], and their
    probabilities, float32 [n, C]; on the CPU."""
    model, grammar, thinking = recommender.model, recommender.grammar, recommender.thinking
    if recommender.vocabulary.sid_form.sets and not packed.simple:  # on branches, which can be written anew
        everything = torch.ones(len(packed.labels), dtype=torch.bool, device=packed.labels.device)
        packed = packed.reordered(everything, confident_orders(model, packed, everything, grammar))
    hidden = hidden_of(model, packed, None if thinking is None else thinking.feed)
    logits, options = answer_logits(model, hidden[packed.predictors], packed.labels, grammar)
    confidence = [step.softmax(1).gather(1, own[:, None]) for step, own in zip(logits, options, strict=True)]
    return grammar.code_numbers(packed.labels).cpu(), torch.cat(confidence, 1).cpu()


def _row(vocabulary: SidVocabulary, catalog: SidCatalog, prompt: list[int], items: np.ndarray) -> Row:
    """A prompt with some items as its answers. Answers begin with what ends the prompt."""
    tokens, labels = vocabulary.answers(catalog, items)
    trunk = prompt[: len(prompt) - len(vocabulary.sid_form.ending(vocabulary))]
    return Row(
        input_ids=trunk,
        attach=[len(trunk)] * len(items),
        answers=tokens.tolist(),
        labels=labels.tolist(),
        weights=[1.0] * len(items),
    )
