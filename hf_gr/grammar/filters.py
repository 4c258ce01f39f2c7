"""Request-time filters: which items are live for whom."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

import numpy as np
import torch

from ..errors import HfGrError


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ItemMask:
    """Live items, one flag each: for filters that many requests share or that name a large part of the catalog.

    Attributes:
        grammar: Identity of the grammar that made it ([`SidGrammar.identity`]).
        below: int32 [n + 1], `below[p]` is the number of live items among the first p positions (on the host).
        nodes: Per depth of the trie, whether a live item lies below each node, bool [nodes]; positions are the last.
        tables: Live items by code and by pair of codes, where an unordered grammar keeps such tables.
    """

    grammar: object
    below: np.ndarray
    nodes: list[torch.Tensor]
    tables: list[torch.Tensor] = field(default_factory=list)

    @property
    def num_items(self) -> int:
        return int(self.below[-1])

    def live(self, positions: np.ndarray) -> np.ndarray:
        """Whether the items at these positions are live."""
        return self.below[positions + 1] > self.below[positions]


@dataclass(frozen=True, eq=False)
class ItemFilter:
    """The filters of R requests. Made by [`SidGrammar.filter`].

    Attributes:
        grammar: Identity of the grammar that made it ([`SidGrammar.identity`]).
        deny, allow, only: What was asked, per request.
        live: int64 [R], number of items that can be an answer.
        restricted: bool [R], whether `listed` names the live items (True) or the dead ones (False).
        listed: int64 [R, n], ascending positions, padded with the number of positions.
        mask_row: int64 [R], row of `masks` that counts as well; −1: none.
        masks: Distinct masks of the batch, per depth bool [masks, nodes]; empty if there are none.
        tables: Their tables, stacked likewise.
        marked: Per depth of the trie int64 [R, n], ascending: nodes with a live item (restricted) or without one,
            where the mask alone would not tell; padded by more than `widths` with a number that is no node.
        widths: Per depth, how many marked nodes one parent has at most.
    """

    grammar: object
    deny: Sequence[np.ndarray | None]
    allow: Sequence[np.ndarray | None]
    only: Sequence[ItemMask | None]
    live: torch.Tensor
    restricted: torch.Tensor
    listed: torch.Tensor
    mask_row: torch.Tensor
    masks: list[torch.Tensor]
    tables: list[torch.Tensor] = field(default_factory=list)
    marked: list[torch.Tensor] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.deny)

    def rows(self, index: torch.Tensor) -> Self:
        """The filters of the requests `index` (int64 [n]); one may be taken more than once."""
        chosen = index.tolist()
        return replace(
            self,
            deny=[self.deny[row] for row in chosen],
            allow=[self.allow[row] for row in chosen],
            only=[self.only[row] for row in chosen],
            live=self.live[index],
            restricted=self.restricted[index],
            listed=self.listed[index],
            mask_row=self.mask_row[index],
            marked=[nodes[index] for nodes in self.marked],
        )

    def to(self, device: torch.device | str) -> Self:
        if torch.device(device) == self.live.device:
            return self
        return replace(
            self,
            live=self.live.to(device),
            restricted=self.restricted.to(device),
            listed=self.listed.to(device),
            mask_row=self.mask_row.to(device),
            masks=[mask.to(device) for mask in self.masks],
            tables=[table.to(device) for table in self.tables],
            marked=[nodes.to(device) for nodes in self.marked],
        )

    def check(self, grammar: object, requests: int | None = None) -> None:
        """Raises [`HfGrError`] where the filter is not of the grammar of this identity, or not of so many requests."""
        if self.grammar is not grammar:
            raise HfGrError("a filter belongs to the grammar that made it; make it again with this one's `filter`.")
        if requests is not None and len(self) != requests:
            raise HfGrError(f"the filter is of {len(self)} request(s), but there are {requests} prompt(s).")

    def beams(self, rows: int) -> int:
        """How many of so many rows each request has; the rows of one request stand together."""
        beams, rest = divmod(rows, max(len(self), 1))
        if rest or (rows and not len(self)):
            raise HfGrError(
                f"{rows} rows are no multiple of the filter's {len(self)} requests; give a filter for each prompt."
            )
        return beams

    def passes_mask(self, depth: int, nodes: torch.Tensor) -> torch.Tensor:
        """Whether the masks let nodes of one depth pass, bool like `nodes` [rows, n], rows a multiple of R.

        Numbers that are no nodes (padding) get any answer.
        """
        row, live = self.mask_row.repeat_interleave(self.beams(len(nodes)))[:, None], self.masks[depth]
        return live[row.clamp(min=0), nodes.clamp(0, live.shape[1] - 1)] | (row < 0)


def each(lists: Sequence[T | None] | None, requests: int) -> list[T | None]:
    """What is given for each request; nothing where nothing is given at all."""
    return [None] * requests if lists is None else list(lists)


def ragged(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values of a list of lists, int64 [total] each."""
    rows = np.repeat(np.arange(len(lists)), [len(x) for x in lists])
    return rows, np.concatenate([np.empty(0, np.int64), *lists]).astype(np.int64)


def pad_rows(rows: np.ndarray, values: np.ndarray, num_rows: int, fill: int, extra: int = 0) -> torch.Tensor:
    """The inverse of [`ragged`]: int64 [num_rows, longest + extra]; values keep their order."""
    counts = np.bincount(rows, minlength=num_rows)
    table = np.full((num_rows, int(counts.max(initial=0)) + extra), fill, np.int64)
    first = np.cumsum(counts) - counts
    table[rows, np.arange(len(rows)) - first[rows]] = values
    return torch.from_numpy(table)
