"""Two towers: items by what is known of them, users by a sequence model over the items' vectors.

    s = Σ over features of what each adds                    (a row of the id, a mean of tags' rows, W · vector)
    v = s + W₂ gelu(W₁ norm(s))                              the item tower
    score(user, item) = u · v,   or cos(u, v) / τ            u: the encoder's state after the history's last event

The sum lets any feature be missing: it then adds nothing. The network stands beside the sum, not behind it: what it
adds starts small, so that with the id alone the tower starts as an embedding table does, and the sum keeps its length,
by which a softmax tells popular items from others. The network sees the sum after a norm, whichever features made it.
In training the row of the id is replaced by a shared one with the probability `id_dropout`, for each item of a step
anew. So the rest learn to stand alone, and an item that came later, or that no training event is of, gets that shared
row. [all ours; the dropout is that of DropoutNet (Volkovs et al., NeurIPS 2017)]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import HfGrError
from .bsarec import BSARecConfig, BSARecEncoder, BSARecOutput, init_weights
from .item_features import ID, ItemFeatures
from .losses import PADDING, sampled_softmax, softmax


# The user side: a config and a module, whose call takes vectors float [B, T, d] and which are real, bool [B, T]. The
# config has `hidden_size`, `max_history`, `causal` and `initializer_range`.
ENCODERS: dict[str, tuple[type[PreTrainedConfig], type[nn.Module]]] = {"bsarec": (BSARecConfig, BSARecEncoder)}

_TOGETHER = 65_536  # items whose vectors are made at once


class TowersConfig(PreTrainedConfig):
    """Of a [`TowersModel`].

    Args:
        num_items: N.
        num_ids: Rows of the table of ids; items beyond came later.
        item_features: Names of what the item tower reads.
        dims: Width of every vector feature.
        tag_sizes: Rows of the table of every tag feature.
        id_dropout: Share of the rows of ids that a step replaces.
        cosine_temperature: τ of cosines; `None`: scores are inner products.
        encoder: Which one reads histories ([`ENCODERS`]), and its settings.
        encoder_type: Its name.
    """

    model_type = "towers"

    def __init__(
        self,
        num_items: int = 1,
        num_ids: int = 1,
        item_features: list[str] | tuple[str, ...] = (ID,),
        dims: Mapping[str, int] | None = None,
        tag_sizes: Mapping[str, int] | None = None,
        id_dropout: float = 0.0,
        cosine_temperature: float | None = None,
        encoder: Mapping[str, Any] | None = None,
        encoder_type: str = "bsarec",
        **kwargs: Any,
    ):
        self.num_items, self.num_ids, self.item_features = num_items, num_ids, list(item_features)
        self.dims, self.tag_sizes = dict(dims or {}), dict(tag_sizes or {})
        self.id_dropout, self.cosine_temperature = id_dropout, cosine_temperature
        self.encoder, self.encoder_type = dict(encoder or {}), encoder_type
        super().__init__(**kwargs)

    @property
    def encoder_config(self) -> PreTrainedConfig:
        if self.encoder_type not in ENCODERS:
            raise HfGrError(f"there is no encoder {self.encoder_type!r}; encoders are: {', '.join(ENCODERS)}.")
        return ENCODERS[self.encoder_type][0](**self.encoder)

    @property
    def max_history(self) -> int:
        return int(self.encoder_config.max_history)

    @property
    def causal(self) -> bool:
        return bool(self.encoder_config.causal)


class ItemTower(nn.Module):
    """Features of items to vectors."""

    def __init__(self, config: TowersConfig, width: int):
        super().__init__()
        self.num_ids, self.id_dropout = config.num_ids, config.id_dropout
        # the last row is that of items without one
        self.ids = nn.Embedding(config.num_ids + 1, width) if ID in config.item_features else None
        tables = {name: nn.Embedding(size, width) for name, size in config.tag_sizes.items()}
        self.tags = nn.ModuleDict(tables)
        self.vectors = nn.ModuleDict({name: nn.Linear(dim, width, bias=False) for name, dim in config.dims.items()})
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, features: ItemFeatures, id_rows: torch.Tensor) -> torch.Tensor:
        """Vectors float [n, d] of items; `id_rows` int64 [n], −1 for those without a row."""
        parts = []
        if self.ids is not None:
            rows = torch.where(id_rows < 0, self.num_ids, id_rows)
            if self.training and self.id_dropout > 0:
                drawn = torch.rand(len(rows), device=rows.device) < self.id_dropout
                rows = rows.masked_fill(drawn, self.num_ids)
            parts.append(self.ids(rows))
        for name, table in self.tags.items():
            tags = features.tags[name]
            there = (tags > 0)[..., None]
            parts.append((table(tags) * there).sum(1) / there.sum(1).clamp(min=1))
        parts += [project(features.vectors[name]) for name, project in self.vectors.items()]
        added = torch.stack(parts).sum(0)
        return added + self.outer(F.gelu(self.inner(self.norm(added))))


class TowersModel(PreTrainedModel):
    """An item tower and an encoder of histories of its vectors.

    Outside of training it answers by the vectors that [`refresh`] has made, which it is saved with: then no feature
    need be there. Whoever trains it sets `features`.

    Attributes:
        features: Of the N items; `None` after loading.
        vectors: float [N, d], a buffer.
        id_rows: int64 [N], row of every item in the table of ids, −1 for items without one; a buffer.
    """

    config_class = TowersConfig
    base_model_prefix = "towers"
    vectors: torch.Tensor
    id_rows: torch.Tensor

    def __init__(self, config: TowersConfig):
        super().__init__(config)
        encoder = config.encoder_config
        self.tower = ItemTower(config, encoder.hidden_size)
        self.start = nn.Parameter(torch.zeros(encoder.hidden_size))  # before the first event
        self.encoder = ENCODERS[config.encoder_type][1](encoder)
        self.register_buffer("vectors", torch.zeros(config.num_items, encoder.hidden_size))
        rows = torch.arange(config.num_items)
        self.register_buffer("id_rows", rows.masked_fill(rows >= config.num_ids, -1))
        self.features: ItemFeatures | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.encoder_config.initializer_range
        init_weights(module, std)
        if module is self:
            nn.init.normal_(self.start, std=std)

    @property
    def catalog(self) -> torch.Tensor:
        """Vectors of the items, float [N, d]."""
        return self.vectors

    def item_vectors(self, features: ItemFeatures, id_rows: torch.Tensor) -> torch.Tensor:
        """What scores and histories read of items, float [n, d]: of length 1 where scores are cosines."""
        vectors = self.tower(features, id_rows)
        return vectors if self.config.cosine_temperature is None else F.normalize(vectors, dim=-1)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        log_weights: torch.Tensor | None = None,
    ) -> BSARecOutput:
        """As [`~hf_gr.models.bsarec.BSARecModel.forward`]; with labels, vectors of items come fresh from the tower."""
        events = input_ids.clamp(min=0)
        if labels is None:
            return BSARecOutput(last_hidden_state=self._read(self.vectors, events, input_ids != PADDING, events))
        table, rows = self._table(events, labels, candidates)
        hidden = self._read(table, torch.searchsorted(rows, events), input_ids != PADDING, events)
        counted = labels != PADDING
        users, targets = hidden[counted], labels[counted]
        chosen = table if candidates is None else table[torch.searchsorted(rows, candidates)]
        if candidates is not None and log_weights is not None:
            own = table[torch.searchsorted(rows, targets)]
            loss = sampled_softmax(users, own, targets, chosen, candidates, log_weights)
        else:
            loss = softmax(users, targets, chosen, candidates)
        return BSARecOutput(loss=loss, last_hidden_state=hidden)

    def _table(
        self, events: torch.Tensor, labels: torch.Tensor, candidates: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of the items that a batch reads, float [n, d], and their rows, int64 [n], ascending."""
        if self.features is None:
            raise HfGrError("the item tower has no features to learn from; set the model's `features`.")
        rows = torch.arange(self.config.num_items, device=events.device)
        if candidates is not None:
            read = torch.cat([events.flatten(), labels[labels != PADDING], candidates]).unique()
            rows = read[read < self.config.num_items]
        return self.item_vectors(self._features_on(events.device).take(rows), self.id_rows[rows]), rows

    def _features_on(self, device: torch.device) -> ItemFeatures:
        assert self.features is not None
        self.features = self.features.to(device)  # nothing moves the second time
        return self.features

    def _read(
        self, table: torch.Tensor, places: torch.Tensor, real: torch.Tensor, events: torch.Tensor
    ) -> torch.Tensor:
        """States float [B, T, d] after each event, whose products with vectors of items are the scores."""
        starts = (events == self.config.num_items)[..., None]
        vectors = torch.where(starts, self.start.to(table.dtype), table[places.clamp(max=len(table) - 1)])
        hidden = self.encoder(vectors, real)
        temperature = self.config.cosine_temperature
        return hidden if temperature is None else F.normalize(hidden, dim=-1) / temperature

    def without_id(self, items: np.ndarray) -> None:
        """Lets items be known by their other features alone, int64 [n]: with an id of their own that is never a target
        those that nobody has used would only be pushed away. Where the id is all there is they keep it."""
        if self.config.item_features != [ID]:
            self.id_rows[torch.from_numpy(items)] = -1

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes `vectors` of all items anew, as the tower now is."""
        features, training = self._features_on(self.vectors.device), self.training
        self.eval()
        for start in range(0, self.config.num_items, _TOGETHER):
            block = slice(start, start + _TOGETHER)
            self.vectors[block] = self.item_vectors(features.take(block), self.id_rows[block])
        self.train(training)

    @torch.no_grad()
    def add_items(self, features: ItemFeatures) -> None:
        """Gives n items more vectors at the end, by what is known of them; nothing else changes."""
        count = len(next(iter([*features.tags.values(), *features.vectors.values()])))
        device = self.vectors.device
        self.append(self.item_vectors(features.to(device), torch.full((count,), -1, device=device)))

    def append(self, vectors: torch.Tensor) -> None:
        """Puts vectors float [n, d] of new items at the end."""
        self.vectors = torch.cat([self.vectors, vectors.to(self.vectors)])
        self.id_rows = torch.cat([self.id_rows, self.id_rows.new_full((len(vectors),), -1)])
        self.features, self.config.num_items = None, len(self.vectors)

    def reorder(self, order: torch.Tensor) -> None:
        """Puts item `order[i]` at row i; int64 [N]."""
        self.vectors, self.id_rows, self.features = self.vectors[order], self.id_rows[order], None


AutoConfig.register("towers", TowersConfig)
AutoModel.register(TowersConfig, TowersModel)
