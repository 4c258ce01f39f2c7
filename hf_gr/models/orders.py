"""In which order the codes of a set are written: always the code next that the model is surest of (CRSS, REG4Rec)."""

import torch
from transformers import DynamicCache, PreTrainedModel

from ..branches import Packed, additive_mask
from ..grammar import SidGrammar
from .head import code_logits


@torch.no_grad()
def confident_orders(
    model: PreTrainedModel, packed: Packed, answers: torch.Tensor, grammar: SidGrammar
) -> torch.Tensor:
    """The most confident order of given sets: of an answer's codes not written yet, always the likeliest one is next.

    The trunks are read once; then every answer grows by a column a step, so that this takes little more than one
    forward pass over the batch without gradients. [known: the order; reading it off branches is ours]

    Args:
        model: A decoder that takes masks of ours ([`~hf_gr.decoding.tree_support`]); dropout is off meanwhile.
        packed: Trunks with their answers on branches of their own.
        answers: bool [n], which of them are sets of C codes.
        grammar: Of these sets.

    Returns:
        int64 [m, C]: of each of the m chosen answers, the places of its labels in that order.
    """
    training = model.training
    model.eval()
    try:
        return _Reading(model, packed, answers, grammar.num_codes).orders(grammar)
    finally:
        model.train(training)


class _Reading:
    """Trunks in a cache, and answers that are fed to it a code at a time, A to a row."""

    def __init__(self, model: PreTrainedModel, packed: Packed, answers: torch.Tensor, num_codes: int):
        self.model, self.cache = model, DynamicCache()
        self.codes = packed.labels[answers][:, :num_codes]
        rows, columns = packed.trunk.shape
        anchor = packed.predictors[answers][:, 0]
        # the columns that answers continue come first, branches are not read
        unread = (packed.branch > 0) | (packed.trunk < 0)
        columns_first = unread.int().argsort(dim=1, stable=True)
        read, place = columns_first[:, : int((~unread).sum(1).max())], columns_first.argsort(dim=1)
        trunk = torch.where(unread, -1, packed.trunk).gather(1, read)
        position = packed.position_ids.gather(1, read)
        visible = (trunk[:, :, None] == trunk[:, None]) & (position[:, :, None] >= position[:, None])
        hidden = self._forward(packed.input_ids.gather(1, read), position, visible)
        self.row = anchor // columns
        self.hidden = hidden[self.row, place.view(-1)[anchor]]
        counts = torch.bincount(self.row, minlength=rows)
        first = torch.argsort(self.row, stable=True)
        self.slot = torch.empty_like(self.row)
        self.slot[first] = torch.arange(len(first), device=first.device) - (counts.cumsum(0) - counts)[self.row[first]]
        self.width = int(counts.max())
        self.start = packed.position_ids.view(-1)[anchor] + 1
        own = packed.trunk.view(-1)[anchor]
        self.sees = self._slots((trunk[self.row] == own[:, None]) & (position[self.row] < self.start[:, None]))

    def orders(self, grammar: SidGrammar) -> torch.Tensor:
        tokens = torch.cat([grammar.codebook_tokens(level) for level in range(grammar.num_codes)])
        number = grammar.code_numbers(self.codes)
        free = torch.ones_like(number, dtype=torch.bool)
        found: list[torch.Tensor] = []
        for step in range(grammar.num_codes):
            if step:
                self._feed(self.codes.gather(1, found[-1][:, None])[:, 0], step)
            # one softmax for all: the likeliest code is that of the largest logit
            logits = code_logits(self.model, self.hidden, tokens).gather(1, number)
            found.append(logits.masked_fill(~free, -torch.inf).argmax(1))
            free = free.scatter(1, found[-1][:, None], False)
        return torch.stack(found, 1)

    def _feed(self, tokens: torch.Tensor, step: int) -> None:
        """One more code (int64 [m]) of every answer."""
        slot = torch.eye(self.width, dtype=torch.bool, device=tokens.device).repeat(1, step)
        visible = torch.cat([self.sees, slot.expand(len(self.sees), -1, -1)], dim=2)
        hidden = self._forward(self._slots(tokens), self._slots(self.start + step - 1), visible)
        self.hidden = hidden[self.row, self.slot]

    def _slots(self, values: torch.Tensor) -> torch.Tensor:
        """Values [m, …] of answers, at their rows and slots, [B, A, …]; 0 where there is none."""
        rows = self.cache.layers[0].keys.shape[0]
        placed = values.new_zeros(rows, self.width, *values.shape[1:])
        placed[self.row, self.slot] = values
        return placed

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        mask = additive_mask(visible, self.model.dtype)
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
        return self.model.base_model(**inputs, past_key_values=self.cache, use_cache=True).last_hidden_state
