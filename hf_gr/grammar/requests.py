"""How a request's filter becomes marks on the trie: the nodes below which nothing, or something, is left."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from ..errors import HfGrError
from .filters import ItemFilter, ItemMask, each, pad_rows, ragged


LONG_LIST = 4096  # longer lists of items become masks


class ItemTree(Protocol):
    """What is asked of a trie: its nodes by depth, and where items stand in the order of SIDs."""

    identity: object

    @property
    def device(self) -> torch.device: ...

    @property
    def num_items(self) -> int: ...

    @property
    def num_codes(self) -> int: ...

    def begin(self, depth: int, node: np.ndarray | None = None) -> np.ndarray: ...

    def nodes(self, depth: int) -> int: ...

    def parents(self, depth: int, nodes: np.ndarray) -> np.ndarray: ...

    def positions(self, items: np.ndarray) -> np.ndarray: ...


def make_filter(
    trie: ItemTree,
    deny: Sequence[np.ndarray | None] | None,
    allow: Sequence[np.ndarray | None] | None,
    only: Sequence[ItemMask | None] | None,
    tables: Callable[[ItemMask], list[torch.Tensor]] = lambda mask: [],
) -> ItemFilter:
    """[`SidGrammar.filter`] of a trie; `tables` gives those of each distinct mask."""
    rows = max((len(x) for x in (deny, allow, only) if x is not None), default=0)
    deny, allow, only = each(deny, rows), each(allow, rows), each(only, rows)
    if not len(deny) == len(allow) == len(only):
        raise HfGrError(
            f"filters are given for {len(deny)} (deny), {len(allow)} (allow) and {len(only)} (only) requests; "
            "they must be as many."
        )
    if any(mask is not None and mask.grammar is not trie.identity for mask in only):
        raise HfGrError("a mask belongs to the grammar that made it; make it again with this one's `mask`.")
    short = [_long_lists(trie, *request) for request in zip(deny, allow, only, strict=True)]
    short_deny, short_allow, masks = [x[0] for x in short], [x[1] for x in short], [x[2] for x in short]
    restricted = np.array([x is not None for x in short_allow], bool)
    # of a request with an allow-list, `listed` says everything already
    counted = [mask if x is None else None for x, mask in zip(short_allow, masks, strict=True)]
    distinct = {id(mask): mask for mask in counted if mask is not None}
    number = {key: row for row, key in enumerate(distinct)}
    row, position = _listed(trie, short_deny, short_allow, masks)
    base = np.array([trie.num_items if mask is None else mask.num_items for mask in masks], np.int64)
    counts = np.bincount(row, minlength=rows)
    marked, widths = _marked(trie, row, position, restricted, masks)
    return ItemFilter(
        trie.identity,
        deny,
        allow,
        only,
        live=torch.from_numpy(np.where(restricted, counts, base - counts)),
        restricted=torch.from_numpy(restricted),
        listed=pad_rows(row, position, rows, trie.num_items),
        mask_row=torch.tensor([number.get(id(mask), -1) for mask in counted], dtype=torch.int64),
        masks=[torch.stack(nodes) for nodes in zip(*(mask.nodes for mask in distinct.values()), strict=True)],
        tables=[torch.stack(table) for table in zip(*map(tables, distinct.values()), strict=True)],
        marked=marked,
        widths=widths,
    ).to(trie.device)


def make_mask(trie: ItemTree, live: np.ndarray) -> ItemMask:
    """A mask from one flag a position, bool [items]."""
    below = np.concatenate([[0], np.cumsum(live)]).astype(np.int32)
    nodes = []
    for depth in range(1, trie.num_codes + 2):
        begin = trie.begin(depth)
        nodes.append(torch.from_numpy(below[begin[1:]] > below[begin[:-1]]).to(trie.device))
    return ItemMask(trie.identity, below, nodes)


def _long_lists(
    trie: ItemTree, deny: np.ndarray | None, allow: np.ndarray | None, only: ItemMask | None
) -> tuple[np.ndarray | None, np.ndarray | None, ItemMask | None]:
    """The same filter with its long lists as a mask."""
    long = [x is not None and len(x) > LONG_LIST for x in (deny, allow)]
    if not any(long):
        return deny, allow, only
    live = np.ones(trie.num_items + 1, bool) if only is None else np.append(np.diff(only.below) > 0, False)
    if deny is not None and long[0]:
        live[trie.positions(deny)] = False
    if allow is not None and long[1]:
        wanted = np.zeros_like(live)
        wanted[trie.positions(allow)] = True
        live &= wanted
    return None if long[0] else deny, None if long[1] else allow, make_mask(trie, live[:-1])


def _listed(
    trie: ItemTree,
    deny: Sequence[np.ndarray | None],
    allow: Sequence[np.ndarray | None],
    masks: Sequence[ItemMask | None],
) -> tuple[np.ndarray, np.ndarray]:
    """(request, position), ascending: the live items of requests with `allow`, else the live ones denied."""
    n, none = trie.num_items, np.empty(0, np.int64)

    def keys(lists: Sequence[np.ndarray | None]) -> np.ndarray:
        row, item = ragged([none if x is None else np.asarray(x, np.int64) for x in lists])
        position = trie.positions(item).astype(np.int64)
        return np.unique((row * n + position)[position < n])

    denied, allowed = keys(deny), keys(allow)
    restricted = np.array([x is not None for x in allow], bool)
    row, position = np.divmod(denied, n)
    free = ~restricted[row]
    row, position = np.divmod(np.concatenate([np.setdiff1d(allowed, denied), denied[free]]), n)
    keep = np.ones(len(row), bool)
    for request, mask in enumerate(masks):
        if mask is not None:
            mine = row == request
            keep[mine] = mask.live(position[mine])
    order = np.argsort(row[keep], kind="stable")
    return row[keep][order], position[keep][order]


def _marked(
    trie: ItemTree,
    row: np.ndarray,
    position: np.ndarray,
    restricted: np.ndarray,
    masks: Sequence[ItemMask | None],
) -> tuple[list[torch.Tensor], list[int]]:
    """`marked` and `widths` of [`ItemFilter`], from depth 1 to the items."""
    marked, widths = [], []
    node, pair_row = position, row
    counts = np.ones(len(row), np.int64)
    for depth in range(trie.num_codes + 1, 0, -1):
        if depth <= trie.num_codes:  # up to the parents: sums of the children's counts
            parent = trie.parents(depth, node)
            fresh = np.flatnonzero(np.diff(parent, prepend=-1) | np.diff(pair_row, prepend=-1))
            counts = np.add.reduceat(counts, fresh) if len(fresh) else counts
            node, pair_row = parent[fresh], pair_row[fresh]
        begin, end = trie.begin(depth, node), trie.begin(depth, node + 1)
        size = (end - begin).astype(np.int64)
        for request, mask in enumerate(masks):
            if mask is not None:
                mine = pair_row == request
                size[mine] = mask.below[end[mine]] - mask.below[begin[mine]]
        keep = restricted[pair_row] | (counts == size)
        kept_row, kept = pair_row[keep], node[keep]
        above = trie.parents(depth - 1, kept)
        runs = np.flatnonzero(np.diff(above, prepend=-1) | np.diff(kept_row, prepend=-1))
        widths.append(int(np.diff(runs, append=len(kept)).max(initial=0)))
        marked.append(pad_rows(kept_row, kept, len(restricted), trie.nodes(depth), extra=widths[-1]))
    return marked[::-1], widths[::-1]
