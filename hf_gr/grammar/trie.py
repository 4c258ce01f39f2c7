"""Flat and stepwise SIDs: a trie of codes, level by level.

The items are sorted by SID, so that a prefix of a SID, which is a node of the trie, is a contiguous range of that
order. Depth d holds the nodes after d codes; the last depth holds the items themselves. `children[d]` says where the
children of each node of depth d begin (CSR). Where a whole depth fits, a dense table holds the child for every code.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import HfGrError
from .base import DEAD, SidGrammar, Successors
from .build import build_trie, sort_keys
from .filters import ItemFilter, ItemMask
from .requests import make_filter, make_mask


DENSE_ENTRIES = 1 << 18  # a depth has a dense table while nodes × codes stay within this


class TrieGrammar(SidGrammar):
    """The grammar `s_1 s_2 … s_L`, or with thinking tokens `think_1 s_1 … think_L s_L`.

    Some 26 bytes an item. Arguments: as [`SidGrammar`].
    """

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
        rows = (np.arange(len(codes)) if items is None else np.unique(self._rows(items))).astype(np.int32)
        if not len(rows):
            raise HfGrError("the catalog has no live item; add items before asking for recommendations.")
        chosen = np.asarray(codes)[rows]
        foreign = ((chosen < 0) | (chosen >= np.array(self.codebook_sizes))).any(1)
        if foreign.any():
            row = int(foreign.argmax())
            raise HfGrError(
                f"item {rows[row]} has the SID {chosen[row].tolist()}, but the codebooks have "
                f"{list(self.codebook_sizes)} codes; use the catalog that the tokens were made for."
            )
        counts = np.zeros(len(rows), np.int64) if popularity is None else np.asarray(popularity, np.int64)[rows]
        order = np.lexsort((-counts, *sort_keys(chosen, self.codebook_sizes)))  # stable: then the lower row
        position = np.full(len(codes), len(rows), np.int32)  # removed items stand past the end
        position[rows[order]] = np.arange(len(rows), dtype=np.int32)
        self._item = torch.from_numpy(rows[order])
        self._position = position
        self._popularity = counts[order].astype(np.int32)
        self._index(*build_trie(chosen[order]))

    def _index(self, code: list[np.ndarray], children: list[np.ndarray], widths: list[int]) -> None:
        """Takes the trie's arrays, and how many children a node of each depth has at most; makes what follows."""
        self._host_code = [c[: first[-1]] for c, first in zip(code, children, strict=False)]
        self._host_children = children
        self._children = [torch.from_numpy(first) for first in children]
        self._code = [torch.from_numpy(padded_code) for padded_code in code]
        self._widths = widths
        empty = torch.empty(0, dtype=torch.int32)
        self._dense = []
        for depth, size in enumerate(self.codebook_sizes):
            nodes, table = len(children[depth]) - 1, empty
            if nodes * size <= DENSE_ENTRIES:
                table = torch.full((nodes + 1, size), DEAD, dtype=torch.int32)  # the last row: after a dead state
                parent = np.repeat(np.arange(nodes), np.diff(children[depth]))
                table.numpy()[parent, self._host_code[depth]] = np.arange(len(parent))
            self._dense.append(table)
        self._sids: torch.Tensor | None = None  # made when it is asked for
        self._columns = torch.arange(max(*self._widths, *self.codebook_sizes), dtype=torch.int32)

    @property
    def num_items(self) -> int:
        return len(self._item)

    @property
    def num_sids(self) -> int:
        return len(self._host_children[-1]) - 1

    @property
    def nbytes(self) -> int:
        """Memory of all arrays in bytes (those that host and device share are counted once)."""
        arrays = [self._item, *self._children, *self._code, *self._dense]
        return sum(a.nbytes for a in arrays) + self._position.nbytes + self._popularity.nbytes

    def step_tokens(self, step: int) -> torch.Tensor:
        return self.codebook_tokens(step)

    def step_index(self, answer: torch.Tensor) -> torch.Tensor:
        step = torch.arange(answer.shape[-1], device=answer.device) // self.stride
        index = self._numbers(answer) - self._offsets[step]
        return torch.where(index < (self._offsets[step + 1] - self._offsets[step]), index, -1)

    def initial(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, 1, dtype=torch.int64, device=self.device)

    def successors(self, state: torch.Tensor, step: int, item_filter: ItemFilter | None = None) -> Successors:
        first, count = self._range(state, step)
        dense = self._dense[step]
        if len(dense):
            child = dense.index_select(0, torch.where(self.alive(state), state[:, 0], len(dense) - 1))
            index, allowed = None, child >= 0
        else:
            width = self._widths[step]
            columns = self._columns[:width]
            child = first[:, None] + columns
            index = self._code[step].unfold(0, width, 1).index_select(0, first).long()  # faster than code[child]
            allowed = columns < count[:, None]
        if item_filter is None:
            return Successors(index, allowed)
        live = self._live(item_filter, step + 1, first, count, child, dense=len(dense) > 0)
        return Successors(index, allowed & live, possible=allowed)

    def advance(self, state: torch.Tensor, step: int, option: torch.Tensor) -> torch.Tensor:
        first, count = self._range(state, step)
        dense = self._dense[step]
        if len(dense):
            child = dense[state[:, 0].clamp(min=0), option.clamp(min=0)]
        else:
            child = torch.where(option < count, first + option, DEAD)
        return torch.where((option >= 0) & self.alive(state), child, DEAD).long()[:, None]

    def items(
        self, state: torch.Tensor, item_filter: ItemFilter | None = None, limit: int | None = None
    ) -> torch.Tensor:
        first, count = self._range(state, self.num_codes)
        width = int(count.max()) if len(state) else 0
        only_denied = item_filter is None or not (item_filter.masks or item_filter.restricted.any())
        if limit is not None and only_denied:
            width = min(width, limit + (0 if item_filter is None else item_filter.widths[-1]))
        position = first[:, None] + torch.arange(width, device=self.device)
        inside = position < (first + count)[:, None]
        position = position.clamp(max=self.num_items - 1)
        if item_filter is not None:
            inside &= self._live(item_filter, self.num_codes + 1, first, count, position)
        return torch.where(inside, self._item[position].long(), -1)

    def _range(self, state: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """First child and number of children of each row's node, int32 [rows]; none after a dead row."""
        node = state[:, 0].clamp(min=0)
        first = self._children[depth][node]
        return first, torch.where(self.alive(state), self._children[depth][node + 1] - first, 0)

    def _live(
        self,
        item_filter: ItemFilter,
        depth: int,
        first: torch.Tensor,
        count: torch.Tensor,
        child: torch.Tensor,
        dense: bool = False,
    ) -> torch.Tensor:
        """Whether a live item lies below the options (nodes `child` of `depth`), bool [rows, D].

        Each row looks up only those marked nodes that are children of its own: they stand together in its list.
        """
        if child.numel() == 0:
            return torch.ones_like(child, dtype=torch.bool)
        beams = item_filter.beams(len(first))
        restricted = item_filter.restricted.repeat_interleave(beams)[:, None]
        width, options = item_filter.widths[depth - 1], child.shape[1]
        flags = torch.zeros(len(first), options + 1, dtype=torch.bool, device=self.device)
        if width:
            marked = item_filter.marked[depth - 1]
            low = torch.searchsorted(marked, first.view(len(item_filter), beams).long())
            near = (low[:, :, None] + self._columns[:width]).flatten(1)
            node = marked.gather(1, near).view(len(first), width)
            column = node - first[:, None]
            inside = column < count[:, None]
            if dense:
                column = self._code[depth - 1][torch.where(inside, node, 0)].long()
            flags.scatter_(1, torch.where(inside, column, options).clamp(max=options), True)
        live = flags[:, :options] == restricted
        if item_filter.masks:
            live &= item_filter.passes_mask(depth - 1, child)
        return live

    @property
    def sids(self) -> torch.Tensor:
        if self._sids is None:
            codes = torch.from_numpy(self.item_codes).long().to(self.device)
            every = torch.full((self.catalog_size, self.num_codes), -1, device=self.device)
            self._sids = every.index_copy(0, self._item.long(), codes)
        return self._sids

    @property
    def sharing(self) -> torch.Tensor:
        counts = np.diff(self._host_children[-1]).astype(np.int64)
        each = torch.from_numpy(np.repeat(counts, counts)).to(self.device)
        return torch.zeros(self.catalog_size, dtype=torch.int64, device=self.device).index_copy(
            0, self._item.long(), each
        )

    def live(self, item_filter: ItemFilter | None = None) -> torch.Tensor:
        count = self.num_items
        live = torch.ones(1, count, dtype=torch.bool, device=self.device)
        if item_filter is not None:
            named = torch.zeros(len(item_filter), count + 1, dtype=torch.bool, device=self.device)
            named.scatter_(1, item_filter.listed, True)
            live = named[:, :count] == item_filter.restricted[:, None]
            if item_filter.masks:
                places = torch.arange(count, device=self.device).expand(len(item_filter), -1)
                live &= item_filter.passes_mask(self.num_codes, places)
        rows = torch.zeros(len(live), self.catalog_size, dtype=torch.bool, device=self.device)
        return rows.index_copy(1, self._item.long(), live)

    def filter(
        self,
        deny: Sequence[np.ndarray | None] | None = None,
        allow: Sequence[np.ndarray | None] | None = None,
        only: Sequence[ItemMask | None] | None = None,
    ) -> ItemFilter:
        return make_filter(self, deny, allow, only)

    def mask(self, live: np.ndarray) -> ItemMask:
        if live.dtype != bool or live.shape != (self.catalog_size,):
            raise HfGrError(
                f"a mask is a bool array of the catalog's {self.catalog_size} rows; this one is {live.dtype} "
                f"{list(live.shape)}."
            )
        return make_mask(self, live[self._item.cpu().numpy()])

    def begin(self, depth: int, node: np.ndarray | None = None) -> np.ndarray:
        """First position below the nodes of `depth` (default: all, and the end)."""
        position = np.arange(self.nodes(depth) + 1) if node is None else node
        for children in self._host_children[depth:]:
            position = children[position]
        return position

    def nodes(self, depth: int) -> int:
        """Number of nodes of a depth; the last depth's are the items."""
        return self.num_items if depth == self.num_codes + 1 else len(self._host_children[depth]) - 1

    def _rows(self, items: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of the catalog, int64, checked."""
        rows = np.asarray(items, np.int64)
        foreign = (rows < 0) | (rows >= self.catalog_size)
        if foreign.any():
            raise HfGrError(
                f"{rows[foreign][0]} is no row of the catalog, which has {self.catalog_size}; count them from 0."
            )
        return rows

    def parents(self, depth: int, nodes: np.ndarray) -> np.ndarray:
        """The nodes of `depth` whose children are `nodes`, int64."""
        # the same type on both sides: else the whole array would be converted
        return np.searchsorted(self._host_children[depth], nodes.astype(np.int32), side="right") - 1

    def positions(self, items: np.ndarray) -> np.ndarray:
        """Where rows of the catalog stand in the order of SIDs; past the end what is no answer."""
        return self._position[self._rows(items)]

    def with_items(
        self,
        added: np.ndarray | None = None,
        removed: Sequence[int] = (),
        popularity: np.ndarray | None = None,
    ) -> Self:
        """The grammar of the catalog after a change; this one goes on serving.

        Args:
            added: int [n, C], SIDs of new items; their rows follow the catalog's last.
            removed: Rows that are no answer any longer.
            popularity: int [n], of the added items (default: 0).
        """
        added = np.empty((0, self.num_codes), np.int64) if added is None else np.asarray(added)
        if added.ndim != 2 or added.shape[1] != self.num_codes:
            raise HfGrError(f"added SIDs have shape {list(added.shape)}; they must be [n, {self.num_codes}].")
        item = self._item.cpu().numpy()
        codes = np.zeros((self.catalog_size + len(added), self.num_codes), np.int32)
        codes[item] = self.item_codes
        codes[self.catalog_size :] = added
        counts = np.zeros(len(codes), np.int64)
        counts[item] = self._popularity
        counts[self.catalog_size :] = 0 if popularity is None else popularity
        live = np.zeros(len(codes), bool)
        live[item] = True
        live[self.catalog_size :] = True
        live[self._rows(removed)] = False
        tokens = [self.codebook_tokens(c).tolist() for c in range(self.num_codes)]
        new = type(self)(codes, tokens, think_ids=self.think_ids, popularity=counts, items=np.flatnonzero(live))
        return new.to(self.device)

    @property
    def item_codes(self) -> np.ndarray:
        columns = []
        for depth, code in enumerate(self._host_code):
            begin = self.begin(depth + 1)
            columns.append(np.repeat(code, np.diff(begin)))
        return np.stack(columns, 1)

    def save(self, file: str | Path) -> None:
        """Writes the grammar as safetensors; [`load`] maps it into memory.

        The file is replaced in one step, so that a grammar loaded from an older one goes on serving.
        """
        tensors = {f"code.{d}": code.cpu() for d, code in enumerate(self._code)}
        tensors |= {f"children.{d}": torch.from_numpy(first) for d, first in enumerate(self._host_children)}
        tensors |= {"item": self._item.cpu(), "position": torch.from_numpy(self._position)}
        tensors |= {"popularity": torch.from_numpy(self._popularity)}
        tokens = [self.codebook_tokens(c).tolist() for c in range(self.num_codes)]
        header = {"token_ids": tokens, "think_ids": self.think_ids, "widths": self._widths}
        save_file(tensors, file, {name: json.dumps(value) for name, value in header.items()})

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Reads what [`save`] wrote: pages are read when used, and shared by the processes of a machine."""
        if not Path(file).is_file():
            raise HfGrError(f"there is no grammar at {file}; write one with `grammar.save`.")
        try:
            with safe_open(file, framework="pt") as stored:
                arrays: dict[str, Any] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                header = {name: json.loads(value) for name, value in (stored.metadata() or {}).items()}
            widths = header.pop("widths")
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise HfGrError(f"{file} is no grammar ({error}); write it again with `grammar.save`.") from None
        grammar = cls.__new__(cls)
        shape = len(arrays["position"]), len(header["token_ids"])
        SidGrammar.__init__(grammar, np.broadcast_to(np.int8(0), shape), **header)
        grammar._item = arrays["item"]
        grammar._position, grammar._popularity = arrays["position"].numpy(), arrays["popularity"].numpy()
        levels = len(header["token_ids"])
        grammar._index(
            [arrays[f"code.{d}"].numpy() for d in range(levels)],
            [arrays[f"children.{d}"].numpy() for d in range(levels + 1)],
            widths,
        )
        return grammar
