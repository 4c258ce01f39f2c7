"""The grammar as a `LogitsProcessor` for plain `generate()`."""

import torch
from transformers import LogitsProcessor

from ..errors import HfGrError
from ..grammar import ItemFilter, SidGrammar
from ..vocabulary import SidVocabulary


class SidLogitsProcessor(LogitsProcessor):
    """Leaves only tokens that continue some live item's SID, then the end-of-sequence token.

    Stateless: it reads the answer so far from `input_ids`, so beams may be reordered and prompts may themselves end in
    SIDs. Made for one call, since ids alone cannot tell prompt from answer.

    Args:
        grammar: Of the catalogue.
        vocabulary: Of the model.
        prompt_length: Columns of `input_ids` that are prompt (padding included).
        eos_token_id: Forced after a complete SID.
        item_filter: Filter of each prompt; rows of `input_ids` are a multiple of its rows (beams).
        raise_on_dead: Whether an answer that nothing may follow raises [`HfGrError`]. Off for beam search, where
            `generate` carries impossible beams along when there are fewer answers than beams.
    """

    def __init__(
        self,
        grammar: SidGrammar,
        vocabulary: SidVocabulary,
        prompt_length: int,
        eos_token_id: int,
        item_filter: ItemFilter | None = None,
        raise_on_dead: bool = True,
    ):
        self.grammar, self.vocabulary, self.raise_on_dead = grammar, vocabulary, raise_on_dead
        self.prompt_length, self.eos_token_id, self.item_filter = prompt_length, eos_token_id, item_filter

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (float [rows, vocabulary]) with −inf on everything that may not follow."""
        answer = input_ids[:, self.prompt_length :]
        mask = torch.full_like(scores, -torch.inf)
        if answer.shape[1] >= self.grammar.num_levels:
            mask[:, self.eos_token_id] = 0
            return scores + mask
        allowed_tokens, allowed = allowed_next(self.grammar, self.vocabulary, answer, self._row_filter(len(input_ids)))
        if self.raise_on_dead and not allowed.any(1).all():
            row = int((~allowed.any(1)).nonzero()[0])
            raise HfGrError(
                f"row {row}: no live item continues the answer {answer[row].tolist()}; the filter leaves nothing, or "
                "the tokens are not a SID of this catalogue."
            )
        mask.scatter_reduce_(1, allowed_tokens, torch.where(allowed, 0.0, -torch.inf).to(mask), "amax")
        return scores + mask

    def _row_filter(self, rows: int) -> ItemFilter | None:
        if self.item_filter is None:
            return None
        prompts = len(self.item_filter.restricted)
        return self.item_filter.rows(
            torch.arange(prompts, device=self.grammar.device).repeat_interleave(rows // prompts)
        )


def allowed_next(
    grammar: SidGrammar, vocabulary: SidVocabulary, answer: torch.Tensor, item_filter: ItemFilter | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that may follow partial answers.

    Args:
        answer: int64 [rows, l], l < L, the tokens written so far. A row that is no prefix of a SID allows nothing.

    Returns:
        Token ids int64 [rows, D] and whether each is allowed, bool [rows, D]. A token may occur twice in a row, once
        allowed and once as padding that is not.
    """
    level = answer.shape[1]
    state = grammar.walk(vocabulary.codes_of(answer)) if level else grammar.initial(len(answer))
    options = grammar.successors(state, level, item_filter)
    return vocabulary.level_token_ids(level, answer.device)[options.codes], options.allowed
