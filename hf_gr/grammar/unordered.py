"""Unordered SIDs (REG4Rec): a set with one code of each of M codebooks, written in any order.

After some codes, a code of an unused codebook may follow if a live item carries it and all those before. What may
follow is found by counting: the items that satisfy a partial set, by their codes. For no code and for one the counts
stand in tables; for more, the items are read off an inverted list. There is one for every pair of codebooks, so that
two chosen codes leave some N / K² items to look at; longer sets take the shortest list among their pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from .base import SidGrammar, Successors
from .filters import ItemFilter, ItemMask
from .requests import make_filter
from .trie import TrieGrammar


OPEN = -1  # in a state: no code of this codebook yet
TABLE_CODES = 4096  # the table of pairs is kept while all codebooks together have at most as many codes
CHUNK_ITEMS = 1 << 18  # candidates looked at in one go


class UnorderedGrammar(SidGrammar):
    """The grammar of sets of M codes, with thinking tokens if wanted. Arguments: as [`SidGrammar`].

    A state holds the code chosen of each codebook or −1, int64 [rows, M]. Codes are numbered through all codebooks,
    and every step chooses among all ΣK of them.

    Memory: 2·M·(M − 1) bytes an item for the lists of pairs (and 4·K_i·K_j bytes a pair), M bytes for its codes (twice
    as many with more than 256 codes a codebook), and a [`TrieGrammar`] of the same SIDs for buckets and filters.
    [`successors`] waits for the device from the third code on, and wherever there is a filter: how many items it looks
    at decides the size of its tensors.
    """

    any_order = True

    def __init__(
        self,
        codes: np.ndarray,
        token_ids: Sequence[Sequence[int]],
        *,
        think_ids: Sequence[int] = (),
        popularity: np.ndarray | None = None,
        items: np.ndarray | None = None,
    ):
        super().__init__(codes, token_ids, think_ids=think_ids, popularity=popularity, items=items)
        self._index(TrieGrammar(codes, token_ids, think_ids=think_ids, popularity=popularity, items=items))

    @classmethod
    def _over(cls, trie: TrieGrammar) -> Self:
        """The unordered grammar of a trie's items."""
        grammar = cls.__new__(cls)
        shape = trie.catalog_size, trie.num_codes
        tokens = [trie.codebook_tokens(c).tolist() for c in range(trie.num_codes)]
        SidGrammar.__init__(grammar, np.broadcast_to(np.int8(0), shape), tokens, think_ids=trie.think_ids)
        grammar._index(trie)
        return grammar.to(trie.device)

    def _index(self, trie: TrieGrammar) -> None:
        """Takes the trie and makes tables and lists of its items, which are known by their position there."""
        sizes, codes = self.codebook_sizes, _narrow(trie.item_codes)
        self._trie, self.identity = trie, trie.identity
        self._codes = torch.from_numpy(codes)
        self._codebook = torch.repeat_interleave(torch.arange(self.num_codes), torch.tensor(sizes))
        self._totals, *pair_table = _count_tables(codes, sizes)
        self._option_keys = torch.from_numpy(_set_keys(sizes))
        pairs = _pairs(self.num_codes)
        self._first, self._second = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T.contiguous()
        lists, pointers = np.empty((len(pairs), len(codes)), np.int32), []
        orders = [np.argsort(column, kind="stable") for column in codes.T]
        for row, (i, j) in enumerate(pairs):
            # sorted by the second code, then, stably, by the first: a radix sort, as codes are short integers
            lists[row] = orders[j][np.argsort(codes[orders[j], i], kind="stable")]
            key = codes[:, i].astype(np.int64) * sizes[j] + codes[:, j]
            counts = np.bincount(key, minlength=sizes[i] * sizes[j])
            pointers.append(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        self._lists = torch.from_numpy(lists.ravel())
        self._pointers = torch.from_numpy(np.concatenate([np.empty(0, np.int32), *pointers]))
        self._pointer_base = torch.tensor(np.cumsum([0, *map(len, pointers)])[:-1])
        self._pair_size = torch.tensor(sizes)[self._second]
        self._together = pair_table[0] if pair_table else torch.empty(0, 0, dtype=torch.int32)

    @property
    def num_items(self) -> int:
        return self._trie.num_items

    @property
    def num_sids(self) -> int:
        return self._trie.num_sids

    @property
    def item_codes(self) -> np.ndarray:
        return self._trie.item_codes

    @property
    def nbytes(self) -> int:
        """Memory of all arrays in bytes."""
        arrays = [self._codes, self._lists, self._pointers, self._together, self._totals, self._option_keys]
        return self._trie.nbytes + sum(array.nbytes for array in arrays)

    @property
    def first_numbers(self) -> torch.Tensor:
        """Number of each codebook's first code, int64 [M]."""
        return self._offsets[:-1]

    @property
    def option_keys(self) -> torch.Tensor:
        """A key for every code, int64 [ΣK]: two sets of codes are equal if and only if their keys' sums are.

        Where sets can be counted in 63 bits the sum is the set's number in mixed radix, and this is exact. Else keys
        are random numbers of 63 bits from a fixed seed, whose sums wrap around: two given sets share one with
        probability 2⁻⁶³ or so.
        """
        return self._option_keys

    def set_keys(self, state: torch.Tensor) -> torch.Tensor:
        numbers = self._option_keys[(state + self.first_numbers).clamp(min=0)]
        return torch.where(state >= 0, numbers, 0).sum(1)

    def step_tokens(self, step: int) -> torch.Tensor:
        return self._tokens

    def initial(self, rows: int) -> torch.Tensor:
        return torch.full((rows, self.num_codes), OPEN, dtype=torch.int64, device=self.device)

    def successors(self, state: torch.Tensor, step: int, item_filter: ItemFilter | None = None) -> Successors:
        counts, live = self._counts(state, step, item_filter)
        alive = self.alive(state)[:, None]
        if item_filter is None:
            return Successors(None, (counts > 0) & alive)
        self._count_listed(live, state, item_filter)
        return Successors(None, (live > 0) & alive, possible=(counts > 0) & alive)

    def advance(self, state: torch.Tensor, step: int, option: torch.Tensor) -> torch.Tensor:
        number = option.clamp(min=0)[:, None]
        codebook = self._codebook[number]
        used = state.gather(1, codebook)[:, 0] >= 0
        dead = (option < 0) | used | ~self.alive(state)
        return self.killed(state.scatter(1, codebook, number - self._offsets[codebook]), dead)

    def items(
        self, state: torch.Tensor, item_filter: ItemFilter | None = None, limit: int | None = None
    ) -> torch.Tensor:
        node = self._trie.initial(len(state))
        for codebook in range(self.num_codes):
            node = self._trie.step(node, codebook, state[:, codebook])
        return self._trie.items(node, item_filter, limit)

    @property
    def sids(self) -> torch.Tensor:
        return self._trie.sids

    @property
    def sharing(self) -> torch.Tensor:
        return self._trie.sharing

    def live(self, item_filter: ItemFilter | None = None) -> torch.Tensor:
        return self._trie.live(item_filter)

    def _counts(
        self, state: torch.Tensor, step: int, item_filter: ItemFilter | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Items that satisfy each row's set, by their codes of unused codebooks, integers [rows, ΣK] each: all of
        them, and those that pass the row's mask.

        In the second, the filter's lists do not count yet; where it has an allow-list, no item.
        """
        if step == 0 or (step == 1 and len(self._together)):
            counts, live = self._tabled_counts(state, step, item_filter)
        else:
            counts, live = self._scanned_counts(state, item_filter)
        if item_filter is not None:
            restricted = item_filter.restricted.repeat_interleave(item_filter.beams(len(state)))
            live = live.int().masked_fill(restricted[:, None], 0)
        return counts, live

    def _tabled_counts(
        self, state: torch.Tensor, step: int, item_filter: ItemFilter | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[`_counts`] of no code and of one, from the tables of the catalog and of masks."""
        number = torch.where(state >= 0, state + self.first_numbers, 0).sum(1)
        counts = self._together[number] if step else self._totals.expand(len(state), -1)
        if item_filter is None or not item_filter.masks:
            return counts, counts
        mask = item_filter.mask_row.repeat_interleave(item_filter.beams(len(state)))
        table, row = item_filter.tables[step], mask.clamp(min=0)
        return counts, torch.where(mask[:, None] >= 0, table[row, number] if step else table[row], counts)

    def _scanned_counts(
        self, state: torch.Tensor, item_filter: ItemFilter | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[`_counts`] of sets for which there is no table, from lists of items."""
        counts = torch.zeros(len(state), len(self._tokens), dtype=torch.int32, device=self.device)
        masked = item_filter is not None and len(item_filter.masks) > 0
        live = torch.zeros_like(counts) if masked else counts
        for row, position in self._candidates(state, self.alive(state)):
            self._tally(counts, state, row, position, 1)
            if item_filter is not None and masked:
                mask = item_filter.mask_row[row // item_filter.beams(len(state))]
                passes = item_filter.masks[-1][mask.clamp(min=0), position] | (mask < 0)
                kept = passes.nonzero()[:, 0]
                self._tally(live, state, row[kept], position[kept], 1)
        return counts, live

    def _count_listed(self, counts: torch.Tensor, state: torch.Tensor, item_filter: ItemFilter) -> None:
        """Takes the denied items out of `counts` (int32 [rows, ΣK]), or adds those of an allow-list, in place."""
        requests, listed = len(item_filter), item_filter.listed
        beams = item_filter.beams(len(state))
        # one chosen code tells nearly all items apart, so that few are left to be compared in full
        code, codebook = state.view(requests, beams, self.num_codes).max(2)
        codes = self._codes[listed.clamp(max=self.num_items - 1)].transpose(1, 2).contiguous()
        mine = codes[torch.arange(requests, device=self.device)[:, None], codebook]
        alike = (mine == code[..., None].to(mine.dtype)) | (code[..., None] < 0)
        request, beam, column = (alike & (listed < self.num_items)[:, None]).nonzero(as_tuple=True)
        sign = torch.where(item_filter.restricted, 1, -1)[request, None].int()
        self._tally(counts, state, request * beams + beam, listed[request, column], sign)

    def _tally(
        self,
        counts: torch.Tensor,
        state: torch.Tensor,
        row: torch.Tensor,
        position: torch.Tensor,
        sign: torch.Tensor | int,
    ) -> None:
        """Adds `sign` for each item at `position` ([n]) that satisfies the set of its `row` ([n]), in place."""
        codes, held = self._codes[position], state[row]
        unused = held < 0
        matches = (codes == held).logical_or_(unused).all(1, keepdim=True)
        number = codes.long().add_(self.first_numbers).add_(row[:, None] * counts.shape[1])
        counts.view(-1).scatter_add_(0, number.view(-1), (matches & unused).int().mul_(sign).view(-1))

    def _candidates(self, state: torch.Tensor, scanned: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Rows and positions (int64 and int32 [n]) of items that may satisfy the sets of the rows of `scanned`.

        Each row takes its shortest list. The list of a pair with one code chosen is a range too: it is sorted by the
        first codebook.
        """
        first, second = state[:, self._first], state[:, self._second]
        begin = self._pointer_base + first.clamp(min=0) * self._pair_size + second.clamp(min=0)
        end = begin + torch.where(second >= 0, 1, self._pair_size)
        start = self._pointers[begin].long()
        length, pair = torch.where(first >= 0, self._pointers[end] - start, self.num_items + 1).min(1)
        start = start.gather(1, pair[:, None])[:, 0] + pair * self.num_items
        length = torch.where(scanned, length, 0)
        after = length.cumsum(0)
        before = after - length
        total = int(length.sum())
        for low in range(0, total, CHUNK_ITEMS):
            high = min(low + CHUNK_ITEMS, total)
            share = after.clamp(low, high) - before.clamp(low, high)
            row = torch.repeat_interleave(share, output_size=high - low)
            yield row, self._lists[(start - before)[row] + torch.arange(low, high, device=self.device)]

    def filter(
        self,
        deny: Sequence[np.ndarray | None] | None = None,
        allow: Sequence[np.ndarray | None] | None = None,
        only: Sequence[ItemMask | None] | None = None,
    ) -> ItemFilter:
        return make_filter(self._trie, deny, allow, only, self._mask_tables)

    def mask(self, live: np.ndarray) -> ItemMask:
        mask = self._trie.mask(live)
        return replace(mask, tables=self._mask_tables(mask))

    def _mask_tables(self, mask: ItemMask) -> list[torch.Tensor]:
        """Counts of a mask's items: made with the mask; for long lists of a request, with the filter."""
        if mask.tables:
            return mask.tables
        live = self._codes.cpu().numpy()[np.diff(mask.below) > 0]
        return [table.int().to(self.device) for table in _count_tables(live, self.codebook_sizes)]

    def with_items(
        self,
        added: np.ndarray | None = None,
        removed: Sequence[int] = (),
        popularity: np.ndarray | None = None,
    ) -> Self:
        """The grammar of the catalog after a change; this one goes on serving.

        Args: as [`TrieGrammar.with_items`].
        """
        return self._over(self._trie.with_items(added, removed, popularity))

    def save(self, file: str | Path) -> None:
        """Writes the items as [`TrieGrammar.save`] does; [`load`] makes the lists again, which takes a moment."""
        self._trie.save(file)

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Reads what [`save`] wrote, or what that of a trie did."""
        return cls._over(TrieGrammar.load(file))


def _pairs(num_codes: int) -> list[tuple[int, int]]:
    """Codebooks (i, j) of the lists: every pair once, and every codebook first of at least one."""
    if num_codes == 2:
        return [(0, 1), (1, 0)]
    last = num_codes - 1
    return [(last, 0) if (i, j) == (0, last) else (i, j) for j in range(num_codes) for i in range(j)]


def _count_tables(codes: np.ndarray, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Items (int [n, M]) by code, int32 [ΣK], and, if that is kept, by pair of codes, integers [ΣK, ΣK]."""
    totals = [np.bincount(column, minlength=size) for column, size in zip(codes.T, sizes, strict=True)]
    tables = [torch.from_numpy(np.concatenate(totals).astype(np.int32))]
    if sum(sizes) <= TABLE_CODES:
        first = np.concatenate([[0], np.cumsum(sizes)])
        together = np.zeros((first[-1], first[-1]), np.int32)
        for j in range(len(sizes)):
            for i in range(j):
                key = codes[:, i].astype(np.int64) * sizes[j] + codes[:, j]
                block = np.bincount(key, minlength=sizes[i] * sizes[j]).reshape(sizes[i], sizes[j])
                together[first[i] : first[i + 1], first[j] : first[j + 1]] = block
                together[first[j] : first[j + 1], first[i] : first[i + 1]] = block.T
        tables.append(torch.from_numpy(_narrow(together)))
    return tables


def _narrow(values: np.ndarray) -> np.ndarray:
    """Numbers ≥ 0 in the smallest type that holds them, of uint8, int16 and int32."""
    largest = values.max(initial=0)
    return values.astype(np.uint8 if largest < 1 << 8 else np.int16 if largest < 1 << 15 else np.int32)


def _set_keys(sizes: Sequence[int]) -> np.ndarray:
    """Keys of [`UnorderedGrammar.option_keys`], int64 [ΣK]."""
    keys, radix = [], 1
    for size in sizes:
        keys += [(code + 1) * radix for code in range(size)]
        radix *= size + 1
    if radix <= 1 << 63:
        return np.array(keys, np.int64)
    return np.random.default_rng(0).integers(1 << 63, size=sum(sizes), dtype=np.int64)
