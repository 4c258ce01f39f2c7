"""Continuous thoughts: a thinking token is fed the hidden state of the token before it.

S²GR's t_l = h(prefix) + p_l, with p_l the input embedding of `think_l` and h projected [known: the sum; the projection
is our choice]. The input of a thought is an output of the tokens before it, so a row of branches takes L + 1 passes:
trunks first, then thought by thought, every branch at once, each over its new columns only.
"""

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ..branches import Packed, additive_mask
from ..errors import HfGrError


def feedback(feed: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """What is added to a thinking token's embedding, float [..., d] like `hidden`: the projected hidden state."""
    return feed(hidden.to(feed.weight.dtype)).to(hidden.dtype)


def read_thoughts(model: PreTrainedModel, packed: Packed, feed: nn.Linear) -> torch.Tensor:
    """Last hidden states float [B, T, d] of packed rows whose thoughts are continuous.

    Exact and differentiable: gradients go through the cache and the hidden states that were fed back. With a `feed` of
    zeros it is the plain forward.

    Args:
        model: Causal LM under `sdpa` or `eager`.
        packed: Thoughts stand in branches. Columns of padding come back as 0.
        feed: d → d, without bias.

    Raises:
        HfGrError: If the model trains under gradient checkpointing, which keeps no cache.
    """
    if model.training and model.base_model.layers[0].gradient_checkpointing:
        raise HfGrError("feedback: hidden needs a cache, which gradient checkpointing has not; turn one of them off.")
    before = _before(packed)
    rounds = torch.where(packed.trunk >= 0, _rounds(packed, before >= 0), -1)
    rows = torch.arange(len(rounds), device=rounds.device)[:, None]
    cache, embed, visible = DynamicCache(), model.get_input_embeddings(), packed.visible
    known, real = _columns(rounds == -2)  # none yet
    hidden: torch.Tensor | None = None
    for number in range(int(rounds.max()) + 1):
        new, is_new = _columns(rounds == number)
        known, real = torch.cat([known, new], dim=1), torch.cat([real, is_new], dim=1)
        embedded = embed(packed.input_ids[rows, new])
        if hidden is not None:
            thoughts = ((before[rows, new] >= 0) & is_new).nonzero(as_tuple=True)
            fed_back = hidden.flatten(0, 1)[before[rows, new][thoughts]]
            embedded = embedded.index_put(thoughts, feedback(feed, fed_back).to(embedded.dtype), accumulate=True)
        seen = visible[rows[..., None], new[..., None], known[:, None]] & real[:, None]
        output = model.base_model(
            inputs_embeds=embedded,
            position_ids=packed.position_ids[rows, new],
            attention_mask=additive_mask(seen, embedded.dtype),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        if hidden is None:
            hidden = output.new_zeros(*rounds.shape, output.shape[-1])
        hidden = hidden.index_put((rows.expand_as(new)[is_new], new[is_new]), output[is_new])
    assert hidden is not None
    return hidden


def _before(packed: Packed) -> torch.Tensor:
    """Of each thinking column the column before it in its own path, counted through all rows; −1 elsewhere: [B, T]."""
    columns = packed.thoughts
    branch = packed.branch.flatten()
    answer, level = (columns >= 0).nonzero(as_tuple=True)
    thought = columns[answer, level]
    follows = branch[thought - 1] == branch[thought]
    before = torch.full_like(branch, -1)
    before[thought] = torch.where(follows, thought - 1, packed.anchors[answer])
    return before.view_as(packed.branch)


def _rounds(packed: Packed, thinking: torch.Tensor) -> torch.Tensor:
    """Thoughts of its branch up to each column, itself included, int64 [B, T]; 0 in trunks."""
    counted = thinking.cumsum(1)
    first = torch.ones_like(thinking)
    first[:, 1:] = packed.branch[:, 1:] != packed.branch[:, :-1]
    earlier = torch.where(first, counted - thinking.long(), 0).cummax(1).values
    return counted - earlier


def _columns(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen columns of each row (bool [B, T]) in order, padded to the longest: int64 and bool [B, n]."""
    counts = chosen.sum(1)
    columns = torch.arange(int(counts.max()), device=chosen.device)
    return (~chosen).sort(dim=1, stable=True).indices[:, : len(columns)], columns < counts[:, None]
