"""The row path: beams by plain `generate()` with our processor, for LMs that take no ancestor mask."""

import torch
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput

from ..errors import HfGrError
from ..grammar import DEAD, ItemFilter, SidGrammar, generation_config
from .tree import Beams, Method, check_filter
from .trunk import pad_left


@torch.no_grad()
def generate_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    *,
    num_beams: int,
    method: Method = "beam",
    temperature: float = 1.0,
    item_filter: ItemFilter | None = None,
) -> Beams:
    """As [`tree_search`], by plain `generate`: slower, for any causal LM.

    With `method="beam"` scores are those of `score="model"`, and orders of one set in an unordered grammar are not
    merged; samples are scored by the constrained policy. `method="gumbel"` is for the tree only ([`HfGrError`]).
    """
    if method == "gumbel":
        raise HfGrError('method="gumbel" needs the tree search, which this model does not take; use "sample".')
    check_filter(item_filter)
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
    )
    processor = grammar.logits_processor(
        prompt_length=ids.shape[1], item_filter=item_filter, raise_on_dead=False
    )
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([processor])
    )
    answers = output.sequences[:, ids.shape[1] :]
    states = grammar.walk(answers)
    beams = config.num_beams > 1
    scores = (output.sequences_scores if beams else _chosen_scores(output)).float()
    # `generate` fills up with impossible beams where fewer SIDs are live than beams
    dead = ~grammar.alive(states) | (scores < -1e8)
    if item_filter is not None:
        dead |= (grammar.items(states, item_filter, limit=1) < 0).all(1)
    shape = len(prompts), num_beams
    scores = scores.masked_fill(dead, -torch.inf).view(shape)
    return Beams(
        answers.masked_fill(dead[:, None], -1).view(*shape, -1),
        states.masked_fill(dead[:, None], DEAD).view(*shape, -1),
        scores,
        scores.new_empty(*shape, 0),
    )


def _chosen_scores(output: GenerateDecoderOnlyOutput) -> torch.Tensor:
    """Sum of the chosen tokens' log-probabilities of a `generate` call without beams, float [rows]."""
    steps = output.sequences[:, -len(output.scores) :]
    chosen = [torch.log_softmax(s.float(), -1).gather(1, steps[:, [i]]) for i, s in enumerate(output.scores)]
    return torch.cat(chosen, 1).sum(1)
