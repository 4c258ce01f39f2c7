"""The row path: beams by plain `generate()` with our processor, for LMs that take no ancestor mask."""

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput

from ..grammar import ItemFilter, SidGrammar
from ..vocabulary import SidVocabulary
from .beam import Beams, Method, pad_left
from .logits_process import SidLogitsProcessor


@torch.no_grad()
def generate_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    vocabulary: SidVocabulary,
    *,
    num_beams: int,
    method: Method = "beam",
    temperature: float = 1.0,
    item_filter: ItemFilter | None = None,
) -> Beams:
    """As [`tree_search`], by plain `generate`: slower, for any causal LM.

    With `method="beam"` scores are those of `score="model"`; samples are scored by the constrained policy.
    `Beams.log_probs` is empty ([B, W, 0]): `generate` returns sums only.
    """
    device = model.device
    ids, mask = pad_left(prompts, fill=vocabulary.start_id, device=device)
    sample = method == "sample"
    width = num_beams if sample else min(num_beams, grammar.num_sids)
    strategy = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if sample else {}
    config = GenerationConfig(
        max_new_tokens=grammar.num_levels,
        num_beams=1 if sample else width,
        num_return_sequences=width,
        length_penalty=0.0,
        **strategy,
        pad_token_id=vocabulary.start_id,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    processor = SidLogitsProcessor(grammar, vocabulary, ids.shape[1], 0, item_filter, raise_on_dead=False)
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([processor])
    )
    codes = vocabulary.codes_of(output.sequences[:, ids.shape[1] :])
    states = grammar.walk(codes).view(len(prompts), width)
    beams = config.num_beams > 1
    scores = (output.sequences_scores if beams else _chosen_scores(output)).view(len(prompts), width).float()
    # `generate` fills up with impossible beams where fewer SIDs are live than beams
    dead = (states < 0) | (scores < -1e8)
    if item_filter is not None:
        rows = item_filter.rows(torch.arange(len(prompts), device=device).repeat_interleave(width))
        dead |= (grammar.items(states.view(-1, 1), rows) < 0).all(1).view(dead.shape)
    codes = codes.view(len(prompts), width, -1).masked_fill(dead[..., None], -1)
    return Beams(
        codes,
        states.masked_fill(dead, -1),
        scores.masked_fill(dead, -torch.inf),
        codes.new_empty(*dead.shape, 0).float(),
    )


def _chosen_scores(output: GenerateDecoderOnlyOutput) -> torch.Tensor:
    """Sum of the chosen tokens' log-probabilities of a `generate` call without beams, float [rows]."""
    steps = output.sequences[:, -len(output.scores) :]
    chosen = [torch.log_softmax(s.float(), -1).gather(1, steps[:, [i]]) for i, s in enumerate(output.scores)]
    return torch.cat(chosen, 1).sum(1)
