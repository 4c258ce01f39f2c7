"""The grammar as a `LogitsProcessor` for plain `generate()`."""

import torch
from transformers import GenerationConfig, LogitsProcessor

from ..errors import HfGrError
from .base import SidGrammar
from .filters import ItemFilter


class SidLogitsProcessor(LogitsProcessor):
    """Leaves only tokens that continue some live item's SID, then the end-of-sequence token.

    Stateless: it reads the answer so far from `input_ids`, so beams may be reordered and prompts may themselves end in
    SIDs. Made for one call ([`SidGrammar.logits_processor`]), since ids alone cannot tell prompt from answer. A forced
    token (a thinking token, the end of the sequence) scores 0. Scores that `generate` changed before, such as a
    repetition penalty inherited from an instruct model, stay changed: [`generation_config`] leaves such things out.

    Args:
        grammar: Of the catalogue and the model.
        prompt_length: Columns of `input_ids` that are prompt (padding included).
        eos_token_id: Forced after a complete answer; without one, an answer that is asked to go on raises.
        item_filter: Filter of each prompt; rows of `input_ids` are a multiple of its rows (beams).
        raise_on_dead: Whether an answer that nothing may follow raises [`HfGrError`]. Off for beam search, where
            `generate` carries impossible beams along when there are fewer answers than beams.
    """

    def __init__(
        self,
        grammar: SidGrammar,
        prompt_length: int,
        eos_token_id: int | None = None,
        item_filter: ItemFilter | None = None,
        raise_on_dead: bool = True,
    ):
        self.grammar, self.raise_on_dead, self.item_filter = grammar, raise_on_dead, item_filter
        self.prompt_length, self.eos_token_id = prompt_length, eos_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (float [rows, vocabulary]) with −inf on everything that may not follow."""
        answer = input_ids[:, self.prompt_length :]
        length, grammar = answer.shape[1], self.grammar.to(input_ids.device)
        masked = torch.full_like(scores, -torch.inf)
        if length >= grammar.answer_length:
            if self.eos_token_id is None:
                raise HfGrError(
                    f"an answer is complete after {grammar.answer_length} tokens: set max_new_tokens to that, or give "
                    "the processor an eos_token_id."
                )
            masked[:, self.eos_token_id] = 0
            return masked
        if length not in grammar.code_columns:
            masked[:, grammar.think_ids[length // grammar.stride]] = 0
            return masked
        step = length // grammar.stride
        tokens = grammar.step_tokens(step)
        options = grammar.successors(grammar.walk(answer), step, self.item_filter)
        if self.raise_on_dead and not options.allowed.any(1).all():
            row = int((~options.allowed.any(1)).nonzero()[0])
            raise HfGrError(
                f"row {row}: no live item continues the answer {answer[row].tolist()}; the filter leaves nothing, or "
                "the tokens are not a SID of this catalogue."
            )
        chosen = options.masked(scores[:, tokens])
        index = tokens.expand(len(scores), -1) if options.index is None else tokens[options.index]
        return masked.scatter_reduce_(1, index, chosen, "amax")  # a padding option may repeat an allowed token


def generation_config(grammar: SidGrammar, **settings: object) -> GenerationConfig:
    """Settings of a `generate` call that writes whole answers and takes nothing from the model's own defaults.

    Instruct models bring `top_k`, `top_p` or a repetition penalty, which would starve beams and change the policy.

    Args:
        grammar: Of the catalogue and the model.
        settings: What to add or to set otherwise (`num_beams`, `do_sample`, `temperature`, …).
    """
    neutral: dict[str, object] = {
        "max_new_tokens": grammar.answer_length,
        "min_length": 0,
        "length_penalty": 0.0,
        "early_stopping": False,
        "eos_token_id": None,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "renormalize_logits": False,
    }
    if settings.get("do_sample"):
        neutral |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
        neutral |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
    return GenerationConfig(**(neutral | settings))
