"""Log-probabilities of given items: those of a prompt as one trie of branches of its cache, shared prefixes once."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ..grammar import SidGrammar
from ..models import last_hidden
from ..search_config import SearchConfig
from .branching import Branches
from .trunk import Trunk, path_log_probs


CHUNK_TOKENS = 16_384  # of rows that are read at once, where a model takes no branches


@torch.no_grad()
def item_log_probs(
    trunk: Trunk,
    items: torch.Tensor,
    grammar: SidGrammar,
    config: SearchConfig | None = None,
    feed: nn.Linear | None = None,
) -> torch.Tensor:
    """Log-probability of the SIDs of given items after prompts that were read, float32 [B, n].

    The SIDs of a prompt's items are fed as one trie: a prefix that several share is one branch. An item of an
    unordered grammar is written in one order, that of the codebooks. No filter changes a score.

    Args:
        trunk: Prompts; branches fed since are forgotten.
        items: int64 [B, n], rows of the catalog; −1: none.
        grammar: On the trunk's device.
        config: Whose `score` and `temperature` count.
        feed: Of a model with hidden feedback.

    Returns:
        −inf where there is no item, or it can be no answer.
    """
    batch, count = items.shape
    if not count:
        return torch.empty(batch, 0, device=trunk.device)
    if trunk.reader.branches:
        trunk.drop()
    answers = grammar.written(items)
    columns = list(grammar.code_columns)
    codes, index = answers[..., columns], grammar.step_index(answers)[..., columns]
    branches, node = Branches(trunk, grammar, feed), torch.zeros_like(items)
    read = [_at(branches.hidden, node)]
    for step in range(grammar.num_codes - 1):
        parent, token, node = _nodes(node, codes[..., step])
        branches.grow(parent, token)
        read.append(_at(branches.hidden, node))
    if trunk.reader.branches:
        trunk.drop()
    return _scored(trunk.model, torch.stack(read, 2), index, items, grammar, config)


@torch.no_grad()
def row_log_probs(
    model: PreTrainedModel,
    prompts: list[list[int]],
    items: torch.Tensor,
    grammar: SidGrammar,
    config: SearchConfig | None = None,
) -> torch.Tensor:
    """[`item_log_probs`] by a row for every item, for models that take no mask of ours."""
    if not items.shape[1]:
        return torch.empty(items.shape, device=items.device)
    answers, columns = grammar.written(items), list(grammar.code_columns)
    longest, length = max(map(len, prompts)), grammar.answer_length
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=items.device)
    ids = torch.tensor([prompt + [0] * (longest + length - len(prompt)) for prompt in prompts], device=items.device)
    batch, count = items.shape
    ids = ids[:, None].repeat(1, count, 1)
    own = lengths[:, None, None] + torch.arange(length, device=items.device)
    rows = ids.scatter(2, own.expand(-1, count, -1), answers).flatten(0, 1)
    ends = lengths.repeat_interleave(count)
    mask = (torch.arange(rows.shape[1], device=rows.device) < (ends + length)[:, None]).long()
    before = ends[:, None] - 1 + torch.tensor(columns, device=rows.device)  # the column that each code is read from
    read = []
    for part in torch.arange(len(rows)).split(max(1, CHUNK_TOKENS // rows.shape[1])):
        hidden = last_hidden(model, input_ids=rows[part], attention_mask=mask[part])
        read.append(hidden.gather(1, before[part][..., None].expand(-1, -1, hidden.shape[2])))
    index = grammar.step_index(answers)[..., columns]
    return _scored(model, torch.cat(read).view(batch, count, len(columns), -1), index, items, grammar, config)


def _at(hidden: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
    """Hidden states float [B, n, d] of nodes int64 [B, n], from [B, W, d]."""
    return hidden.gather(1, node[..., None].expand(-1, -1, hidden.shape[2]))


def _nodes(node: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The distinct prefixes of one code more: which one each continues (int64 [B, W]), its code's token ([B, W]), and
    of every item the one that it begins with ([B, n]). Where a row has fewer than W, the rest repeat its first one."""
    keys, order = (node * (int(code.max()) + 1) + code).sort(dim=1, stable=True)
    new = torch.ones_like(keys)
    new[:, 1:] = keys[:, 1:] != keys[:, :-1]
    place = new.cumsum(1) - 1
    width = int(place.max()) + 1
    nodes = torch.empty_like(node).scatter(1, order, place)
    first = order[:, :1].expand(-1, width).contiguous()
    first = first.scatter(1, place, order)  # an item of each prefix
    return node.gather(1, first), code.gather(1, first), nodes


def _scored(
    model: PreTrainedModel,
    read: torch.Tensor,
    index: torch.Tensor,
    items: torch.Tensor,
    grammar: SidGrammar,
    config: SearchConfig | None,
) -> torch.Tensor:
    """Log-probabilities float32 [B, n] from what each code is read from, float [B, n, C, d]."""
    rows = read.flatten(0, 1), index.flatten(0, 1)
    scores = path_log_probs(model, *rows, grammar, config or SearchConfig()).view(items.shape)
    known = (items >= 0) & (grammar.sids[items.clamp(min=0), 0] >= 0)
    return scores.masked_fill(~known, -torch.inf)
