"""The row path: beams by plain `generate()` with our processor, for LMs that take no ancestor mask."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel

from ..errors import HfGrError
from ..grammar import DEAD, SidGrammar, SidLogitsProcessor, check_scores, generation_config
from ..search_config import SearchConfig
from .beams import Beams
from .call import Call, check_filter, check_prompts, settled
from .padding import pad_left


@torch.no_grad()
def generate_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    config: SearchConfig | None = None,
    call: Call | None = None,
    **options: Any,
) -> Beams:
    """As [`tree_search`], by plain `generate`: slower, for any causal LM.

    Orders of one set in an unordered grammar are not merged. Generator and prefix cache of the call are not used. What
    is for the tree is refused ([`HfGrError`]): `method="gumbel"`, `reflection`, `graphs` and hidden feedback.
    """
    check_prompts(prompts)
    config, call = settled(config, call, options, model.device)
    for option, wanted in (
        ('method="gumbel"', config.method == "gumbel"),
        ('method="exhaustive"', config.method == "exhaustive"),
        ("reflection", call.reflection is not None),
        ("graphs", config.graphs),
        ("hidden feedback", call.feed is not None),
    ):
        if wanted:
            raise HfGrError(f"{option} needs the tree search, which this model does not take; leave it out.")
    item_filter, num_beams = call.item_filter, config.num_beams
    check_filter(item_filter, grammar, len(prompts))
    grammar = grammar.to(model.device)
    fill = int(grammar.step_tokens(0)[0])  # hidden by the attention mask
    ids, mask = pad_left(prompts, fill=fill, device=model.device)
    sample = config.method == "sample"
    settings = {"do_sample": True, "temperature": config.temperature} if sample else {"num_beams": num_beams}
    generation = generation_config(
        grammar,
        **settings,
        num_return_sequences=num_beams,
        pad_token_id=fill,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    processor = SidLogitsProcessor(
        grammar,
        ids.shape[1],
        item_filter=item_filter,
        raise_on_dead=False,
        renormalize=config.score == "constrained" and not sample,
        temperature=1.0 if sample else config.temperature,
    )
    with _seeded(config.seed, model.device):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=generation,
            logits_processor=LogitsProcessorList([processor]),
        )
    answers = output.sequences[:, ids.shape[1] :]
    states = grammar.walk(answers)
    if generation.num_beams > 1:
        scores = output.sequences_scores.float()
    else:
        scores = _chosen_scores(output.logits, answers, grammar, config)
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


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """`generate` draws from PyTorch's own random numbers, which are as before afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _chosen_scores(
    logits: Sequence[torch.Tensor], answers: torch.Tensor, grammar: SidGrammar, config: SearchConfig
) -> torch.Tensor:
    """Log-probability float32 [rows] of answers (int64 [rows, T]) under the logits of each token, without a filter."""
    total, index = torch.zeros(len(answers), device=answers.device), grammar.step_index(answers)
    for step, column in enumerate(grammar.code_columns):
        read = logits[column].float() / config.temperature
        if config.score == "model":
            total = total + torch.log_softmax(read, -1).gather(1, answers[:, column, None])[:, 0]
            continue
        options = grammar.successors(grammar.walk(answers[:, :column]), step)
        option = options.option_of(index[:, column])
        chosen = options.log_probs(read[:, grammar.step_tokens(step)]).gather(1, option.clamp(min=0)[:, None])[:, 0]
        total = total + chosen.masked_fill(option < 0, -torch.inf)
    return total
