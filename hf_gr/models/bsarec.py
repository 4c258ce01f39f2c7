"""BSARec: self-attention beside a filter of frequencies (Shin et al., AAAI 2024, "An Attentive Inductive Bias for
Sequential Recommendation beyond the Self-Attention"), and with α = 0 plain SASRec with a softmax over all items.

Self-attention alone is a low-pass filter and over-smooths histories. Every layer therefore mixes it with a filter that
splits its input along time into the c lowest frequencies and the rest, and weighs the rest by a learned β² a channel:

    low = IDFT(the c lowest frequencies of DFT(x)),  high = x − low
    filter(x) = LayerNorm(x + Dropout(low + β² high))
    layer(x) = FFN(α filter(x) + (1 − α) attention(x))                             [known: section 4, released code]

Known: post-norm layers, positions learned, item embeddings shared with the output softmax over all items. Ours: the
filter as a matrix. Keeping frequencies |f| ≤ c / 2 of a window of n positions is a circular convolution with the
Dirichlet kernel D(t) = (1 + 2 Σ cos(2π f t / n)) / n, so positions of padding, taken for zero, can be left out: rows
are as long as the histories. And of this matrix only the part that looks back may be kept (`causal`): every position
is filtered as if it were the last of its window, so that all positions train in one pass. Ours, too: a learned start
before the first event, from which the first event is predicted and users without a history are served.
"""

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .losses import PADDING as PADDING
from .losses import sampled_softmax, softmax


class BSARecConfig(PreTrainedConfig):
    """Of a [`BSARecModel`].

    Args:
        num_items: N.
        hidden_size: d, of item embeddings and layers. [known: 64]
        num_hidden_layers: [known: 2]
        num_attention_heads: [known: 1 on Beauty]
        max_history: Latest events that are read; with the start they are the n positions of the window. [known: 50]
        alpha: Weight of the filter, 1 − α of attention; 0: SASRec, 1: the filter alone. [known: .7 on Beauty]
        cutoff: c, lowest frequencies that count as low, an odd number (0 and pairs ±f). [known: 5 on Beauty]
        causal: Whether the filter looks back only, and positions are counted from the start of the row. [known: no,
            and back from the latest event]
        hidden_dropout: On embeddings and on what filter, attention and FFN add. [known: .5]
        attention_dropout: On attention weights. [known: .5]
        initializer_range: Standard deviation of embeddings and weights at the start. [known: .02]
    """

    model_type = "bsarec"

    def __init__(
        self,
        num_items: int = 1,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 1,
        max_history: int = 50,
        alpha: float = 0.7,
        cutoff: int = 5,
        causal: bool = False,
        hidden_dropout: float = 0.5,
        attention_dropout: float = 0.5,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ):
        self.num_items, self.max_history = num_items, max_history
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.alpha, self.cutoff, self.causal = alpha, cutoff, causal
        self.hidden_dropout, self.attention_dropout = hidden_dropout, attention_dropout
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that are its own, but for the number of items."""
        own = [name for name in inspect.signature(BSARecConfig).parameters if name not in ("num_items", "kwargs")]
        return {name: getattr(self, name) for name in own}

    @property
    def window(self) -> int:
        """n, positions: the start and `max_history` events."""
        return self.max_history + 1


@dataclass
class BSARecOutput(ModelOutput):
    """Attributes:
    loss: float, mean cross-entropy of the labels, if there are any.
    last_hidden_state: float [B, T, d]; its product with the item embeddings are the logits.
    """

    loss: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


def low_pass(window: int, cutoff: int, causal: bool = False) -> torch.Tensor:
    """The matrix that keeps the lowest frequencies of a signal of `window` positions, float32 [window, window].

    Args:
        window: n.
        cutoff: c, frequencies kept of the n of the DFT: 0, ±1, … ±(c − 1) / 2.
        causal: Leave out what lies behind each position (the upper triangle).
    """
    places = torch.arange(window, dtype=torch.float64)
    apart = places[:, None] - places
    waves = [torch.cos(2 * math.pi * f * apart / window) for f in range(1, cutoff // 2 + 1)]
    kept = ((1 + 2 * sum(waves, torch.zeros_like(apart))) / window).float()
    return kept.tril() if causal else kept


class FrequencyFilter(nn.Module):
    """low + β² high, then dropout, residual and norm (equations 9 to 11)."""

    low: torch.Tensor

    def __init__(self, config: BSARecConfig):
        super().__init__()
        self.kernel = (config.window, config.cutoff, config.causal)
        self.register_buffer("low", low_pass(*self.kernel), persistent=False)
        self.beta = nn.Parameter(torch.empty(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """x float [B, T, d], `real` float [B, T, 1]: 0 at padding, which the filter does not see."""
        length = x.shape[1]
        low = self.low[:length, :length].to(x.dtype) @ (x * real)
        return self.norm(x + self.dropout(low + self.beta.square() * (x - low)))


class Attention(nn.Module):
    """Causal self-attention, dropout, residual and norm."""

    def __init__(self, config: BSARecConfig):
        super().__init__()
        d = config.hidden_size
        self.heads, self.p = config.num_attention_heads, config.attention_dropout
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm, self.dropout = nn.LayerNorm(d, eps=1e-12), nn.Dropout(config.hidden_dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, d = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        p = self.p if self.training else 0.0
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        return self.norm(x + self.dropout(self.out(read.transpose(1, 2).reshape(rows, length, d))))


class Layer(nn.Module):
    """Filter and attention side by side, then the feed-forward network."""

    def __init__(self, config: BSARecConfig):
        super().__init__()
        d, self.alpha = config.hidden_size, config.alpha
        self.filter = FrequencyFilter(config) if config.alpha > 0 else None
        self.attention = Attention(config) if config.alpha < 1 else None
        self.inner, self.outer = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.norm, self.dropout = nn.LayerNorm(d, eps=1e-12), nn.Dropout(config.hidden_dropout)

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        mixed = torch.zeros_like(x)
        if self.filter is not None:
            mixed = mixed + self.alpha * self.filter(x, real)
        if self.attention is not None:
            mixed = mixed + (1 - self.alpha) * self.attention(x)
        return self.norm(mixed + self.dropout(self.outer(F.gelu(self.inner(mixed)))))


class _Layers:
    """What turns vectors of events into hidden states: modules of a model, or a module of their own."""

    config: BSARecConfig

    def _add_layers(self, config: BSARecConfig) -> None:
        d = config.hidden_size
        self.positions = nn.Embedding(config.window, d)
        self.norm, self.dropout = nn.LayerNorm(d, eps=1e-12), nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def encode(self, vectors: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Hidden states, float [B, T, d], of vectors of events float [B, T, d]; `real` bool [B, T] is false at
        padding, which stands behind the events."""
        places = torch.arange(real.shape[1], device=real.device).expand_as(real)
        if not self.config.causal:  # as in the paper's left-padded window: counted back from the latest event
            places = (real.sum(1, keepdim=True) - 1 - places).clamp(min=0)
        x = self.dropout(self.norm(vectors + self.positions(places)))
        weight = real[..., None].to(x.dtype)
        for layer in self.layers:
            x = layer(x, weight)
        return x


class BSARecEncoder(_Layers, nn.Module):
    """BSARec over vectors that come from elsewhere: the user side of a [`~hf_gr.models.towers.TowersModel`].

    Any encoder has a config with `hidden_size`, `max_history`, `causal` and `settings`, and `encode`.
    """

    def __init__(self, config: BSARecConfig):
        super().__init__()
        self.config = config
        self._add_layers(config)

    def forward(self, vectors: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return self.encode(vectors, real)


class BSARecModel(_Layers, PreTrainedModel):
    """Items of a history to one vector a position, whose products with the item embeddings rank the next item."""

    config_class = BSARecConfig
    base_model_prefix = "bsarec"

    def __init__(self, config: BSARecConfig):
        super().__init__(config)
        self.items = nn.Embedding(config.num_items + 1, config.hidden_size)  # the last row is the start
        self._add_layers(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module, self.config.initializer_range)

    @property
    def catalog(self) -> torch.Tensor:
        """Embeddings of the items, float [N, d]."""
        return self.items.weight[: self.config.num_items]

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        log_weights: torch.Tensor | None = None,
    ) -> BSARecOutput:
        """Reads rows of events.

        Args:
            input_ids: int64 [B, T], T ≤ n: N (the start), then items from 0 to N − 1, oldest first; then −1.
            labels: int64 [B, T], the item that follows each position, −1 where none counts.
            candidates: int64 [C], the items that the loss is a softmax over, distinct, in order, all labels among
                them; every item if left out. With `log_weights` any distinct items.
            log_weights: float [C], what each of them counts in a sampled softmax
                ([`~hf_gr.models.losses.sampled_softmax`]).
        """
        hidden = self.encode(self.items(input_ids.clamp(min=0)), input_ids != PADDING)
        if labels is None:
            return BSARecOutput(last_hidden_state=hidden)
        counted = labels != PADDING
        vectors = self.catalog if candidates is None else self.items(candidates)
        users, targets = hidden[counted], labels[counted]
        if candidates is not None and log_weights is not None:
            loss = sampled_softmax(users, self.items(targets), targets, vectors, candidates, log_weights)
        else:
            loss = softmax(users, targets, vectors, candidates)
        return BSARecOutput(loss=loss, last_hidden_state=hidden)


def init_weights(module: nn.Module, std: float) -> None:
    """The start of a module of this file, or one like them."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    if isinstance(module, FrequencyFilter):
        nn.init.normal_(module.beta)  # [known]
        module.low.copy_(low_pass(*module.kernel))


@torch.no_grad()
def user_vectors(model: PreTrainedModel, histories: Sequence[np.ndarray]) -> torch.Tensor:
    """What a retriever reads each history as, float [B, d]; `histories` int64 [≤ any] each, oldest first."""
    config = model.config
    rows = history_rows(histories, config.num_items, config.max_history)
    last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    hidden = model(pad_histories(rows).to(model.device)).last_hidden_state
    return hidden[torch.arange(len(rows), device=model.device), last]


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, histories: Sequence[np.ndarray]) -> torch.Tensor:
    """log-probability of every item as the next one, float32 [B, N]; `histories` int64 [≤ any] each, oldest first."""
    return (user_vectors(model, histories) @ model.catalog.T).float().log_softmax(-1)


def history_rows(histories: Iterable[np.ndarray], num_items: int, max_history: int) -> list[np.ndarray]:
    """The row to predict from of every history: the start and its latest `max_history` events, int64 [≤ n] each."""
    return [np.concatenate([[num_items], history[-max_history:]]) for history in histories]


def pad_histories(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """Rows side by side, int64 [B, longest], −1 behind their ends."""
    lengths = np.array([len(row) for row in rows])
    filled = np.full((len(rows), lengths.max()), PADDING, np.int64)
    filled[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(rows)
    return torch.from_numpy(filled)


AutoConfig.register("bsarec", BSARecConfig)
AutoModel.register(BSARecConfig, BSARecModel)
