"""What may follow: a vectorised state machine over partial SIDs.

The items are sorted by SID; a prefix of a SID is then a contiguous range of that order, and so is a node of the trie.
Each level stores, for every node, its code, where its range starts, and where its children start (CSR). A state is a
node's number within its level. Filters are per row: a node is allowed only while a live item lies in its range, which
two binary searches in the row's sorted list of denied (or allowed) positions tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .errors import HfGrError


@dataclass(frozen=True)
class ItemFilter:
    """Which items are live, per row.

    Attributes:
        denied: int64 [rows, D], sorted positions that are no answer, padded with the number of positions.
        allowed: int64 [rows, A], sorted positions that alone are answers, padded likewise.
        restricted: bool [rows]; whether `allowed` (True) or `denied` (False) counts in that row.
    """

    denied: torch.Tensor
    allowed: torch.Tensor
    restricted: torch.Tensor

    def rows(self, index: torch.Tensor) -> "ItemFilter":
        """The filter of the rows `index` (int64 [n]); a row may be taken more than once."""
        return ItemFilter(self.denied[index], self.allowed[index], self.restricted[index])

    def to(self, device: torch.device | str) -> "ItemFilter":
        return ItemFilter(self.denied.to(device), self.allowed.to(device), self.restricted.to(device))

    def live(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Number of live items in the ranges `start:end` (int64 [rows, n] each), int64 [rows, n]."""

        def within(positions: torch.Tensor) -> torch.Tensor:
            return torch.searchsorted(positions, end) - torch.searchsorted(positions, start)

        return torch.where(self.restricted[:, None], within(self.allowed), end - start - within(self.denied))


@dataclass(frozen=True)
class Successors:
    """What may follow each row's state; D is the largest number of children on the level.

    Attributes:
        codes: int64 [rows, D].
        states: int64 [rows, D], the state after each code.
        allowed: bool [rows, D]; entries that are False are padding or have no live item below them.
    """

    codes: torch.Tensor
    states: torch.Tensor
    allowed: torch.Tensor


class SidGrammar:
    """Flat grammar `s_1 s_2 … s_L` over a catalogue.

    Args:
        codes: int [N, L] SIDs.
        codebook_sizes: Codes per level.
        popularity: int [N]; on a shared SID the more popular item is returned first, then the lower row.
        items: Rows that can be an answer (default: all). Raises [`HfGrError`] when there are none.
    """

    def __init__(
        self,
        codes: np.ndarray,
        codebook_sizes: Sequence[int],
        popularity: np.ndarray | None = None,
        items: np.ndarray | None = None,
    ):
        rows = np.arange(len(codes)) if items is None else np.asarray(items)
        if not len(rows):
            raise HfGrError("the catalogue has no live item; add items before asking for recommendations.")
        self.codebook_sizes = tuple(codebook_sizes)
        chosen = np.asarray(codes)[rows].astype(np.int64)
        rank = np.zeros(len(rows)) if popularity is None else -np.asarray(popularity)[rows]
        order = np.lexsort((rows, rank, *chosen.T[::-1]))
        chosen = chosen[order]
        position = np.full(len(codes), len(rows), np.int64)  # removed items stand past the end
        position[rows[order]] = np.arange(len(rows))
        self._item = torch.from_numpy(rows[order].astype(np.int64))
        self._position = torch.from_numpy(position)
        self._build(chosen)

    def _build(self, codes: np.ndarray) -> None:
        """Per level: `code` and `start` of its nodes, and `children`, where each parent's nodes begin."""
        n = len(codes)
        starts = [np.zeros(1, np.int64)]
        changed = np.zeros(n, bool)
        changed[0] = True
        self._code, self._children = [], []
        for level in range(codes.shape[1]):
            changed[1:] |= codes[1:, level] != codes[:-1, level]
            starts.append(np.flatnonzero(changed))
            self._code.append(torch.from_numpy(codes[starts[-1], level]))
            first_child = np.searchsorted(starts[-1], np.append(starts[-2], n))
            self._children.append(torch.from_numpy(first_child))
        self._start = [torch.from_numpy(np.append(start, n)) for start in starts]
        self._width = [int(torch.diff(children).max()) for children in self._children]

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def num_items(self) -> int:
        """Number of items that can be an answer."""
        return len(self._item)

    @property
    def num_sids(self) -> int:
        """Number of distinct SIDs among them."""
        return len(self._code[-1])

    @property
    def device(self) -> torch.device:
        return self._item.device

    def to(self, device: torch.device | str) -> "SidGrammar":
        """The grammar on another device (this one if it is there already)."""
        if torch.device(device) == self.device:
            return self
        moved = SidGrammar.__new__(SidGrammar)
        moved.codebook_sizes, moved._width = self.codebook_sizes, self._width
        moved._item, moved._position = self._item.to(device), self._position.to(device)
        moved._code = [x.to(device) for x in self._code]
        moved._children = [x.to(device) for x in self._children]
        moved._start = [x.to(device) for x in self._start]
        return moved

    def initial(self, rows: int) -> torch.Tensor:
        """State before the first code, int64 [rows, 1]."""
        return torch.zeros(rows, 1, dtype=torch.int64, device=self.device)

    def successors(self, state: torch.Tensor, level: int, item_filter: ItemFilter | None = None) -> Successors:
        """What may follow `state` (int64 [rows, 1]; after −1, a dead row, nothing may) on `level` (from 0)."""
        node = state.clamp(min=0)
        first, last = self._children[level][node], self._children[level][node + 1]
        child = first + torch.arange(self._width[level], device=self.device)
        allowed = (child < last) & (state >= 0)
        child = child.clamp(max=len(self._code[level]) - 1)
        if item_filter is not None:
            start = self._start[level + 1]
            allowed &= item_filter.live(start[child], start[child + 1]) > 0
        return Successors(self._code[level][child], child, allowed)

    def step(self, state: torch.Tensor, level: int, codes: torch.Tensor) -> torch.Tensor:
        """State after `codes` (int64 [rows]); −1 where no item continues so."""
        options = self.successors(state, level)
        match = (options.codes == codes[:, None]) & options.allowed
        following = options.states.gather(1, match.int().argmax(1, keepdim=True))
        return torch.where(match.any(1, keepdim=True), following, -1)

    def walk(self, codes: torch.Tensor) -> torch.Tensor:
        """State after the codes of `codes` (int64 [rows, l], l ≤ L), int64 [rows, 1]; −1 where no item begins so."""
        state = self.initial(len(codes))
        for level in range(codes.shape[1]):
            state = self.step(state, level, codes[:, level])
        return state

    def items(self, state: torch.Tensor, item_filter: ItemFilter | None = None) -> torch.Tensor:
        """Live items of complete SIDs in bucket order, int64 [rows, largest bucket], −1 where there is none."""
        node = state[:, 0].clamp(min=0)
        start, end = self._start[-1][node], self._start[-1][node + 1]
        end = torch.where(state[:, 0] >= 0, end, start)
        width = int((end - start).max()) if len(state) else 0
        position = start[:, None] + torch.arange(width, device=self.device)
        inside = position < end[:, None]
        if item_filter is not None:
            inside &= item_filter.live(position, position + 1) > 0
        return torch.where(inside, self._item[position.clamp(max=len(self._item) - 1)], -1)

    def filter(
        self, deny: Sequence[np.ndarray | None], allow: Sequence[np.ndarray | None] | None = None
    ) -> ItemFilter:
        """Filters of a batch from item rows: `deny[i]` are no answer in row i; `allow[i]`, if given, alone may be.

        Rows whose filter leaves no item are found with [`live_items`]; searching them raises.
        """
        allow = [None] * len(deny) if allow is None else allow
        position, n = self._position.cpu().numpy(), self.num_items
        denied = [
            np.unique(position[rows]) if rows is not None and len(rows) else np.empty(0, np.int64) for rows in deny
        ]
        denied = [rows[rows < n] for rows in denied]
        allowed = []
        for wanted, unwanted in zip(allow, denied, strict=True):
            kept = np.empty(0, np.int64) if wanted is None else np.unique(position[np.asarray(wanted, np.int64)])
            allowed.append(np.setdiff1d(kept[kept < n], unwanted, assume_unique=True))
        restricted = torch.tensor([wanted is not None for wanted in allow], dtype=torch.bool)
        return ItemFilter(_pad(denied, n), _pad(allowed, n), restricted).to(self.device)

    def live_items(self, item_filter: ItemFilter) -> torch.Tensor:
        """Number of items that can be an answer in each row, int64 [rows]."""
        start = torch.zeros(len(item_filter.restricted), 1, dtype=torch.int64, device=self.device)
        return item_filter.live(start, start + self.num_items)[:, 0]


def _pad(lists: Sequence[np.ndarray], fill: int) -> torch.Tensor:
    width = max((len(x) for x in lists), default=0)
    padded = np.full((len(lists), width), fill, np.int64)
    for row, values in enumerate(lists):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded)
