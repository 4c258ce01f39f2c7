"""A grammar as a list of items, and requests with filters: what every answer of a real grammar is checked against."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import hf_gr.grammar.requests
from hf_gr.grammar import ItemFilter, Successors, TrieGrammar, trie


Sid = tuple[int, ...]
DENSE = [0, 6, 1 << 18]  # no dense table at all, one for the first levels only, dense tables everywhere
LONG = [0, 2, 4096]  # every list becomes a mask, some do, none does


@dataclass
class Listing:
    """A catalog, its tokens, and how large the dense tables of its trie may be."""

    codes: list[Sid]
    sizes: tuple[int, ...]
    popularity: list[int]
    live: set[int]
    thinking: bool = False
    dense: int = 1 << 18
    seed: int = 0

    def __post_init__(self) -> None:
        """Shuffled token ids with holes between them, as after extending a tokenizer in several goes."""
        shuffled = np.random.default_rng(self.seed).permutation(self.vocabulary_size).tolist()
        bounds = np.cumsum([len(self.sizes), *self.sizes]).tolist()
        self.think_ids = shuffled[: bounds[0]]
        self.token_ids = [shuffled[a:b] for a, b in pairwise(bounds)]

    @property
    def vocabulary_size(self) -> int:
        return 3 * (sum(self.sizes) + len(self.sizes))

    @property
    def levels(self) -> int:
        return len(self.sizes)

    def grammar(self) -> TrieGrammar:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trie, "DENSE_ENTRIES", self.dense)
            return TrieGrammar(
                np.array(self.codes),
                self.token_ids,
                think_ids=self.think_ids if self.thinking else (),
                popularity=np.array(self.popularity),
                items=np.array(sorted(self.live)),
            )

    def below(self, prefix: Sid, items: set[int]) -> list[int]:
        """The items of `items` whose SID begins so, the more popular first, then the lower row."""
        found = [item for item in items if self.codes[item][: len(prefix)] == prefix]
        return sorted(found, key=lambda item: (-self.popularity[item], item))

    def following(self, prefix: Sid, items: set[int]) -> set[int]:
        """Codes that continue the SID of some item of `items`."""
        return {self.codes[item][len(prefix)] for item in self.below(prefix, items)}

    def prefixes(self, length: int) -> list[Sid]:
        """Everything that can be written with `length` codes."""
        found: list[Sid] = [()]
        for size in self.sizes[:length]:
            found = [(*prefix, code) for prefix in found for code in range(size)]
        return found

    def tokens(self, prefix: Sid) -> list[int]:
        """The answer that begins so, thinking tokens included."""
        answer = []
        for level, code in enumerate(prefix):
            answer += [self.think_ids[level]] * self.thinking + [self.token_ids[level][code]]
        return answer

    def written(self, prefixes: list[Sid]) -> torch.Tensor:
        """Answers of equally long prefixes, int64 [prefixes, tokens]."""
        return torch.tensor([self.tokens(prefix) for prefix in prefixes], dtype=torch.int64).reshape(len(prefixes), -1)


@dataclass
class Requests:
    """Filters of a few requests: lists of rows and masks over the catalog."""

    deny: list[np.ndarray | None]
    allow: list[np.ndarray | None]
    only: list[np.ndarray | None]
    long_list: int = 4096

    def __len__(self) -> int:
        return len(self.deny)

    def filter(self, grammar: TrieGrammar) -> ItemFilter:
        """As the grammar has it; equal masks are one mask, as they are when many requests share it."""
        masks = {live.tobytes(): grammar.mask(live) for live in self.only if live is not None}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hf_gr.grammar.requests, "LONG_LIST", self.long_list)
            return grammar.filter(
                self.deny, self.allow, [None if live is None else masks[live.tobytes()] for live in self.only]
            )

    def live(self, listing: Listing) -> list[set[int]]:
        """Items that each request may be answered with."""
        found = []
        for deny, allow, only in zip(self.deny, self.allow, self.only, strict=True):
            items = listing.live if allow is None else listing.live & set(allow.tolist())
            items = items if only is None else items & set(np.flatnonzero(only).tolist())
            found.append(items - set([] if deny is None else deny.tolist()))
        return found

    def rows(self, index: list[int]) -> "Requests":
        return replace(
            self,
            deny=[self.deny[row] for row in index],
            allow=[self.allow[row] for row in index],
            only=[self.only[row] for row in index],
        )


@st.composite
def listings(draw) -> Listing:
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    sid = st.tuples(*[st.integers(0, size - 1) for size in sizes])
    codes = draw(st.lists(sid, min_size=1, max_size=14))
    popularity = [draw(st.integers(0, 3)) for _ in codes]
    live = draw(st.sets(st.integers(0, len(codes) - 1), min_size=1))
    thinking, dense, seed = draw(st.booleans()), draw(st.sampled_from(DENSE)), draw(st.integers(0, 9))
    return Listing(codes, sizes, popularity, live, thinking, dense, seed)


@st.composite
def requests(draw, listing: Listing) -> Requests:
    """With repeated rows, removed items, `None`, empty lists, and masks that several requests share."""
    count, items = draw(st.integers(1, 3)), len(listing.codes)
    lists = st.none() | st.lists(st.integers(0, items - 1), max_size=items + 2).map(lambda x: np.array(x, np.int64))
    flags = st.lists(st.booleans(), min_size=items, max_size=items).map(np.array)
    masks = st.sampled_from([None, draw(flags), draw(flags)])
    deny, allow, only = ([draw(kind) for _ in range(count)] for kind in (lists, lists, masks))
    return Requests(deny, allow, only, draw(st.sampled_from(LONG)))


def allowed_tokens(options: Successors, row: int) -> dict[int, int]:
    """{number of the step's token: option} of what is allowed in a row; no token may stand there twice."""
    option = options.allowed[row].nonzero()[:, 0].tolist()
    token = option if options.index is None else options.index[row, option].tolist()
    assert len(set(token)) == len(token)
    return dict(zip(token, option, strict=True))
