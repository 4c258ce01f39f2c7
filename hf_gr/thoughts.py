"""Reading the thoughts of a model: which items it had in mind before each code, in words, and whether that is true."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .branches import IGNORED, Row, pack, separate
from .catalog import SidCatalog
from .dataset import Histories
from .decoding import Recommender, tree_support
from .errors import HfGrError
from .models import ThinkingHeads, last_hidden
from .models.feedback import read


_TOP, _WORDS = 3, 6  # clusters of a thought and words of a cluster that are told


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
        item: Row of the catalogue.
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
    """Words of every cluster, by level and for the interest, in the titles and categories of one catalogue."""

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
        if recommender.vocabulary.form not in ("stepwise", "upfront"):
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
            items: int64 [B, K], rows of the catalogue; −1 where a list has ended.
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
        """Telling words of every cluster, made once for the catalogue that is served."""
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
        recommender, heads, model = self.recommender, self.heads, self.recommender.model
        prompts = recommender.prompts(histories, queries)
        rows = [self._row(prompt, own[own >= 0]) for prompt, own in zip(prompts, items, strict=True) if own.max() >= 0]
        if not tree_support(model, max(map(len, prompts)) + 2 * recommender.vocabulary.num_levels)[0]:
            rows = [single for row in rows for single in separate(row)]
        packed = pack(rows, think_ids=recommender.vocabulary.think_ids).to(model.device)
        if heads.feed is None:
            hidden = last_hidden(model, **packed.inputs(model.config._attn_implementation, model.dtype))
        else:
            hidden = read(model, packed, heads.feed)
        hidden = hidden.flatten(0, 1)
        codes = torch.from_numpy(recommender.catalog.codes[items[items >= 0]]).long().to(model.device)
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

    def _row(self, prompt: list[int], items: np.ndarray) -> Row:
        """A prompt with items as its answers, thoughts among them; nothing of it is a label."""
        vocabulary = self.recommender.vocabulary
        codes = vocabulary.item_tokens(self.recommender.catalog, items)
        thoughts = np.broadcast_to(np.array(vocabulary.think_ids), codes.shape)
        if vocabulary.form == "upfront":
            prompt, answers = prompt[: -vocabulary.num_levels], np.concatenate([thoughts, codes], axis=1)
        else:
            answers = np.stack([thoughts, codes], axis=2).reshape(len(items), -1)
        return Row(
            input_ids=prompt,
            attach=[len(prompt)] * len(items),
            answers=answers.tolist(),
            labels=np.full_like(answers, IGNORED).tolist(),
            weights=[1.0] * len(items),
        )


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


def _cluster_words(heads: ThinkingHeads, catalog: SidCatalog, seed: int = 0) -> _Words:
    from .quantizers.clusters import sampled, telling_words, word_counts  # scikit-learn takes a second to import

    rows = sampled(np.flatnonzero(catalog.live), seed)
    told = [name for name in ("title", "categories") if name in catalog.items.column_names]
    counts, words = word_counts(catalog.items.select(told).take(rows))
    codes = torch.from_numpy(catalog.codes[rows]).long().to(heads.centre.device)

    def of(clusters: torch.Tensor, count: int) -> list[list[str]]:
        return telling_words(counts, clusters.cpu().numpy(), words, range(count), _WORDS)

    by_level = [
        of(heads.clusters_of(level)[codes[:, level]], heads.num_clusters(level)) for level in range(heads.num_levels)
    ]
    return _Words(catalog, by_level, of(heads.interest_clusters_of(codes), len(heads.interest_centroids)))
