"""Reading the thoughts of a model: which items it had in mind before each code, in words, and whether that is true."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .catalog import SidCatalog
from .dataset import Histories
from .decoding import Recommender
from .errors import HfGrError
from .models import ThinkingHeads
from .paths import ItemWords, hidden_of, packed_items


_TOP = 3  # clusters of a thought that are told


@dataclass(frozen=True)
class PointedAt:
    """A cluster that a thought points at.

    Attributes:
        cluster: Its number.
        probability: How much of the thought is on it.
        words: What tells its items from those of the other clusters, the most telling first.
    """

    cluster: int
    probability: float
    words: list[str]


@dataclass(frozen=True)
class Thought:
    """What was thought before a code was written, or of the user as a whole, beside what was then written.

    Attributes:
        clusters: The three clusters it points at most.
        own: The cluster of the code (of the item) that was written.
    """

    clusters: list[PointedAt]
    own: PointedAt

    @property
    def agrees(self) -> bool:
        """Whether the thought points at what was written first."""
        return self.clusters[0].cluster == self.own.cluster


@dataclass(frozen=True)
class Explanation:
    """The thoughts behind one recommended item.

    Attributes:
        item: Row of the catalog.
        levels: The thought before each code; none on a digit level, whose codes mean nothing.
        interest: The user's global interest; `None` for heads without one.
    """

    item: int
    levels: list[Thought]
    interest: Thought | None

    def described(self) -> dict[str, Any]:
        """As the pipeline returns it: `levels`, each with `level` (from 1), `clusters`, `code_cluster` and `agrees`,
        and `interest` with `clusters`, `item_cluster` and `agrees`, or `None`; clusters are [`PointedAt`]s as dicts.
        """
        levels = [{"level": n} | _described(thought, "code") for n, thought in enumerate(self.levels, 1)]
        interest = None if self.interest is None else _described(self.interest, "item")
        return {"levels": levels, "interest": interest}


class _Points(NamedTuple):
    """Of n thoughts: probabilities float32 [n, Kc], and the cluster int64 [n] of what was written after each."""

    probabilities: np.ndarray
    own: np.ndarray


class _Words(NamedTuple):
    """Words of every cluster, by level and for the interest, in the titles and categories of one catalog."""

    catalog: SidCatalog
    by_level: list[list[list[str]]]
    interest: list[list[str]]


class Thoughts:
    """Reads the thoughts of a recommender; threads may share it.

    Args:
        recommender: Of a model that writes thinking tokens.
        heads: Trained with it.

    Raises:
        HfGrError: If the model writes no thinking tokens.
    """

    def __init__(self, recommender: Recommender, heads: ThinkingHeads) -> None:
        if not recommender.vocabulary.sid_form.thinks:
            raise HfGrError(
                f"this model writes items in the form {recommender.vocabulary.form!r}, without thoughts to read; "
                "train one with form: stepwise."
            )
        self.recommender = recommender
        self.heads = heads.to(recommender.model.device).eval()
        self._words: _Words | None = None

    def explain(
        self, histories: Histories, items: np.ndarray, queries: Sequence[str | None] | None = None
    ) -> list[list[Explanation]]:
        """The thoughts behind answers, in one forward pass: each prompt is read once, its answers are its branches.

        Args:
            histories: Of B users, as [`Recommender.recommend`] has them.
            items: int64 [B, K], rows of the catalog; −1 where a list has ended.
            queries: As there.

        Returns:
            For each user an explanation of every item, in order.
        """
        lists: list[list[Explanation]] = [[] for _ in range(len(items))]
        users = np.nonzero(items >= 0)[0]
        if not len(users):
            return lists
        words, chosen = self.words(), items[items >= 0]
        levels, interest = self._read(histories, items, queries)
        for number, (user, item) in enumerate(zip(users, chosen.tolist(), strict=True)):
            told = [_thought(level, number, own) for level, own in zip(levels, words.by_level, strict=True)]
            overall = None if interest is None else _thought(interest, number, words.interest)
            lists[user].append(Explanation(item, told, overall))
        return lists

    def words(self) -> _Words:
        """Telling words of every cluster, made once for the catalog that is served."""
        catalog, known = self.recommender.catalog, self._words
        if known is None or known.catalog is not catalog:
            known = self._words = _cluster_words(self.heads, catalog)
        return known

    @torch.no_grad()
    def _read(
        self, histories: Histories, items: np.ndarray, queries: Sequence[str | None] | None
    ) -> tuple[list[_Points], _Points | None]:
        """What the n items ≥ 0 of [B, K], one after the other, were preceded by: the thoughts of each level, and the
        global interest (`None` without one)."""
        recommender, heads = self.recommender, self.heads
        packed = packed_items(recommender, histories, items, queries)
        hidden = hidden_of(recommender.model, packed, heads.feed)
        codes = torch.from_numpy(recommender.catalog.codes[items[items >= 0]]).long().to(hidden.device)
        levels = [
            _points(
                heads.points_at(level, hidden[packed.thoughts[:, level]]), heads.clusters_of(level)[codes[:, level]]
            )
            for level in range(heads.num_levels)
        ]
        if heads.interest is None:
            return levels, None
        interest = heads.interest_points_at(heads.interest_of(hidden, packed))
        return levels, _points(interest, heads.interest_clusters_of(codes))


def _points(probabilities: torch.Tensor, own: torch.Tensor) -> _Points:
    return _Points(probabilities.cpu().numpy(), own.cpu().numpy())


def _thought(points: _Points, number: int, words: list[list[str]]) -> Thought:
    probabilities = points.probabilities[number].tolist()
    best = sorted(range(len(probabilities)), key=lambda cluster: -probabilities[cluster])[:_TOP]
    *first, own = [PointedAt(at, probabilities[at], words[at]) for at in (*best, int(points.own[number]))]
    return Thought(first, own)


def _described(thought: Thought, written: str) -> dict[str, Any]:
    clusters = [asdict(cluster) for cluster in thought.clusters]
    return {"clusters": clusters, f"{written}_cluster": asdict(thought.own), "agrees": thought.agrees}


def _cluster_words(heads: ThinkingHeads, catalog: SidCatalog) -> _Words:
    items = ItemWords(catalog)
    codes = torch.from_numpy(items.codes).long().to(heads.centre.device)

    def of(clusters: torch.Tensor, count: int) -> list[list[str]]:
        return items.telling(clusters.cpu().numpy(), count)

    by_level = [
        of(heads.clusters_of(level)[codes[:, level]], heads.num_clusters(level)) for level in range(heads.num_levels)
    ]
    return _Words(catalog, by_level, of(heads.interest_clusters_of(codes), len(heads.interest_centroids)))
