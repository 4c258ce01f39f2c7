"""Items that come after training, in a model that reads each item through a row of its own (IntRR)."""

import torch
from torch import nn

from .intrr import IntRRForCausalLM, IntRRModel
from .retrievers import RetrieverModel
from .towers import TowersModel


_TOGETHER = 65_536  # items that are trained at once
_RATE = 0.1  # of Adam, in standard deviations of the table


def grow_items(model: IntRRForCausalLM, codes: torch.Tensor, *, steps: int = 50) -> IntRRForCausalLM:
    """A model with items at its end that it was not trained with, so that histories may hold them.

    The row of a new item starts as the mean row of the items that share the longest prefix of its SID, removed ones
    included (of all items where none shares a code), and is then pulled to what the model reads as that SID: Adam on
    the input side's cross-entropy of the new rows alone, in float32. [ours; the paper
    has no new items]

    A retriever that the model carries gets the mean row of such items as well.

    Everything else stays bit for bit, so that histories of old items are read as before. A hashed table
    (`item_rows` > 0) gets no rows and no training, since its rows are those of other items too: a new item is read as
    the sum of the two that it falls on, and only `sids` and `num_items` grow.

    Args:
        model: Its parts are taken and grow in place.
        codes: int64 [n, L], the tokens of the new items' SIDs.
        steps: Of Adam, for the rows of at most 65,536 items at once; 0 leaves the rows at their start. None with
            `read: sum`, where nothing is pulled.
    """
    inner = model.model
    steps = 0 if model.config.read == "sum" else steps
    codes = codes.to(inner.sids)
    if not inner.items.rows:
        old = inner.items.embedding.weight.detach()
        start = _start(old, inner.sids, codes)
        new = [
            _pulled(inner, rows, own, steps, _RATE * float(old.float().std()))
            for rows, own in zip(start.split(_TOGETHER), codes.split(_TOGETHER), strict=True)
        ]
        inner.items.embedding = _table(torch.cat([old, *new]))
    if model.retriever is not None:
        grow_retriever(model.retriever, inner.sids, codes)
    inner.sids = torch.cat([inner.sids, codes])
    model.config.num_items = len(inner.sids)
    return model


def grow_retriever(retriever: RetrieverModel, sids: torch.Tensor, codes: torch.Tensor) -> None:
    """Gives a retriever of N items n more at their end: each gets the mean row of the items that share the longest
    prefix of its SID (of all items where none shares a code). Everything else stays bit for bit.

    Args:
        retriever: Changed in place.
        sids: int64 [N, L] of its items.
        codes: int64 [n, L] of the new ones.
    """
    new = _start(retriever.catalog.detach(), sids, codes)
    if isinstance(retriever, TowersModel):
        retriever.append(new)
        return
    old, count = retriever.items.weight.detach(), retriever.config.num_items
    retriever.items = _table(torch.cat([old[:count], new.to(old.dtype), old[count:]])).requires_grad_(False)
    retriever.config.num_items = count + len(new)


def _start(rows: torch.Tensor, sids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean row float32 [n, d] of those items, of rows [N, d] and sids int64 [N, L], that share the longest prefix with
    each of n SIDs."""
    start = rows.float().mean(0).repeat(len(codes), 1)
    tokens = int(max(sids.max(), codes.max())) + 1
    sharing = torch.arange(len(sids), device=sids.device)  # items that have a prefix in common with some new one
    group, group_new = torch.zeros_like(sharing), torch.zeros_like(codes[:, 0])
    for level in range(codes.shape[1]):
        prefixes, group_new = (group_new * tokens + codes[:, level]).unique(return_inverse=True)
        own = group * tokens + sids[sharing, level]
        place = torch.searchsorted(prefixes, own).clamp(max=len(prefixes) - 1)
        shares = prefixes[place] == own
        sharing, group = sharing[shares], place[shares]
        count = torch.bincount(group, minlength=len(prefixes))
        sums = start.new_zeros(len(prefixes), rows.shape[1]).index_add_(0, group, rows[sharing].float())
        found = count[group_new] > 0
        start[found] = (sums / count.clamp(min=1)[:, None])[group_new[found]]
    return start


def _pulled(model: IntRRModel, rows: torch.Tensor, codes: torch.Tensor, steps: int, rate: float) -> torch.Tensor:
    """Rows float [n, d] after `steps` of Adam on the loss toward their SIDs, in the dtype of the model's table.

    Meanwhile they are all the items that the model has.
    """
    table, sids, dtype = model.items.embedding, model.sids, model.items.embedding.weight.dtype
    model.items.embedding, model.sids = _table(rows.clone()), codes
    model.items.float()
    own = model.items.embedding.weight
    adam, items = torch.optim.Adam([own], lr=rate), torch.arange(len(rows), device=rows.device)
    with torch.enable_grad():
        for _ in range(steps):
            (own.grad,) = torch.autograd.grad(model.input_loss(items).sum(), [own])
            adam.step()
    model.items.embedding, model.sids = table, sids
    model.items.to(dtype)
    return own.detach().to(dtype)


def _table(rows: torch.Tensor) -> nn.Embedding:
    return nn.Embedding.from_pretrained(rows, freeze=False)
