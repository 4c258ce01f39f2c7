import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from listing import Listing, Requests, allowed_tokens, listings, requests

from hf_gr.errors import HfGrError
from hf_gr.grammar import ItemFilter, TrieGrammar


ALL = settings(max_examples=50, deadline=None)
CODES = [(0, 1), (1, 0), (0, 1), (1, 1), (0, 1)]
SMALL = Listing(CODES, (2, 2), [0] * 5, {0, 1, 2, 3})


def check(grammar: TrieGrammar, item_filter: ItemFilter, listing: Listing, live: list[set[int]]) -> None:
    """Every prefix under every request, as the beams of that request."""
    assert item_filter.live.tolist() == [len(items) for items in live] and len(item_filter) == len(live)
    for step in range(listing.levels):
        prefixes = listing.prefixes(step)
        states = grammar.walk(listing.written(prefixes * len(live)))
        options, free = grammar.successors(states, step, item_filter), grammar.successors(states, step)
        for row in range(len(states)):
            request, beam = divmod(row, len(prefixes))
            found = allowed_tokens(options, row)
            assert found.keys() == listing.following(prefixes[beam], live[request])
            assert found.items() <= allowed_tokens(free, row).items(), "an option means the same with a filter"
    sids = listing.prefixes(listing.levels)
    states = grammar.walk(listing.written(sids * len(live)))
    for limit in (None, 1, 2):
        found = grammar.items(states, item_filter, limit)
        for row in range(len(states)):
            request, beam = divmod(row, len(sids))
            wanted = listing.below(sids[beam], live[request])
            items = [item for item in found[row].tolist() if item >= 0]
            assert items == [item for item in wanted if item in items], "live items only, in their order"
            assert items[:limit] == wanted[:limit]


@ALL
@given(listings(), st.data())
def test_filters_equal_the_listing(listing, data):
    grammar, asked = listing.grammar(), data.draw(requests(listing))
    check(grammar, asked.filter(grammar), listing, asked.live(listing))


@ALL
@given(listings(), st.data())
def test_rows_of_a_filter_are_the_filter_of_those_requests(listing, data):
    grammar, asked = listing.grammar(), data.draw(requests(listing))
    index = data.draw(st.lists(st.integers(0, len(asked) - 1), min_size=1, max_size=4))
    chosen = asked.filter(grammar).rows(torch.tensor(index))
    check(grammar, chosen, listing, asked.rows(index).live(listing))
    for kind in ("deny", "allow"):
        mine = [getattr(asked, kind)[row] for row in index]
        assert all(a is b for a, b in zip(getattr(chosen, kind), mine, strict=True))


@ALL
@given(listings(), st.data())
def test_searching_again_denies_more(listing, data):
    """What was asked stays readable, so that found items can be denied on top."""
    grammar, asked = listing.grammar(), data.draw(requests(listing))
    first = asked.filter(grammar)
    found = [np.array(sorted(items)[:1], np.int64) for items in asked.live(listing)]
    deny = [f if d is None else np.concatenate([d, f]) for d, f in zip(first.deny, found, strict=True)]
    second = grammar.filter(deny, first.allow, first.only)
    live = [items - set(f.tolist()) for items, f in zip(asked.live(listing), found, strict=True)]
    check(grammar, second, listing, live)


@pytest.mark.parametrize("dense", [0, 1 << 18])
@pytest.mark.parametrize("long_list", [50, 4096])
def test_hundreds_of_items(dense, long_list):
    random = np.random.default_rng(0)
    sids = [tuple(sid) for sid in random.integers(0, (6, 5, 4), (600, 3)).tolist()]
    live = set(random.permutation(600)[:500].tolist())
    listing = Listing(sids, (6, 5, 4), random.integers(0, 9, 600).tolist(), live, dense=dense)
    stock = random.random(600) < 0.5
    pick = [random.permutation(600)[:size] for size in (3, 40, 300, 590, 300, 7)]
    asked = Requests(
        deny=[pick[0], pick[2], None, pick[3], pick[4], None],
        allow=[None, None, pick[1], None, pick[2], pick[5]],
        only=[None, stock, None, stock, stock, ~stock],
        long_list=long_list,
    )
    grammar = listing.grammar()
    check(grammar, asked.filter(grammar), listing, asked.live(listing))


def test_a_mask_that_requests_share_is_kept_once():
    grammar = SMALL.grammar()
    even, odd = grammar.mask(np.arange(5) % 2 == 0), grammar.mask(np.arange(5) % 2 == 1)
    item_filter = grammar.filter(only=[even, odd, even, None])
    assert [len(mask) for mask in item_filter.masks] == [2] * (grammar.num_codes + 1)
    assert item_filter.mask_row.tolist() == [0, 1, 0, -1] and item_filter.live.tolist() == [2, 2, 2, 4]
    assert even.num_items == 2 and even.live(np.arange(4)).sum() == 2


def test_no_request_at_all():
    for grammar in (SMALL.grammar(), Listing(CODES, (2, 2), [0] * 5, {0, 1}, dense=0).grammar()):
        none, one = grammar.initial(0), grammar.filter([np.array([0])])
        assert grammar.items(none).shape[0] == 0
        for item_filter in (grammar.filter(), grammar.filter([], [], []), one.rows(none[:, 0])):
            assert len(item_filter) == 0 and item_filter.live.tolist() == []
            assert grammar.successors(none, 0, item_filter).allowed.shape == (0, 2)
            assert grammar.items(none, item_filter).shape[0] == 0


def test_a_request_may_leave_nothing():
    grammar = SMALL.grammar()
    item_filter = grammar.filter([np.arange(5), None], [None, np.array([4])])
    assert item_filter.live.tolist() == [0, 0], "row 4 is no answer"
    assert not grammar.successors(grammar.initial(2), 0, item_filter).allowed.any()


def test_bad_filters_are_refused():
    grammar = SMALL.grammar()
    with pytest.raises(HfGrError, match=r"for 2 \(deny\), 1 \(allow\) and 2 \(only\) requests; they must be as many"):
        grammar.filter([None, None], [None])
    for bad, shown in (
        (np.ones(4, bool), r"bool \[4\]"),
        (np.ones(5), r"float64 \[5\]"),
        (np.ones((5, 1), bool), r"5, 1"),
    ):
        with pytest.raises(HfGrError, match=rf"bool array of the catalog's 5 rows; this one is .*{shown}"):
            grammar.mask(bad)
    for row in (-1, 5):
        for arguments in (([np.array([0, row])],), (None, [np.array([row])])):
            for long_list in (0, 4096):
                with pytest.raises(HfGrError, match=rf"{row} is no row of the catalog, which has 5"):
                    Requests(*(x or [None] for x in (*arguments, None, None)[:3]), long_list).filter(grammar)
    with pytest.raises(HfGrError, match="a mask belongs to the grammar that made it"):
        grammar.with_items(removed=[0]).filter(only=[grammar.mask(np.ones(5, bool))])
    for rows in (1, 3):
        with pytest.raises(HfGrError, match=rf"{rows} rows are no multiple of the filter's 2 requests"):
            grammar.successors(grammar.initial(rows), 0, grammar.filter([None, None]))


def test_a_filter_moves_whole():
    grammar = SMALL.grammar()
    item_filter = grammar.filter([np.array([1])], only=[grammar.mask(np.ones(5, bool))])
    assert item_filter.to("cpu") is item_filter
    moved = item_filter.to("meta")
    for name, value in vars(moved).items():
        for tensor in value if isinstance(value, list) else [value]:
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta", name
    assert item_filter.live.tolist() == [3]
