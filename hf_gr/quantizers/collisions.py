"""Items that share a SID: how to tell them apart, and where items that come later find a free SID.

One walk down the levels serves `greedy`, `sinkhorn` and later items: on every level no code below a prefix gets more
items than there are SIDs below it, so that on the last level every item finds a code of its own. Upper levels move
only what would not fit below: an item climbs as few levels as it must, to the next-best code with room.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..errors import HfGrError
from .base import BATCH_SIZE, Quantizer


CollisionMethod = Literal["keep", "digit", "sinkhorn", "greedy"]

SPARE_DIGITS = 8
_MANY = 2**62  # places below a prefix are counted up to here
_STAGES, _ITERATIONS, _COOLING = 8, 8, 0.5  # of Sinkhorn: temperatures, each half of the one before
_SMALLEST = 1e-30  # a temperature above 0 where all costs are equal


class Resolved(NamedTuple):
    """Codes int32 [N, L] and the codebook sizes of their L levels; `digit` has added a level."""

    codes: np.ndarray
    codebook_sizes: tuple[int, ...]


class _Group(NamedTuple):
    """The items below one prefix, and how many of them each code of the next level can take."""

    rows: np.ndarray  # int64 [n], ascending
    room: np.ndarray  # int64 [K]


_Costs = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # rows [n], codes [N, L], level → float32 [n, K_level]


def resolve_collisions(
    codes: np.ndarray,
    vectors: np.ndarray,
    quantizer: Quantizer,
    method: CollisionMethod = "greedy",
    spare_digits: int = SPARE_DIGITS,
) -> Resolved:
    """Tells items that share a SID apart. The same input gives the same SIDs; ties leave the lower row where it is.

    - `"keep"`: the codes as they are.
    - `"greedy"`: items on a shared SID move to free codes of the last level, the move that costs least first, until
      every SID has one item [idea known, order ours]. Where a prefix holds more items than codes, those that lose
      least by it move to the next-best code of the level before that has room below it, and so on up.
    - `"sinkhorn"`: climbs as `greedy`; on the last level all items below a crowded prefix are assigned anew, together,
      by entropic optimal transport with one item a code, see [`transport`] [LC-Rec has it in
      training; this form is ours].
    - `"digit"`: one more level, whose codes only count [TIGER, §3.1]. There are as many as the largest bucket needs,
      and `spare_digits` more (but no more than items). Sorted by SID, items take the digits in turn, over and over:
      a bucket's digits differ, and every digit, spare ones included, is carried by items, so that training a model
      trains its token and items that come later can use it [ours].

    Args:
        codes: int32 [N, L] of `quantizer`.
        vectors: float32 [N, d], the vectors that were encoded.
        quantizer: Gives the costs of other codes.
        method: One of the four.
        spare_digits: For `digit`: digits beyond those that the largest bucket needs.

    Returns:
        [`Resolved`]; but for `keep`, no two items share a SID. `codes` itself is not changed.

    Raises:
        HfGrError: On an unknown method, codes outside the codebooks, or more items than SIDs.
    """
    quantizer.check_codes(codes)
    sizes = tuple(quantizer.config.codebook_sizes)
    check_room(method, len(codes), sizes)
    if method == "keep":
        return Resolved(codes.copy(), sizes)
    if method == "digit":
        digits, size = _digits(codes, spare_digits)
        return Resolved(np.column_stack([codes, digits]), (*sizes, size))
    allowed = [np.ones(size, bool) for size in sizes]
    taken = np.empty((0, len(sizes)), np.int32)
    return Resolved(
        place(codes, vectors, quantizer, allowed, taken, "sinkhorn" if method == "sinkhorn" else "greedy"), sizes
    )


def check_room(method: CollisionMethod, items: int, codebook_sizes: Sequence[int]) -> None:
    """Raises [`HfGrError`] if the method is unknown, or must fit more items than there are SIDs."""
    if method not in get_args(CollisionMethod):
        raise HfGrError(f"collisions {method!r} is unknown; use one of {', '.join(get_args(CollisionMethod))}.")
    if method in ("greedy", "sinkhorn") and items > math.prod(codebook_sizes):
        raise HfGrError(
            f"{items} items do not fit on the {math.prod(codebook_sizes)} SIDs of codebooks {list(codebook_sizes)}; "
            "use larger codebooks, more levels, or collisions digit or keep."
        )


def place(
    codes: np.ndarray,
    vectors: np.ndarray,
    quantizer: Quantizer,
    allowed: Sequence[np.ndarray],
    taken: np.ndarray,
    method: Literal["sinkhorn", "greedy"] = "greedy",
) -> np.ndarray:
    """SIDs of their own for items that wish for `codes`, beside SIDs that are taken and stay.

    Args:
        codes: int32 [n, L], allowed codes of `quantizer`; with one level more, the last one counts (`digit`): its
            lowest free code is the best.
        vectors: float32 [n, d], the vectors that were encoded.
        quantizer: Gives the costs of other codes.
        allowed: For every level, bool [K_l]: which codes may be given.
        taken: int32 [m, L], allowed SIDs that nobody else gets; may repeat.
        method: How the last level is shared out.

    Returns:
        int32 [n, L], distinct, none of them in `taken`.

    Raises:
        HfGrError: If there are more items than free SIDs.
    """
    codes, taken = codes.copy(), taken[np.unique(_numbered(taken), return_index=True)[1]]
    places = math.prod(int(mask.sum()) for mask in allowed) - len(taken)
    if len(codes) > places:
        raise HfGrError(
            f"{len(codes)} items do not fit on the {places} free SIDs of codebooks of which "
            f"{[int(mask.sum()) for mask in allowed]} codes may be given; make a larger catalog and train again."
        )
    costs = _costs_of(vectors, quantizer, allowed)
    parent = np.zeros(len(codes) + len(taken), np.int64)  # number of everyone's prefix
    moved = np.zeros(len(codes), bool)
    for level, mask in enumerate(allowed):
        _follow(codes, np.flatnonzero(moved), level, costs, mask)
        below = min(math.prod(int(deeper.sum()) for deeper in allowed[level + 1 :]), _MANY)
        share = _share_by_transport if method == "sinkhorn" and level + 1 == len(allowed) else _share_greedily
        for groups in _batched(_crowded(parent, codes[:, level], taken[:, level], mask, below)):
            rows = np.concatenate([group.rows for group in groups])
            found = share(codes[rows, level], costs(rows, codes, level), groups)
            moved[rows] |= found != codes[rows, level]
            codes[rows, level] = found
        parent = _deeper(parent, np.concatenate([codes[:, level], taken[:, level]]))
    return codes


def digit_vectors(size: int, width: int) -> np.ndarray:
    """Code vectors of a digit level, float32 [size, width].

    A digit stands for nothing; so that tokens whose rows start from code vectors start apart, they are drawn from a
    standard normal distribution, always the same ones.
    """
    return np.random.default_rng(0).standard_normal((size, width), np.float32)


def _digits(codes: np.ndarray, spare: int) -> tuple[np.ndarray, int]:
    """Digit of every item, int32 [N], and how many digits there are."""
    if spare < 0:
        raise HfGrError(f"spare_digits is {spare}; use 0 or more.")
    bucket = _numbered(codes)
    size = min(int(np.bincount(bucket).max()) + spare, len(codes))
    digits = np.empty(len(codes), np.int32)
    digits[np.argsort(bucket, kind="stable")] = np.arange(len(codes)) % size
    return digits, size


def _numbered(codes: np.ndarray) -> np.ndarray:
    """Number of every row's SID among the distinct ones in ascending order, int64 [N]."""
    number = np.zeros(len(codes), np.int64)
    for column in codes.T:
        number = _deeper(number, column)
    return number


def _deeper(prefix: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Numbers int64 [N] of prefixes that are one code longer."""
    return np.unique(prefix * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]


def _costs_of(vectors: np.ndarray, quantizer: Quantizer, allowed: Sequence[np.ndarray]) -> _Costs:
    def costs(rows: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        size = len(allowed[level])
        if level == quantizer.num_levels:  # digits: the lower the better
            return np.broadcast_to(np.arange(size, dtype=np.float32), (len(rows), size))
        found = np.empty((len(rows), size), np.float32)
        for start in range(0, len(rows), BATCH_SIZE):
            part = rows[start : start + BATCH_SIZE]
            found[start : start + BATCH_SIZE] = quantizer.distances(vectors[part], codes[part], level)
        return found

    return costs


def _follow(codes: np.ndarray, rows: np.ndarray, level: int, costs: _Costs, allowed: np.ndarray) -> None:
    """Gives items whose prefix has changed the best code of this level."""
    for start in range(0, len(rows), BATCH_SIZE):
        part = rows[start : start + BATCH_SIZE]
        codes[part, level] = np.where(allowed, costs(part, codes, level), np.inf).argmin(axis=1)


def _crowded(
    parent: np.ndarray, codes: np.ndarray, taken: np.ndarray, allowed: np.ndarray, below: int
) -> list[_Group]:
    """Every prefix where a code has more items than places below it; the fewest items first.

    Args:
        parent: int64 [n + m], the number of each one's prefix: items first, then taken SIDs.
        codes: int32 [n], of the items on this level.
        taken: int32 [m], of the taken SIDs on this level.
        allowed: bool [K].
        below: SIDs below each code of this level.
    """
    items = len(codes)
    _, child = np.unique(parent * len(allowed) + np.concatenate([codes, taken]), return_inverse=True)
    room = below - np.bincount(child[items:], minlength=child.max(initial=-1) + 1)
    wanted = np.bincount(child[:items], minlength=len(room))
    prefixes = np.unique(parent[:items][(wanted > room)[child[:items]]])
    rows, others = _rows_of(parent[:items], prefixes), _rows_of(parent[items:], prefixes)
    places = np.where(allowed, below, 0)
    groups = [
        _Group(mine, places - np.bincount(taken[theirs], minlength=len(allowed)))
        for mine, theirs in zip(rows, others, strict=True)
    ]
    return sorted(groups, key=lambda group: len(group.rows))


def _rows_of(labels: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """Rows, ascending, of every wanted label."""
    order = np.argsort(labels, kind="stable")
    starts, ends = (np.searchsorted(labels[order], wanted, side=side) for side in ("left", "right"))
    return [order[start:end] for start, end in zip(starts, ends, strict=True)]


def _batched(groups: list[_Group]) -> Iterator[list[_Group]]:
    """Groups, the fewest items first, to be looked at together; no more rows than a batch if all were as large."""
    batch: list[_Group] = []
    for group in groups:
        if batch and (len(batch) + 1) * len(group.rows) > BATCH_SIZE:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _share_greedily(codes: np.ndarray, costs: np.ndarray, groups: list[_Group]) -> np.ndarray:
    """New codes of the items of some groups, one group after the other in `codes` [n] and `costs` [n, K]."""
    ends = np.cumsum([len(group.rows) for group in groups])
    parts = zip(np.split(codes, ends[:-1]), np.split(costs, ends[:-1]), groups, strict=True)
    return np.concatenate([_spread(own, cost, group.room) for own, cost, group in parts])


def _spread(own: np.ndarray, costs: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Moves items off codes that have too many, the move of least extra cost first.

    What one move at a time would give, in rounds: the sorted moves are made up to the first whose goal is full by
    then; the items that want a full code look for another, and the rest is sorted again.

    Args:
        own: int [n], codes that items are on.
        costs: float32 [n, K], of every item on every code.
        room: int64 [K], items that each code takes; n at most in all.
    """
    result = own.copy()
    spare = room - np.bincount(own, minlength=len(room))  # below 0: items that must leave
    rows = np.flatnonzero(spare[own] < 0)
    goal, loss = _next_best(own[rows], costs[rows], spare)
    while len(rows):
        order = np.lexsort((-rows, loss))
        source = own[rows[order]]
        order = order[_rank(source) < -spare[source]]
        full = _rank(goal[order]) >= spare[goal[order]]
        made = order[: int(full.argmax())] if full.any() else order
        result[rows[made]] = goal[made]
        spare += np.bincount(own[rows[made]], minlength=len(spare)) - np.bincount(goal[made], minlength=len(spare))
        stays = spare[own[rows]] < 0
        stays[made] = False
        rows, goal, loss = rows[stays], goal[stays], loss[stays]
        again = np.flatnonzero(spare[goal] <= 0)
        if len(again):
            goal[again], loss[again] = _next_best(own[rows[again]], costs[rows[again]], spare)
    return result


def _next_best(own: np.ndarray, costs: np.ndarray, spare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest code with room for each item, and what the move to it would cost more than staying."""
    there = np.where(spare > 0, costs, np.inf)
    goal, each = there.argmin(axis=1), np.arange(len(own))
    return goal, there[each, goal] - costs[each, own]


def _rank(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each."""
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - np.searchsorted(values[order], values[order])
    return rank


def _share_by_transport(codes: np.ndarray, costs: np.ndarray, groups: list[_Group]) -> np.ndarray:
    """As [`_share_greedily`], all items of a group anew."""
    lengths = [len(group.rows) for group in groups]
    room = np.stack([group.room for group in groups])
    padded = np.zeros((len(groups), max(lengths), costs.shape[1]), np.float32)
    for group, part in enumerate(np.split(costs, np.cumsum(lengths)[:-1])):
        padded[group, : lengths[group]] = part
    plans = transport(padded, np.array(lengths), room)
    found = []
    for plan, length, places in zip(plans, lengths, room, strict=True):
        free = np.flatnonzero(places)
        # the plan is a matching but for its last temperature; of all matchings this is the likeliest under it
        found.append(free[linear_sum_assignment(-plan[:length, free])[1]])
    return np.concatenate(found)


def transport(costs: np.ndarray, lengths: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Entropic optimal transport between items (mass 1 each) and codes (capacity `room` each), for many groups.

    Sinkhorn's iterations on potentials f, g in the log domain, log P_ij = (f_i + g_j - c_ij) / ε. The temperature ε
    halves from a group's mean cost (above each item's best) downwards; between two halvings rows and columns of P are
    scaled directly, which is the same and spares exponentials [known: Schmitzer 2019, §3]. Capacity that no item uses
    is taken by one more row without costs.

    Args:
        costs: float32 [G, n, K]; of group g the first `lengths[g]` rows count.
        lengths: int [G], at most the sum of `room[g]`.
        room: int [G, K].

    Returns:
        log P up to a constant a row, float32 [G, n, K]; -inf where there is no room.
    """
    given = torch.from_numpy(costs)
    cost = given - given.amin(2, keepdim=True)
    counted = torch.arange(cost.shape[1])[None] < torch.from_numpy(lengths)[:, None]
    epsilon = (cost.mean(2) * counted).sum(1) / counted.sum(1)
    epsilon = epsilon.clamp(min=_SMALLEST)[:, None]
    unused = torch.from_numpy(room.sum(1) - lengths)
    rows = torch.cat([counted.float(), unused[:, None].float()], 1)
    columns = torch.from_numpy(room).float()
    f, g = torch.zeros_like(rows), torch.zeros_like(columns)
    for stage in range(_STAGES):
        epsilon = epsilon * (_COOLING if stage else 1.0)
        plan = torch.cat([f[:, :-1, None] + g[:, None] - cost, (f[:, -1:] + g)[:, None]], 1)
        # what is held at e⁻⁸⁰ counts for nothing; smaller exponentials are denormal, and slow
        plan = plan.div_(epsilon[..., None]).clamp_(min=-80).exp_()
        v = torch.ones_like(columns)
        for _ in range(_ITERATIONS):
            u = _ratio(rows, (plan @ v[..., None])[..., 0])
            v = _ratio(columns, (u[:, None] @ plan)[:, 0])
        f, g = f + epsilon * u.log(), g + epsilon * v.log()
    return ((g[:, None] - cost) / epsilon[..., None]).numpy()


def _ratio(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """wanted / found, and 0 where nothing is wanted."""
    return torch.where(wanted > 0, wanted / found, 0.0)
