"""The row path: beams by plain `generate()` with our processor, for LMs that take no ancestor mask."""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList, PreTrainedModel

from ..errors import HfGrError
from ..grammar import DEAD, ItemFilter, SidGrammar, check_scores, generation_config
from .tree import Beams, Method, check_filter, check_prompts, check_score
from .trunk import Score, pad_left


@torch.no_grad()
def generate_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    *,
    num_beams: int,
    method: Method = "beam",
    score: Score = "constrained",
    temperature: float = 1.0,
    item_filter: ItemFilter | None = None,
) -> Beams:
    """As [`tree_search`], by plain `generate`: slower, for any causal LM.

    Orders of one set in an unordered grammar are not merged.
    `method="gumbel"` is for the tree ([`HfGrError`]).
    """
    if method == "gumbel":
        raise HfGrError('method="gumbel" needs the tree search, which this model does not take; use "sample".')
    check_score(method, score)
    check_prompts(prompts)
    check_filter(item_filter, grammar, len(prompts))
    grammar = grammar.to(model.device)
    item_filter = None if item_filter is None else item_filter.to(model.device)
    fill = int(grammar.step_tokens(0)[0])  # hidden by the attention mask
    ids, mask = pad_left(prompts, fill=fill, device=model.device)
    sample = method == "sample"
    settings = {"do_sample": True, "temperature": temperature} if sample else {"num_beams": num_beams}
    config = generation_config(
        grammar,
        **settings,
        num_return_sequences=num_beams,
        pad_token_id=fill,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    processor = grammar.logits_processor(
        prompt_length=ids.shape[1],
        item_filter=item_filter,
        raise_on_dead=False,
        renormalize=score == "constrained" and not sample,
        temperature=1.0 if sample else temperature,
    )
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([processor])
    )
    answers = output.sequences[:, ids.shape[1] :]
    states = grammar.walk(answers)
    if config.num_beams > 1:
        scores = output.sequences_scores.float()
    else:
        scores = _chosen_scores(output.logits, answers, grammar, score, temperature)
    # `generate` fills up with impossible beams where fewer SIDs are live than beams
    dead = ~grammar.alive(states) | (scores < -1e8)
    if item_filter is not None:
        dead |= (grammar.items(states, item_filter, limit=1) < 0).all(1)
    check_scores(scores.masked_fill(dead, 0))
    shape = len(prompts), num_beams
    scores = scores.masked_fill(dead, -torch.inf).view(shape)
    return Beams(
        answers.masked_fill(dead[:, None], -1).view(*shape, -1),
        states.masked_fill(dead[:, None], DEAD).view(*shape, -1),
        scores,
        scores.new_empty(*shape, 0),
    )


def _chosen_scores(
    logits: Sequence[torch.Tensor], answers: torch.Tensor, grammar: SidGrammar, score: Score, temperature: float
) -> torch.Tensor:
    """Log-probability float32 [rows] of answers (int64 [rows, T]) under the logits of each token, without a filter."""
    total, index = torch.zeros(len(answers), device=answers.device), grammar.step_index(answers)
    for step, column in enumerate(grammar.code_columns):
        read = logits[column].float() / temperature
        if score == "model":
            total = total + torch.log_softmax(read, -1).gather(1, answers[:, column, None])[:, 0]
            continue
        options = grammar.successors(grammar.walk(answers[:, :column]), step)
        option = options.option_of(index[:, column])
        chosen = options.log_probs(read[:, grammar.step_tokens(step)]).gather(1, option.clamp(min=0)[:, None])[:, 0]
        total = total + chosen.masked_fill(option < 0, -torch.inf)
    return total
