"""What a reward is asked (a batch of rollouts) and what it may know of the items."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ..catalog import SidCatalog
from ..categories import category_names, code_categories, item_categories
from ..dataset import Histories, popularity
from ..embedding.behavior import cooccurrence
from ..embedding.store import ItemVectors, items_fingerprint
from ..errors import HfGrError
from ..interests import Interests
from ..quantizers.metrics import unit_rows


WINDOW = 5  # events apart, as where behavior vectors are made

Reward = Callable[..., np.ndarray]  # reward(rollouts, items, **parameters) -> float64 [P, G]


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What the policy answered to P prompts, G times each.

    Attributes:
        items: int64 [P, G], catalog rows; −1 where a rollout is no item.
        targets: int64 [P, n], the next n items that the user took; the first one, *the* target, is always there, later
            ones are −1 where the user has fewer.
        scores: float64 [P, G], log-probability of each rollout when it was drawn.
        taken: int64 [P, n], items of each prompt's history, −1 after the last; `None` where that is not known.
    """

    items: np.ndarray
    targets: np.ndarray
    scores: np.ndarray
    taken: np.ndarray | None = None

    @property
    def target(self) -> np.ndarray:
        """The target beside the rollouts, int64 [P, 1]."""
        return self.targets[:, :1]

    @property
    def valid(self) -> np.ndarray:
        """Which rollouts are an item, bool [P, G]."""
        return self.items >= 0

    @property
    def hits(self) -> np.ndarray:
        """Which rollouts are the target, bool [P, G]."""
        return self.valid & (self.items == self.target)


@dataclass(frozen=True, eq=False)
class ItemKnowledge:
    """What rewards know of N items. Made by [`of`]; each part is computed when a reward first asks for it.

    Everything that comes from how items are used is of the training part alone.

    Attributes:
        catalog: The items and their SIDs.
        train: Histories of the training part, in rows of the catalog.
        embeddings: Folder of `hf-gr embed`, if there is one.
        mined: Mined interests, if there are any; else an item's categories are its interests.
        quality: float64 [N], how good the interests of each item are (q of [`~hf_gr.rewards.interest`]); 1 without
            mined ones.
    """

    catalog: SidCatalog
    train: Histories
    embeddings: str | Path | None
    mined: Interests | None
    quality: np.ndarray

    @classmethod
    def of(
        cls,
        catalog: SidCatalog,
        train: Histories,
        embeddings: str | Path | None = None,
        interests: Interests | None = None,
    ) -> "ItemKnowledge":
        """Knowledge of the items of a catalog.

        Args:
            catalog: The items and their SIDs.
            train: Histories of the training part, and nothing else, in rows of the catalog.
            embeddings: Folder of `hf-gr embed` with the vectors of just these items; without it an item's vector is
                made of its codes.
            interests: Mined ones, best labelled (`hf-gr label`); those of items that the catalog lacks are skipped.

        Raises:
            HfGrError: If events name other rows than the catalog's, or the interests none of its items.
        """
        if len(train.items) and not 0 <= train.items.min() <= train.items.max() < len(catalog):
            raise HfGrError(
                f"the training events name item rows {train.items.min()} to {train.items.max()}, but the catalog "
                f"has {len(catalog)} items; align the dataset with InteractionDataset.aligned(catalog.item_ids)."
            )
        if interests is None:
            return cls(catalog, train, embeddings, None, np.ones(len(catalog)))
        if not any(interests.of_items(catalog.item_ids)):
            raise HfGrError(
                "the interests name no item of the catalog; give those that were mined on the same dataset."
            )
        return cls(catalog, train, embeddings, interests.items.accepted, interests.quality(catalog.item_ids))

    def __len__(self) -> int:
        return len(self.catalog)

    @cached_property
    def codes(self) -> np.ndarray:
        """SIDs, int64 [N, L]."""
        return self.catalog.codes.astype(np.int64)

    @property
    def categories(self) -> list[list[str]]:
        """Categories of each item."""
        return self.catalog.categories

    @cached_property
    def vectors(self) -> np.ndarray:
        """Item vectors of length 1 (zero vectors stay zero), float32 [N, d].

        Those of the embeddings folder; without one, the sum of the code vectors of an item's codes, in which a digit
        that only tells items of one SID apart has no part [ours].

        Raises:
            HfGrError: If the folder holds other items' vectors, or there are neither embeddings nor code vectors.
        """
        if self.embeddings is not None:
            return unit_rows(self._embedded(self.embeddings))
        if not self.catalog.code_vectors:
            raise HfGrError(
                "items have no vectors: the catalog holds no code vectors; name the folder of `hf-gr embed` as "
                "embeddings, or leave out the rewards that compare vectors."
            )
        meaning = self.catalog.num_levels - (self.catalog.collisions == "digit")
        return unit_rows(sum(self.catalog.code_vectors[level][self.codes[:, level]] for level in range(meaning)))

    def _embedded(self, folder: str | Path) -> np.ndarray:
        """The folder holds no ids, only the fingerprint of their list, so the order must be the same."""
        found = ItemVectors.load(folder)
        recorded = found.info.get("items_fingerprint")  # vectors from elsewhere need not have it
        if len(found) != len(self) or recorded not in (None, items_fingerprint(self.catalog.item_ids)):
            raise HfGrError(
                f"{folder} holds the vectors of {len(found)} items, but not of the {len(self)} items of the "
                "catalog, in their order; give the embeddings that the catalog was made from."
            )
        return found.vectors

    @cached_property
    def popularity(self) -> np.ndarray:
        """Training events of each item, int64 [N]."""
        return popularity(self.train, len(self))

    @cached_property
    def together(self) -> sp.csr_array:
        """How often two items stand near each other in the training histories, float64 [N, N], between 0 and 1.

        c_ij / √(c_i·c_j), with the counts c_ij of [`cooccurrence`] and c_i their sum over j: the Â of METHODS §1. The
        diagonal is empty. Values are small (an item's neighbours share its weight) [form ours].
        """
        counts = cooccurrence(self.train, len(self), WINDOW)
        sums = np.asarray(counts.sum(axis=1), np.float64)
        scale = sp.diags_array(np.divide(1.0, np.sqrt(sums), out=np.zeros_like(sums), where=sums > 0))
        return (scale @ counts @ scale).tocsr()

    @cached_property
    def category_names(self) -> list[str]:
        """As [`category_names`]."""
        return category_names(self.catalog)

    @cached_property
    def interests(self) -> sp.csr_array:
        """Which item has which interest, 0/1 float64 [N, V]: the accepted ones, or categories if none are mined."""
        if self.mined is not None:
            return self.mined.matrix(self.catalog.item_ids)
        return self._by_category

    @cached_property
    def _by_category(self) -> sp.csr_array:
        """Which item is of which category, 0/1 float64 [N, categories]."""
        column = {name: place for place, name in enumerate(self.category_names)}
        pairs = [(row, column[name]) for row, names in enumerate(self.categories) for name in set(names)]
        rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
        return sp.coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(self), len(column))).tocsr()

    @cached_property
    def rarity(self) -> np.ndarray:
        """idf of each interest, float64 [V]: log(N / items that have it); 0 where every item has it."""
        return np.log(len(self) / np.maximum(self.interests.sum(axis=0), 1))

    @cached_property
    def category(self) -> np.ndarray:
        """The one category of each item, int64 [N], −1 where it has none: [`item_categories`]."""
        return item_categories(self.catalog)

    @cached_property
    def token_category(self) -> list[np.ndarray]:
        """Category of each code, L arrays int64 [K_l], −1 where it has none: [`code_categories`]."""
        return code_categories(self.catalog)

    def name(self, row: int) -> str:
        """How an item is called in messages."""
        return f"item {self.catalog.item_ids[row]!r}" if row >= 0 else "no item"
