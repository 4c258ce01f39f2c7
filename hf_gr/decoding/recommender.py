"""The recommender: a model with its tokenizer, catalogue and vocabulary, and one call that answers with items."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..catalog import SidCatalog
from ..dataset import Histories
from ..grammar import ItemFilter
from ..offline import resolve
from ..vocabulary import SidVocabulary, encode_text
from .search import search


logger = logging.getLogger(__name__)


class Recommender:
    """Answers histories with items.

    Args:
        model: Causal LM with the SID tokens.
        tokenizer: Saved with it.
        catalog: Items and their SIDs; its fingerprint must be the one the vocabulary was made for.
        vocabulary: Of the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        catalog: SidCatalog,
        vocabulary: SidVocabulary,
    ):
        vocabulary.check(catalog, tokenizer, model.config.name_or_path or "the model")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.catalog, self.vocabulary = catalog, vocabulary
        self.grammar = catalog.grammar().to(model.device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str | None = None,
        revision: str | None = None,
    ) -> "Recommender":
        """Loads a model folder or Hub repo; onto a GPU where there is one unless `device` says otherwise."""
        path = resolve(str(path))
        vocabulary, catalog = SidVocabulary.load(path, revision), SidCatalog.load(path, revision)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, revision=revision)
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device or default), tokenizer, catalog, vocabulary)

    def recommend(
        self,
        histories: Histories,
        *,
        top_k: int = 10,
        num_beams: int = 50,
        exclude: Sequence[np.ndarray | None] | None = None,
        allow: Sequence[np.ndarray | None] | None = None,
        queries: Sequence[str | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items after each of B histories, fed as one batch.

        Args:
            histories: Items as catalogue rows, oldest first; the most recent `vocabulary.max_history` are used. An
                empty history is a cold user.
            top_k: Items wanted; `num_beams` is raised to it.
            num_beams: Width of the search.
            exclude: Rows of the catalogue that are no answer, per history.
            allow: Rows that alone are answers, per history (`None` entries: all).
            queries: Free text put before each history.

        Returns:
            Items int64 [B, top_k] and scores float32 [B, top_k] (log-probability of the SID under the grammar), best
            first: min(top_k, live items) distinct items, then −1 and −inf.
        """
        prompts = self.prompts(histories, queries)
        items = np.full((len(prompts), top_k), -1, np.int64)
        scores = np.full((len(prompts), top_k), -np.inf, np.float32)
        item_filter, rows = None, np.arange(len(prompts))
        if exclude is not None or allow is not None:
            item_filter = self.grammar.filter(exclude if exclude is not None else [None] * len(prompts), allow)
            rows = (self.grammar.live_items(item_filter) > 0).nonzero()[:, 0].cpu().numpy()
            item_filter = item_filter.rows(torch.from_numpy(rows).to(self.grammar.device))
        if len(rows) < len(prompts):
            logger.warning(
                "%d request(s) leave no item to answer with: their lists are empty.", len(prompts) - len(rows)
            )
        if len(rows):
            beams = search(
                self.model,
                [prompts[row] for row in rows],
                self.grammar,
                self.vocabulary,
                num_beams=max(top_k, num_beams),
                item_filter=item_filter,
            )
            items[rows], scores[rows] = self._items(beams.states, beams.scores, item_filter, top_k)
        return items, scores

    def prompts(self, histories: Histories, queries: Sequence[str | None] | None = None) -> list[list[int]]:
        """Token ids of each prompt: the query's text, then the history."""
        prompts = self.vocabulary.prompts(histories, self.catalog)
        if queries is None:
            return prompts
        texts = [encode_text(self.tokenizer, query) if query else [] for query in queries]
        return [text + prompt for text, prompt in zip(texts, prompts, strict=True)]

    def _items(
        self, states: torch.Tensor, scores: torch.Tensor, item_filter: ItemFilter | None, top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Opens the SIDs' buckets in order: items and scores [B, top_k]."""
        batch, width = states.shape
        rows = None
        if item_filter is not None:
            rows = item_filter.rows(torch.arange(batch, device=states.device).repeat_interleave(width))
        items = self.grammar.items(states.reshape(-1, 1), rows).view(batch, -1)
        scores = scores[..., None].expand(batch, width, items.shape[1] // width).reshape(batch, -1)
        order = (items < 0).sort(dim=1, stable=True).indices[:, :top_k]  # answers first, their order kept
        items, scores = (
            items.gather(1, order),
            scores.gather(1, order).masked_fill(items.gather(1, order) < 0, -torch.inf),
        )
        missing = top_k - items.shape[1]
        items = torch.nn.functional.pad(items, (0, missing), value=-1)
        scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
        return items.cpu().numpy(), scores.float().cpu().numpy()
