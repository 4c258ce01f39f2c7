"""Every answer scored: the oracle of the searches, and for small catalogs the exact ranking."""

from itertools import permutations
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import HfGrError
from ..grammar import DEAD, SidGrammar, check_scores
from ..search_config import SearchConfig
from .beams import Beams
from .call import Call, check_filter, check_prompts, settled
from .support import tree_support
from .trunk import Trunk, path_log_probs


CHUNK_COLUMNS = 2048  # tokens of answers that are fed at once


@torch.no_grad()
def exhaustive_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    config: SearchConfig | None = None,
    call: Call | None = None,
    **options: Any,
) -> Beams:
    """Scores every SID of the catalog after every prompt, each as a branch of its own; nothing is pruned.

    Costs SIDs × tokens of an answer a prompt, and with an unordered grammar all C! orders of every SID, whose
    probabilities add up. Args and returns: as [`tree_search`], with one beam for every SID, the best first; of the
    settings `score` and `temperature` count, of the call its filter.
    """
    check_prompts(prompts)
    config, call = settled(config, call, options | {"method": "exhaustive"}, model.device)
    if call.feed is not None:
        raise HfGrError('hidden feedback needs the tree search; use method="beam" instead of "exhaustive".')
    supported, reason = tree_support(model, max(map(len, prompts)) + grammar.answer_length)
    if not supported:
        raise HfGrError(f"exhaustive search is not for this model: {reason}; use generate with enough beams.")
    check_filter(call.item_filter, grammar, len(prompts))
    grammar = grammar.to(model.device)
    answers = _answers(grammar)  # [orders, SIDs, T]
    trunk = Trunk.of(model, prompts)
    rows = max(1, CHUNK_COLUMNS // grammar.answer_length)
    scores = torch.stack(
        [
            torch.cat([_branch_scores(trunk, chunk, grammar, config, call) for chunk in order.split(rows)], dim=1)
            for order in answers
        ]
    ).logsumexp(0)
    check_scores(scores)
    scores, best = scores.sort(dim=1, descending=True, stable=True)
    tokens = answers[0][best]
    states = grammar.walk(answers[0])[best]
    dead = torch.isneginf(scores)[..., None]
    return Beams(
        tokens.masked_fill(dead, -1), states.masked_fill(dead, DEAD), scores, scores.new_empty(*scores.shape, 0)
    )


def _answers(grammar: SidGrammar) -> torch.Tensor:
    """All SIDs as written, int64 [orders, SIDs, T]."""
    codes = torch.unique(torch.from_numpy(grammar.item_codes).long(), dim=0).to(grammar.device)
    tokens = torch.stack([grammar.codebook_tokens(c)[codes[:, c]] for c in range(grammar.num_codes)], 1)
    orders = list(permutations(range(grammar.num_codes))) if grammar.any_order else [tuple(range(grammar.num_codes))]
    answers = torch.empty(len(orders), len(codes), grammar.answer_length, dtype=torch.int64, device=grammar.device)
    for step, think in enumerate(grammar.think_ids):
        answers[..., step * grammar.stride] = think
    for row, order in enumerate(orders):
        answers[row][:, list(grammar.code_columns)] = tokens[:, list(order)]
    return answers


def _branch_scores(
    trunk: Trunk, answers: torch.Tensor, grammar: SidGrammar, config: SearchConfig, call: Call
) -> torch.Tensor:
    """Log-probability of answers (int64 [n, T]) after every prompt, float [B, n]."""
    batch, count = len(trunk.lengths), len(answers)
    columns = list(grammar.code_columns)
    read = _read_from(trunk, answers)[:, :, columns].flatten(0, 1)
    index = grammar.step_index(answers)[:, columns].repeat(batch, 1)
    return path_log_probs(trunk.model, read, index, grammar, config, call.item_filter).view(batch, count)


def _read_from(trunk: Trunk, answers: torch.Tensor) -> torch.Tensor:
    """What every token of answers (int64 [n, T]) is read from after every prompt, float [B, n, T, d]."""
    batch, (count, length) = len(trunk.lengths), answers.shape
    if not trunk.reader.branches:
        x = trunk.hidden.expand(-1, count, -1).flatten(0, 1)
        return trunk.reader.all(x, answers.repeat(batch, 1)).view(batch, count, length, -1)
    within = torch.arange(count * length, device=answers.device)
    own = (within[:, None] // length == within // length) & (within[:, None] >= within)
    fed = answers.flatten().expand(batch, -1)
    hidden = trunk.feed(fed, within % length, own.expand(batch, -1, -1)).view(batch, count, length, -1)
    before = trunk.hidden[:, :, None].expand(-1, count, -1, -1)  # the first token is read from the prompt
    trunk.drop()
    return torch.cat([before, hidden[:, :, :-1]], dim=2)
