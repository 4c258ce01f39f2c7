from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.errors import HfGrError
from hf_gr.grammar import SidGrammar


Sid = tuple[int, ...]


@dataclass
class Listing:
    """The grammar as a list of items: what every answer is checked against."""

    codes: list[Sid]
    sizes: tuple[int, ...]
    popularity: list[int]
    live: set[int]

    def grammar(self) -> SidGrammar:
        return SidGrammar(np.array(self.codes), self.sizes, np.array(self.popularity), np.array(sorted(self.live)))

    def below(self, prefix: Sid, items: set[int]) -> list[int]:
        """The items of `items` whose SID begins so, the more popular first, then the lower row."""
        found = [item for item in items if self.codes[item][: len(prefix)] == prefix]
        return sorted(found, key=lambda item: (-self.popularity[item], item))

    def prefixes(self, length: int) -> list[Sid]:
        """Everything that can be written with `length` codes."""
        found: list[Sid] = [()]
        for size in self.sizes[:length]:
            found = [(*prefix, code) for prefix in found for code in range(size)]
        return found


@st.composite
def listings(draw) -> Listing:
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    sid = st.tuples(*[st.integers(0, size - 1) for size in sizes])
    codes = draw(st.lists(sid, min_size=1, max_size=12))
    popularity = [draw(st.integers(0, 3)) for _ in codes]
    live = draw(st.sets(st.integers(0, len(codes) - 1), min_size=1))
    return Listing(codes, sizes, popularity, live)


@st.composite
def requests(draw, listing: Listing) -> tuple[list, list]:
    """Deny and allow lists of a few rows; with repeats, removed items, `None` and empty lists."""
    rows = draw(st.integers(1, 3))
    item = st.integers(0, len(listing.codes) - 1)
    lists = st.none() | st.lists(item, max_size=len(listing.codes) + 2).map(lambda x: np.array(x, np.int64))
    return [draw(lists) for _ in range(rows)], [draw(lists) for _ in range(rows)]


def answers(listing: Listing, deny: np.ndarray | None, allow: np.ndarray | None) -> set[int]:
    found = listing.live if allow is None else listing.live & set(allow.tolist())
    return found - set([] if deny is None else deny.tolist())


def written(prefixes: list[Sid], length: int) -> torch.Tensor:
    return torch.tensor(prefixes, dtype=torch.int64).reshape(len(prefixes), length)


def choices(options, row: int) -> dict[int, int]:
    """{code: state} of what is allowed in a row; no code may stand there twice."""
    pairs = [
        (int(code), int(state))
        for code, state, allowed in zip(options.codes[row], options.states[row], options.allowed[row], strict=True)
        if allowed
    ]
    assert len({code for code, _ in pairs}) == len(pairs)
    return dict(pairs)


@settings(max_examples=60, deadline=None)
@given(listings())
def test_walk_and_successors_equal_the_listing(listing):
    grammar = listing.grammar()
    assert grammar.num_items == len(listing.live) and grammar.num_levels == len(listing.sizes)
    assert grammar.num_sids == len({listing.codes[item] for item in listing.live})
    for level in range(len(listing.sizes)):
        prefixes = listing.prefixes(level)
        states = grammar.walk(written(prefixes, level))
        assert states.shape == (len(prefixes), 1)
        options = grammar.successors(states, level)
        for row, prefix in enumerate(prefixes):
            below = listing.below(prefix, listing.live)
            assert (int(states[row]) >= 0) == bool(below), "a foreign prefix must be dead, and no other"
            found = choices(options, row)
            assert found.keys() == {listing.codes[item][level] for item in below}
            following = grammar.walk(written([(*prefix, code) for code in found], level + 1))
            assert following[:, 0].tolist() == list(found.values())


@settings(max_examples=60, deadline=None)
@given(listings(), st.data())
def test_filters_equal_the_listing(listing, data):
    grammar = listing.grammar()
    deny, allow = data.draw(requests(listing))
    item_filter = grammar.filter(deny, allow)
    live = [answers(listing, *row) for row in zip(deny, allow, strict=True)]
    assert grammar.live_items(item_filter).tolist() == [len(items) for items in live]
    for level in range(len(listing.sizes)):
        prefixes = listing.prefixes(level)
        states = grammar.walk(written(prefixes * len(live), level))  # every prefix under every request
        rows = item_filter.rows(torch.arange(len(live)).repeat_interleave(len(prefixes)))
        options = grammar.successors(states, level, rows)
        free = grammar.successors(states, level)
        for row in range(len(states)):
            below = listing.below(prefixes[row % len(prefixes)], live[row // len(prefixes)])
            found = choices(options, row)
            assert found.keys() == {listing.codes[item][level] for item in below}
            assert found.items() <= choices(free, row).items()


@settings(max_examples=60, deadline=None)
@given(listings(), st.data())
def test_items_stand_in_bucket_order(listing, data):
    grammar, levels = listing.grammar(), len(listing.sizes)
    deny, allow = data.draw(requests(listing))
    item_filter = grammar.filter(deny, allow)
    live = [answers(listing, *row) for row in zip(deny, allow, strict=True)]
    sids = listing.prefixes(levels)
    states = grammar.walk(written(sids * len(live), levels))
    rows = item_filter.rows(torch.arange(len(live)).repeat_interleave(len(sids)))
    for found, everyone in ((grammar.items(states, rows), live), (grammar.items(states), [listing.live] * len(live))):
        for row in range(len(states)):
            items = [item for item in found[row].tolist() if item >= 0]
            assert items == listing.below(sids[row % len(sids)], everyone[row // len(sids)])


@settings(max_examples=30, deadline=None)
@given(listings(), st.data())
def test_foreign_codes_lead_nowhere(listing, data):
    """−1, codes beyond the codebook, and whatever follows them."""
    grammar, levels = listing.grammar(), len(listing.sizes)
    sid = list(data.draw(st.sampled_from(listing.codes)))
    level = data.draw(st.integers(0, levels - 1))
    sid[level] = data.draw(st.sampled_from([-1, listing.sizes[level], 10**6]))
    for length in range(level + 1, levels + 1):
        state = grammar.walk(torch.tensor([sid[:length]]))
        assert state.tolist() == [[-1]]
        if length < levels:
            assert not grammar.successors(state, length).allowed.any()
            assert grammar.step(state, length, torch.tensor([sid[length]])).tolist() == [[-1]]
    assert (grammar.items(grammar.walk(torch.tensor([sid]))) < 0).all()


def test_walk_of_random_pairs_is_one_step_after_another():
    random = np.random.default_rng(0)
    codes = random.integers(0, 5, (60, 4))
    grammar = SidGrammar(codes, (5,) * 4)
    batch = torch.from_numpy(np.concatenate([codes, random.integers(0, 5, (60, 4))]))
    state = grammar.initial(len(batch))
    for level in range(4):
        state = grammar.step(state, level, batch[:, level])
        known = {tuple(sid[: level + 1]) for sid in codes.tolist()}
        assert [s >= 0 for s in state[:, 0].tolist()] == [tuple(row[: level + 1]) in known for row in batch.tolist()]
    assert torch.equal(state, grammar.walk(batch))


def test_popular_items_come_first_then_lower_rows():
    codes = np.array([[1, 0], [0, 1], [0, 1], [0, 1], [0, 1]])
    grammar = SidGrammar(codes, (2, 2), np.array([9, 3, 5, 3, 0]), np.array([0, 1, 2, 3]))
    shared = grammar.walk(torch.tensor([[0, 1]]))
    assert grammar.items(shared).tolist() == [[2, 1, 3]]
    assert grammar.items(shared, grammar.filter([np.array([2])])).tolist() == [[-1, 1, 3]]
    assert SidGrammar(codes, (2, 2)).items(shared).tolist() == [[1, 2, 3, 4]]


def test_no_request_at_all():
    grammar = SidGrammar(np.array([[0], [1]]), (2,))
    none = torch.empty(0, 1, dtype=torch.int64)
    assert grammar.items(none).shape[0] == 0
    item_filter = grammar.filter([], [])
    assert grammar.live_items(item_filter).tolist() == []
    assert grammar.successors(none, 0, item_filter).allowed.shape == (0, 2)


def test_without_a_live_item_there_is_no_grammar():
    for codes, items in ((np.empty((0, 2), np.int64), None), (np.array([[0, 0]]), np.empty(0, np.int64))):
        with pytest.raises(HfGrError, match="the catalogue has no live item; add items"):
            SidGrammar(codes, (1, 1), items=items)


def test_a_filter_of_other_length_is_refused():
    grammar = SidGrammar(np.array([[0], [1]]), (2,))
    with pytest.raises(ValueError, match="zip"):
        grammar.filter([None, None], [None])


def test_the_grammar_moves_whole():
    listing = Listing([(0, 1), (1, 0), (0, 1)], (2, 2), [0, 1, 2], {0, 1, 2})
    grammar = listing.grammar()
    assert grammar.to("cpu") is grammar and grammar.device == torch.device("cpu")
    moved = grammar.to("meta")
    assert vars(moved).keys() == vars(grammar).keys()
    for name, value in vars(moved).items():
        for tensor in value if isinstance(value, list) else [value]:
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta", name
    assert moved.device.type == "meta" and moved.initial(2).device.type == "meta"
    assert (moved.num_items, moved.num_sids, moved.num_levels) == (3, 2, 2)
    assert grammar.items(grammar.walk(torch.tensor([[0, 1]]))).tolist() == [[2, 0]], "and the first one stays"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_grammar_answers_alike_on_a_gpu():
    random = np.random.default_rng(0)
    codes, deny = random.integers(0, 4, (50, 3)), [random.integers(0, 50, 20), None]
    batch = torch.from_numpy(random.integers(0, 4, (2, 3)))
    answers = []
    for device in ("cpu", "cuda"):
        grammar = SidGrammar(codes, (4,) * 3).to(device)
        item_filter = grammar.filter(deny)
        options = grammar.successors(grammar.walk(batch[:, :2].to(device)), 2, item_filter)
        found = grammar.items(grammar.walk(torch.from_numpy(codes[:2]).to(device)), item_filter)
        answers.append([x.cpu() for x in (options.codes, options.allowed, found, grammar.live_items(item_filter))])
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))
