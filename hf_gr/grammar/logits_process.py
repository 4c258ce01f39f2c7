"""The grammar as a `LogitsProcessor` for plain `generate()`."""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor

from ..errors import HfGrError
from .base import SidGrammar, check_scores
from .filters import ItemFilter


SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class SidLogitsProcessor(LogitsProcessor):
    """Leaves only tokens that continue some live item's SID, then the end-of-sequence token.

    Stateless: it reads the answer so far from `input_ids`, so beams may be reordered and prompts may themselves end in
    SIDs. Made for one call, since ids alone cannot tell prompt from answer. A forced
    token (a thinking token, the end of the sequence) scores 0. Scores that `generate` changed before, such as a
    repetition penalty inherited from an instruct model, stay changed: [`generation_config`] keeps such things away.

    Args:
        grammar: Of the catalog and the model.
        prompt_length: Columns of `input_ids` that are prompt (padding included).
        eos_token_id: Forced after a complete answer; without one, an answer that is asked to go on raises.
        item_filter: Filter of each prompt; rows of `input_ids` are a multiple of its rows (beams).
        raise_on_dead: Whether an answer that nothing may follow raises [`HfGrError`]. Off for beam search, where
            `generate` carries impossible beams along when there are fewer answers than beams.
        renormalize: Whether scores become log-probabilities among all that the catalog has, of which the filter then
            takes its part away: beams then follow the constrained policy, as `tree_search(score="constrained")` does.
        temperature: Divides the logits, for beams; where `generate` samples, it has a temperature of its own.
    """

    def __init__(
        self,
        grammar: SidGrammar,
        prompt_length: int,
        eos_token_id: int | None = None,
        item_filter: ItemFilter | None = None,
        raise_on_dead: bool = True,
        renormalize: bool = False,
        temperature: float = 1.0,
    ):
        if item_filter is not None:
            item_filter.check(grammar.identity)
        self.grammar, self.raise_on_dead, self.item_filter = grammar, raise_on_dead, item_filter
        self.renormalize, self.temperature = renormalize, temperature
        self.prompt_length, self.eos_token_id = prompt_length, eos_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (float [rows, vocabulary]) with −inf on everything that may not follow."""
        if input_ids.shape[1] < self.prompt_length:
            raise HfGrError(
                f"input_ids has {input_ids.shape[1]} columns, but the prompts were said to have {self.prompt_length}; "
                "make a processor for each call of `generate`."
            )
        self._move(input_ids.device)
        grammar, answer = self.grammar, input_ids[:, self.prompt_length :]
        length = answer.shape[1]
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
        if self.temperature != 1:
            scores = torch.log_softmax(scores / self.temperature, -1)
        step = length // grammar.stride
        tokens = grammar.step_tokens(step)
        options = grammar.successors(grammar.walk(answer), step, self.item_filter)
        if self.raise_on_dead and not options.allowed.any(1).all():
            row = int((~options.allowed.any(1)).nonzero()[0])
            raise HfGrError(
                f"row {row}: no live item continues the answer {answer[row].tolist()}; the filter leaves nothing, or "
                "the tokens are not a SID of this catalog."
            )
        read = scores[:, tokens]
        chosen = options.log_probs(read) if self.renormalize else options.masked(read)
        check_scores(chosen)
        index = tokens.expand(len(scores), -1) if options.index is None else tokens[options.index]
        return masked.scatter_reduce_(1, index, chosen, "amax")  # a padding option may repeat an allowed token

    def _move(self, device: torch.device) -> None:
        """Takes grammar and filter to the device of the ids, once."""
        self.grammar = self.grammar.to(device)
        self.item_filter = None if self.item_filter is None else self.item_filter.to(device)


class _OwnSettings(GenerationConfig):
    """Settings that take only the special tokens from the model's own.

    `generate` fills whatever is unset here from the model's `generation_config`, by `update(defaults_only=True)`. What
    stays unset changes no score, whereas much of it (`forced_eos_token_id`, `top_h`, …) has no neutral value to set.
    """

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **values: Any) -> dict[str, Any]:
        if defaults_only:
            values = {name: value for name, value in values.items() if name in SPECIAL_TOKENS}
        return super().update(defaults_only=defaults_only, allow_custom_entries=allow_custom_entries, **values)


def generation_config(grammar: SidGrammar, **settings: object) -> GenerationConfig:
    """Settings of a `generate` call that writes whole answers and takes nothing from the model but its special tokens.

    Instruct models bring `top_k`, `top_p` or a repetition penalty, which would starve beams and change the policy.
    With beams, sequence scores are sums of log-probabilities (no length penalty).

    Args:
        grammar: Of the catalog and the model.
        settings: What to add or to set otherwise (`num_beams`, `do_sample`, `temperature`, …).
    """
    own: dict[str, object] = {
        "max_new_tokens": grammar.answer_length,
        "min_length": 0,
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "use_cache": True,
    }
    if settings.get("num_beams", 1) != 1:
        own |= {"length_penalty": 0.0, "early_stopping": False}
    return _OwnSettings(**(own | settings))
