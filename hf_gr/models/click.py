"""DCN-V2 with target attention (Wang et al., WWW 2021, "DCN V2"; Zhou et al., KDD 2018, "DIN"): how likely a user is
to click a candidate, given the history, and what is known of the user and of the request.

An item is a vector of its id, of its semantic ID, or of both:

    e(i) = W [id(i); t_1(f_1(i)); …; t_F(f_F(i))]

with a table t_f for every feature f of the semantic ID: its codes, its prefixes [known: SIDs as features, Singh et al.
2024; prefixes, Zheng et al. 2025]. The candidate reads the history h_1 … h_T by attention [known: DIN's idea; ours: a
softmax of scaled products in place of a network for every pair],

    p = Σ_t softmax_t(q(c)·k(h_t) / √d) h_t        (0 where the history is empty)

and x_0 = [c; p; c ⊙ p; columns] goes through cross layers and a deep network side by side [known: the parallel form]:

    x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l,          logit = w·[x_L; deep(x_0)]

With gates, each deep layer is weighed unit by unit by 2σ(gate([c; columns; sg(x)])) [known: PPNet, Chang et al. 2023].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


ItemAs = Literal["id", "sid", "both"]
Codes = Literal["learned", "tuned", "frozen"]
PADDING = -1  # in histories
UNKNOWN = 0  # of a column's values


class ClickConfig(PreTrainedConfig):
    """Of a [`ClickModel`].

    Args:
        num_items: N.
        item_as: What stands for an item: `"id"`, `"sid"` or `"both"`.
        sid_sizes: Rows of the table of every feature of the semantic ID.
        sid_widths: Columns of each; those of code vectors are as wide as these.
        codes: Whether tables of codes start at random (`"learned"`), or from the catalog's code vectors, and are then
            trained on (`"tuned"`) or not (`"frozen"`).
        num_levels: L, how many of the tables, the first ones, are of codes; the others, of prefixes, are learned.
        category_sizes: Values of every column of categories, the unknown one, 0, among them.
        num_numbers: Columns of numbers.
        hidden_size: d, of item vectors.
        column_size: Width of a category's vector.
        cross_layers: Cross layers. [known: 2 to 3 suffice]
        deep_sizes: Units of the deep network's layers; none: cross layers alone.
        dropout: On x_0 and behind every deep layer.
        gates: Whether PPNet's gates weigh the deep layers.
        max_history: Latest events that are read.
        initializer_range: Standard deviation of tables at the start.
    """

    model_type = "click"

    def __init__(
        self,
        num_items: int = 1,
        item_as: ItemAs = "id",
        sid_sizes: Sequence[int] = (),
        sid_widths: Sequence[int] = (),
        codes: Codes = "learned",
        num_levels: int = 0,
        category_sizes: Sequence[int] = (),
        num_numbers: int = 0,
        hidden_size: int = 32,
        column_size: int = 8,
        cross_layers: int = 2,
        deep_sizes: Sequence[int] = (64, 32),
        dropout: float = 0.1,
        gates: bool = False,
        max_history: int = 50,
        initializer_range: float = 0.05,
        **kwargs: Any,
    ):
        self.num_items, self.item_as = num_items, item_as
        self.sid_sizes, self.sid_widths = list(sid_sizes), list(sid_widths)
        self.codes, self.num_levels = codes, num_levels
        self.category_sizes, self.num_numbers = list(category_sizes), num_numbers
        self.hidden_size, self.column_size = hidden_size, column_size
        self.cross_layers, self.deep_sizes = cross_layers, list(deep_sizes)
        self.dropout, self.gates = dropout, gates
        self.max_history, self.initializer_range = max_history, initializer_range
        super().__init__(**kwargs)


@dataclass
class ClickOutput(ModelOutput):
    """Attributes:
    loss: float, mean binary cross-entropy of the labels, if there are any.
    logits: float [B]; their sigmoid is the probability of a click.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class ItemVectors(nn.Module):
    """Vectors of items, of their ids and of the features of their semantic IDs."""

    features: torch.Tensor

    def __init__(self, config: ClickConfig):
        super().__init__()
        d = config.hidden_size
        self.ids = None if config.item_as == "sid" else nn.Embedding(config.num_items, d)
        sizes = zip(config.sid_sizes, config.sid_widths, strict=True)
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size, width in sizes)
        for table in self.tables[: config.num_levels]:
            table.weight.requires_grad_(config.codes != "frozen")
        self.register_buffer("features", torch.zeros(config.num_items, len(config.sid_sizes), dtype=torch.int64))
        self.join = nn.Linear((self.ids is not None) * d + sum(config.sid_widths), d)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Vectors float [..., d] of items int64 [...]."""
        features = self.features[items]
        parts = [] if self.ids is None else [self.ids(items)]
        parts += [table(features[..., place]) for place, table in enumerate(self.tables)]
        return self.join(torch.cat(parts, -1))


class TargetAttention(nn.Module):
    """Reads a history with a candidate's eyes."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, candidate: torch.Tensor, history: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Pooled history float [B, d], 0 where it is empty.

        Args:
            candidate: float [B, d].
            history: float [B, T, d].
            real: bool [B, T], false at padding.
        """
        scores = (self.key(history) @ self.query(candidate)[..., None])[..., 0] / history.shape[-1] ** 0.5
        weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(-1) * real
        return (weights[:, None] @ history)[:, 0]


class CrossLayer(nn.Module):
    """x_{l+1} = x_0 ⊙ (W x_l + b) + x_l (DCN V2, equation 1)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, first: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return first * self.linear(x) + x


class DeepLayer(nn.Module):
    """Linear, ReLU and dropout; with a context, weighed by a gate of it."""

    def __init__(self, width: int, units: int, dropout: float, context: int):
        super().__init__()
        self.linear, self.dropout = nn.Linear(width, units), nn.Dropout(dropout)
        self.gate = None
        if context:
            self.gate = nn.Sequential(nn.Linear(context + width, units), nn.ReLU(), nn.Linear(units, units))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.linear(x))
        if self.gate is not None:
            inner = inner * 2 * torch.sigmoid(self.gate(torch.cat([context, x.detach()], -1)))
        return self.dropout(inner)


class ClickModel(PreTrainedModel):
    """The probability that a candidate is clicked."""

    config_class = ClickConfig
    base_model_prefix = "click"

    def __init__(self, config: ClickConfig):
        super().__init__(config)
        d, size = config.hidden_size, config.column_size
        self.items, self.attention = ItemVectors(config), TargetAttention(d)
        self.columns = nn.ModuleList(nn.Embedding(rows, size) for rows in config.category_sizes)
        columns = size * len(config.category_sizes) + config.num_numbers
        width = 3 * d + columns
        self.dropout = nn.Dropout(config.dropout)
        self.cross = nn.ModuleList(CrossLayer(width) for _ in range(config.cross_layers))
        units = [width, *config.deep_sizes]
        context = d + columns if config.gates else 0
        self.deep = nn.ModuleList(
            DeepLayer(before, after, config.dropout, context) for before, after in pairwise(units)
        )
        self.head = nn.Linear(width + (units[-1] if config.deep_sizes else 0), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, ItemVectors):
            nn.init.zeros_(module.features)

    @torch.no_grad()
    def start(self, features: np.ndarray, code_vectors: Sequence[np.ndarray] = ()) -> None:
        """Gives a new model what it reads of semantic IDs.

        Args:
            features: int64 [N, F], of every item.
            code_vectors: float32 [K_l, width] of every level, where tables of codes start from them.
        """
        self.items.features.copy_(torch.from_numpy(features))
        for table, vectors in zip(self.items.tables, code_vectors, strict=False):
            table.get_parameter("weight").copy_(torch.from_numpy(vectors))

    def forward(
        self,
        history: torch.Tensor,
        candidates: torch.Tensor,
        categories: torch.Tensor,
        numbers: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> ClickOutput:
        """Scores candidates.

        Args:
            history: int64 [B, T], items, −1 at padding; T may be 0.
            candidates: int64 [B], items.
            categories: int64 [B, C], values of the columns of categories, 0 where unknown.
            numbers: float32 [B, M].
            labels: float32 [B], 1 for a click.
        """
        real, rows = history != PADDING, len(candidates)
        listed, places = torch.cat([candidates, history.clamp(min=0).flatten()]).unique(return_inverse=True)
        vectors = self.items(listed)[places]  # each item once: histories repeat what is popular
        candidate = vectors[:rows]
        pooled = self.attention(candidate, vectors[rows:].view(*history.shape, self.config.hidden_size), real)
        columns = [table(categories[:, place]) for place, table in enumerate(self.columns)]
        told = torch.cat([*columns, numbers.to(candidate.dtype)], -1)
        first = self.dropout(torch.cat([candidate, pooled, candidate * pooled, told], -1))
        crossed, inner = first, first
        for layer in self.cross:
            crossed = layer(first, crossed)
        context = torch.cat([candidate, told], -1)
        for layer in self.deep:
            inner = layer(inner, context)
        logits = self.head(torch.cat([crossed, inner], -1) if len(self.deep) else crossed)[:, 0]
        loss = None if labels is None else F.binary_cross_entropy_with_logits(logits.float(), labels)
        return ClickOutput(loss=loss, logits=logits)


AutoConfig.register("click", ClickConfig)
AutoModel.register(ClickConfig, ClickModel)
