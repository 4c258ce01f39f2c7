"""S²GR's heads: what the hidden state at a thinking token has to mean, and how it is read.

They stand beside a plain causal LM. A level's projected thought points at the coarse cluster of the code that follows
it; a light head reads the user's global interest off the trunk. Known: K-means of code vectors into coarse clusters,
cosine softmax, InfoNCE of the global interest, agreement of the first thought with it [a reader's account of the
paper]; sizes, temperatures and the centring are our choice.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..artifacts import read_json, write_json
from ..branches import Packed
from ..catalog import SidCatalog
from ..errors import HfGrError, first_line
from ..settings import nested
from .interest import InterestHead


THINKING_FILES = ("thinking.json", "thinking.safetensors")
_READ = 20_000  # items whose target vectors are held at once; as many at most shape the interest clusters


@dataclass(frozen=True)
class ThinkingConfig:
    """Settings of [`ThinkingHeads`]; all numbers are our choice, the paper's text gives none.

    Attributes:
        clusters: Coarse clusters Kc of a level, and of the items for the global interest.
        temperature: τ of Align.
        align: λ_a, weight of Align in the loss.
        interest: λ_g, weight of the global interest's InfoNCE. 0: no such head.
        agreement: λ_r, weight of 1 − cos(first thought, global interest); 0 without `interest`.
        interest_layers: Layers of the interest head.
        interest_width: Its width, a multiple of 4 (heads).
        interest_temperature: Of InfoNCE and of reading the interest.
        feedback: What a thinking token is fed: `"token"`, its own embedding alone (a plain causal LM serves it), or
            `"hidden"`, with the previous hidden state, projected, added.

    Raises:
        HfGrError: On values that cannot be.
    """

    clusters: int = 32
    temperature: float = 0.07
    align: float = 0.3
    interest: float = 0.1
    agreement: float = 0.1
    interest_layers: int = 2
    interest_width: int = 128
    interest_temperature: float = 0.1
    feedback: Literal["token", "hidden"] = "token"

    def __post_init__(self) -> None:
        settings = asdict(self)
        for name in ("clusters", "interest_layers", "interest_width"):
            value = settings[name]
            if type(value) is not int or value < 1:
                raise HfGrError(f"thinking.{name} is {value!r}; it must be a whole number of at least 1.")
        for name in ("temperature", "interest_temperature", "align", "interest", "agreement"):
            value, positive = settings[name], name.endswith("temperature")
            if type(value) not in (int, float) or not 0 <= value < float("inf") or (positive and value == 0):
                raise HfGrError(f"thinking.{name} is {value!r}; it must be {'above' if positive else 'at least'} 0.")
        if self.interest_width % 4:
            raise HfGrError(f"thinking.interest_width is {self.interest_width}; it must be a multiple of 4.")
        if self.agreement and not self.interest:
            raise HfGrError("thinking.agreement needs the global interest; set agreement: 0, or interest above 0.")
        if self.feedback not in ("token", "hidden"):
            raise HfGrError(f"thinking.feedback is {self.feedback!r}; use 'token' or 'hidden'.")

    @classmethod
    def of_dict(cls, settings: Mapping[str, Any]) -> "ThinkingConfig":
        """From the keys of a recipe; [`HfGrError`] on one that there is not."""
        return nested(cls, settings, "thinking")


class ThinkingHeads(nn.Module):
    """The heads of a catalog with codes on L levels, the first I of which mean something (not a digit level).

    Their arithmetic is float32, also under autocast. The loss of a step is CE + `align`·Align + `interest`·InfoNCE +
    `agreement`·reg with the terms of [`forward`].

    Attributes:
        config: Settings.
        feed: Bias-free map d → d, zero at the start, of the hidden state that `feedback="hidden"` adds to a thinking
            token's embedding; else `None`.
    """

    centre: torch.Tensor  # float32 [d_c], mean target vector of the live items
    interest_centroids: torch.Tensor  # float32 [Kc, d_c], of directions from there

    def __init__(
        self,
        config: ThinkingConfig,
        hidden_size: int,
        catalog: SidCatalog,
        clusters: Sequence[tuple[torch.Tensor, torch.Tensor]],
        centre: torch.Tensor,
        interest_centroids: torch.Tensor,
    ) -> None:
        super().__init__()
        vectors = _telling_vectors(catalog)
        self.config, self.hidden_size = config, hidden_size
        self.codebooks = _codebooks_fingerprint(catalog)
        self.levels = nn.ModuleList(_Level(own, *coarse) for own, coarse in zip(vectors, clusters, strict=True))
        self.projections = nn.ModuleList(nn.Linear(hidden_size, own.shape[1]) for own in vectors)
        self.register_buffer("centre", centre)
        self.register_buffer("interest_centroids", interest_centroids)
        self.interest = (
            InterestHead(hidden_size, len(centre), config.interest_width, config.interest_layers)
            if config.interest
            else None
        )
        self.feed = nn.Linear(hidden_size, hidden_size, bias=False) if config.feedback == "hidden" else None
        if self.feed is not None:
            nn.init.zeros_(self.feed.weight)

    @classmethod
    def start(cls, config: ThinkingConfig, hidden_size: int, catalog: SidCatalog, seed: int) -> "ThinkingHeads":
        """New heads for an LM of width d = `hidden_size`.

        Coarse clusters come of K-means of each level's code vectors, those of the interest of K-means of the items'
        target vectors; both less their mean, since a direction common to all tells nobody apart, and of unit length,
        since thoughts are compared by cosine: without that, most residuals of a lower level, short and in all
        directions, fall into one cluster [ours]. Codes that no live item uses shape no cluster, but belong to the one
        of the largest cosine, as all codes do.

        Raises:
            HfGrError: If the catalog has no code vectors, no live item, or no level but a digit.
        """
        vectors = _telling_vectors(catalog)
        live = torch.from_numpy(catalog.codes[catalog.live, : len(vectors)]).long()
        if not len(live):
            raise HfGrError("the catalog has no live item whose codes could form clusters; add items to it first.")
        clusters = [
            _coarse(own, own[torch.unique(codes)], config.clusters, seed)
            for own, codes in zip(vectors, live.T, strict=True)
        ]
        targets = _target_vectors(vectors, live[_sample(len(live), seed)])
        centre = targets.mean(0)
        centroids = _kmeans(targets - centre, config.clusters, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, hidden_size, catalog, clusters, centre, centroids)

    @property
    def num_levels(self) -> int:
        """I, levels with clusters."""
        return len(self.levels)

    def forward(
        self, hidden: torch.Tensor, packed: Packed, codes: torch.Tensor, chosen: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Terms of the loss, each a mean over the targets by `packed.weights`, not yet multiplied by its λ.

        Args:
            hidden: float [B·T, d], last hidden states of all columns of the packed rows.
            packed: Thoughts stand in every chosen answer.
            codes: int64 [n, L], the codes of each answer.
            chosen: bool [n], which answers are semantic IDs: the targets; the others' codes are not read.

        Returns:
            `align`: sum over levels of the cross-entropy of softmax_k(cos(P_l h, c_{l,k})/τ) at the code's cluster.
            `interest` (where there is such a head): InfoNCE of v_g at the target's anchor with its target vector
            against those of the other targets, but for targets of the same codes: they are no negatives.
            `agreement` (likewise): 1 − cos(P_1 h, v_g), no gradient to v_g.
            `align_accuracy_1`, …: detached, share of targets whose thought points at the code's cluster first.
            Without a target all terms are 0, with a gradient of 0 for every parameter, and accuracies are NaN.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            everything = 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
            terms = {"align": everything}
            if self.interest is not None:
                terms |= {"interest": everything, "agreement": everything}
            if not chosen.any():
                nan = torch.full_like(everything.detach(), torch.nan)
                return terms | {f"align_accuracy_{level + 1}": nan for level in range(self.num_levels)}
            own, thoughts = codes[chosen, : self.num_levels], hidden[packed.thoughts[chosen]]
            shares = packed.weights[chosen] / packed.weights[chosen].sum().clamp(min=1e-9)
            for level in range(self.num_levels):
                logits, cluster = self._logits(level, thoughts[:, level]), self.clusters_of(level)[own[:, level]]
                terms["align"] = terms["align"] + shares @ F.cross_entropy(logits, cluster, reduction="none")
                hit = (logits.argmax(1) == cluster).float()
                terms[f"align_accuracy_{level + 1}"] = (shares @ hit).detach()
            if self.interest is not None:
                interest = self.interest(hidden, packed)[chosen]
                terms["interest"] = terms["interest"] + shares @ self._contrast(interest, own)
                first = self.projections[0](thoughts[:, 0].float())
                likeness = F.cosine_similarity(first, interest[:, : first.shape[1]].detach())
                terms["agreement"] = terms["agreement"] + shares @ (1 - likeness)
            return terms

    def clusters_of(self, level: int) -> torch.Tensor:
        """Coarse cluster of every code of a level (from 0), int64 [K_l]."""
        return self._level(level).of_code

    def num_clusters(self, level: int) -> int:
        """Kc of a level: fewer than asked for where fewer codes are in use."""
        return len(self._level(level).centroids)

    def points_at(self, level: int, thoughts: torch.Tensor) -> torch.Tensor:
        """Probabilities float32 [..., Kc] of a level's clusters, from hidden states [..., d] at its thoughts."""
        with torch.autocast(thoughts.device.type, enabled=False):
            return self._logits(level, thoughts).softmax(-1)

    def interest_of(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Global interests v_g float32 [n, d_c], read at the anchor of each answer; arguments as of [`forward`].

        Raises:
            HfGrError: If these heads have none (`interest: 0`).
        """
        if self.interest is None:
            raise HfGrError("these thinking heads have no global interest; train with thinking.interest above 0.")
        with torch.autocast(hidden.device.type, enabled=False):
            return self.interest(hidden, packed)

    def interest_points_at(self, interest: torch.Tensor) -> torch.Tensor:
        """Probabilities float32 [..., Kc] of the items' clusters, from global interests [..., d_c]."""
        return (_cosines(interest, self.interest_centroids) / self.config.interest_temperature).softmax(-1)

    def interest_clusters_of(self, codes: torch.Tensor) -> torch.Tensor:
        """Cluster of items, int64 [n], from their codes int64 [n, L]: the one of the largest cosine."""
        parts = codes.split(_READ)  # so that a million items need no million target vectors
        return torch.cat([_cosines(self.targets_of(part), self.interest_centroids).argmax(1) for part in parts])

    def targets_of(self, codes: torch.Tensor) -> torch.Tensor:
        """What v_g should be of items with codes int64 [n, L], float32 [n, d_c].

        The mean of an item's code vectors (side by side where their widths differ), less the mean over the items.
        """
        vectors = [self._level(level).vectors for level in range(self.num_levels)]
        return _target_vectors(vectors, codes) - self.centre

    def _level(self, level: int) -> "_Level":
        return cast(_Level, self.levels[level])

    def _contrast(self, interest: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """InfoNCE [m] of interests with the target vectors of codes [m, I]."""
        logits = _cosines(interest, self.targets_of(codes)) / self.config.interest_temperature
        sid = torch.unique(codes, dim=0, return_inverse=True)[1]
        itself = torch.eye(len(sid), dtype=torch.bool, device=sid.device)
        same = (sid[:, None] == sid) & ~itself
        return F.cross_entropy(logits.masked_fill(same, -torch.inf), itself.int().argmax(1), reduction="none")

    def _logits(self, level: int, thoughts: torch.Tensor) -> torch.Tensor:
        projected = self.projections[level](thoughts.float())
        return _cosines(projected, self._level(level).centroids) / self.config.temperature

    def save(self, folder: str | Path) -> None:
        """Writes `thinking.json` and `thinking.safetensors`."""
        description = {"config": asdict(self.config), "hidden_size": self.hidden_size, "codebooks": self.codebooks}
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, Path(folder) / THINKING_FILES[1])
        write_json(Path(folder) / THINKING_FILES[0], description)

    @classmethod
    def load(cls, folder: str | Path, catalog: SidCatalog) -> "ThinkingHeads":
        """Reads heads; [`HfGrError`] unless they were made for this catalog's codebooks."""
        folder = Path(folder)
        description = read_json(folder / THINKING_FILES[0])
        expected = _codebooks_fingerprint(catalog)
        if description["codebooks"] != expected:
            raise HfGrError(
                f"{folder}: the thinking heads were made for codebooks {description['codebooks']}, but the "
                f"catalog's are {expected}; use the catalog that the model was trained with."
            )
        try:
            tensors = load_file(folder / THINKING_FILES[1])
        except (OSError, SafetensorError) as error:
            reason = first_line(error)
            raise HfGrError(f"{folder / THINKING_FILES[1]} cannot be read ({reason}); copy the model again.") from None
        levels = len(_telling_vectors(catalog))
        clusters = [(tensors[f"levels.{n}.centroids"], tensors[f"levels.{n}.of_code"]) for n in range(levels)]
        config = ThinkingConfig.of_dict(description["config"])
        centre, centroids = tensors["centre"], tensors["interest_centroids"]
        heads = cls(config, description["hidden_size"], catalog, clusters, centre, centroids)
        heads.load_state_dict(tensors)
        return heads.eval()


class _Level(nn.Module):
    """One level: its code vectors, which belong to the catalog and are not saved again, and their clusters."""

    vectors: torch.Tensor  # float32 [K_l, d_l]
    centroids: torch.Tensor  # float32 [Kc, d_l]
    of_code: torch.Tensor  # int64 [K_l]

    def __init__(self, vectors: torch.Tensor, centroids: torch.Tensor, of_code: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("centroids", centroids)
        self.register_buffer("of_code", of_code)


def _telling_vectors(catalog: SidCatalog) -> list[torch.Tensor]:
    """Code vectors of the levels that mean something."""
    if not catalog.code_vectors:
        raise HfGrError("the catalog holds no code vectors to think about; make it with `hf-gr quantize`.")
    vectors = catalog.code_vectors[:-1] if catalog.collisions == "digit" else catalog.code_vectors
    if not vectors:
        raise HfGrError("the catalog's only level is a digit, which means nothing to think about; add levels.")
    return [torch.from_numpy(own) for own in vectors]


def _target_vectors(vectors: Sequence[torch.Tensor], codes: torch.Tensor) -> torch.Tensor:
    own = [rows[column] for rows, column in zip(vectors, codes.T, strict=False)]  # a digit's column is left over
    if len({rows.shape[1] for rows in vectors}) > 1:
        return torch.cat(own, 1)
    return torch.stack(own).mean(0)


def _coarse(vectors: torch.Tensor, used: torch.Tensor, clusters: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centroids [Kc, d_l] of the used codes' directions from their mean, and the cluster of every code [K_l]."""
    mean = used.mean(0)
    centroids = _kmeans(used - mean, clusters, seed)
    return centroids, _cosines(vectors - mean, centroids).argmax(1)


def _kmeans(points: torch.Tensor, clusters: int, seed: int) -> torch.Tensor:
    from sklearn.cluster import KMeans  # a second to import, and needed once in training alone

    directions = F.normalize(points, dim=1)
    distinct = len(torch.unique(directions, dim=0))
    fitted = KMeans(min(clusters, distinct), n_init=10, random_state=seed).fit(directions.numpy())
    return torch.from_numpy(fitted.cluster_centers_.astype(np.float32))


def _cosines(points: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """float32 [..., m] of points [..., d] with others [m, d]."""
    return F.normalize(points, dim=-1) @ F.normalize(others, dim=-1).T


def _sample(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)[:_READ]


def _codebooks_fingerprint(catalog: SidCatalog) -> str:
    """16 hex digits over the code vectors: items may come and go, codebooks stay."""
    digest = hashlib.sha256(repr((catalog.codebook_sizes, catalog.collisions == "digit")).encode())
    for vectors in catalog.code_vectors:
        digest.update(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
    return digest.hexdigest()[:16]
