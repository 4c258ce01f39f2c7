"""Beams as branches of a cached prompt: what each next code is read from."""

import torch
from torch import nn

from ..grammar import SidGrammar
from ..models import feedback
from .trunk import Trunk


class Branches:
    """B prompts with W partial answers each, that grow by a code a step.

    Args:
        trunk: The prompts as read; the first thinking token is among them, unless there is a `feed`.
        grammar: Of the answers.
        feed: Of a model with hidden feedback ([`models.read`]).

    Attributes:
        hidden: float [B, W, d], what the next code is read from; W = 1 at the start.
    """

    def __init__(self, trunk: Trunk, grammar: SidGrammar, feed: nn.Linear | None):
        self.trunk, self.feed, self.think_ids = trunk, feed, grammar.think_ids
        self.hidden, self.step = trunk.hidden, 0
        # columns of each answer's tokens since the prompts
        self._ancestors = torch.empty(len(trunk.lengths), 1, 0, dtype=torch.int64, device=trunk.device)
        if feed is not None:
            self._think(torch.empty_like(self._ancestors))

    def grow(self, parent: torch.Tensor, token: torch.Tensor) -> None:
        """Continues the answers `parent` (int64 [B, W'], into the W that there are) by a code each, int64 [B, W']."""
        self.step += 1
        self._ancestors = self._ancestors.gather(1, parent[..., None].expand(-1, -1, self._ancestors.shape[2]))
        if self.trunk.reader.branches:
            self._think(token[..., None])
        else:
            prompt = self.trunk.hidden.expand(-1, token.shape[1], -1)
            self.hidden = self.trunk.reader.next(self.step, token, prompt)

    def _think(self, new: torch.Tensor) -> None:
        """Feeds every answer's newest code (int64 [B, W, 1]; [B, W, 0]: none yet) and, with thinking, the token after
        it."""
        if not self.think_ids:
            self._feed(new)
            return
        thought = torch.full((*new.shape[:2], 1), self.think_ids[self.step], device=new.device)
        if self.feed is None:
            self._feed(torch.cat([new, thought], dim=2))
        else:
            self._feed(new)
            self._feed(thought, feedback(self.feed, self.hidden))

    def _feed(self, new: torch.Tensor, added: torch.Tensor | None = None) -> None:
        """One forward pass over n new tokens of every answer, int64 [B, W, n]; with n = 0, none.

        `added` (float [B, W, d], for n = 1) is added to their embeddings.
        """
        batch, width, count = new.shape
        if not count:
            return
        device, before = new.device, self.trunk.columns
        depth = self._ancestors.shape[2] + torch.arange(count, device=device)
        own = before + torch.arange(width * count, device=device).view(width, count)
        self._ancestors = torch.cat([self._ancestors, own.expand(batch, -1, -1)], dim=2)
        visible = torch.zeros(batch, width, count, before + width * count, dtype=torch.bool, device=device)
        for place in range(count):  # a token sees its ancestors and itself, a code not the thought after it
            lineage = self._ancestors[:, :, : self._ancestors.shape[2] - (count - 1 - place)]
            visible[:, :, place].scatter_(2, lineage, True)
        hidden = self.trunk.feed(new.flatten(1), depth.repeat(width), visible.flatten(1, 2), added)
        self.hidden = hidden.view(batch, width, count, -1)[:, :, -1]
