"""The unordered grammar against a plain listing of items, and through the searches."""

from dataclasses import dataclass
from itertools import product
from math import factorial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer

from hf_gr.decoding import beam_search, exhaustive_search, generate_search, tree_search
from hf_gr.decoding.tree import merge_sets
from hf_gr.errors import HfGrError
from hf_gr.grammar import DEAD, UnorderedGrammar, unordered
from hf_gr.vocabulary import add_vocabulary


Sid = tuple[int, ...]  # one code of each codebook; of a partial set −1 where there is none yet


@dataclass
class Listing:
    """The grammar as a list of items: what every answer is checked against."""

    codes: list[Sid]
    sizes: tuple[int, ...]
    popularity: list[int]
    live: set[int]
    think: bool = False

    @property
    def tokens(self) -> list[list[int]]:
        """Token ids of the codes: codebooks lie in the vocabulary in any way."""
        ids = iter(np.random.default_rng(0).permutation(sum(self.sizes)) * 2 + 3)
        return [[int(next(ids)) for _ in range(size)] for size in self.sizes]

    @property
    def think_ids(self) -> list[int]:
        return [2 * row for row in range(len(self.sizes))] if self.think else []

    def grammar(self) -> UnorderedGrammar:
        return UnorderedGrammar(
            np.array(self.codes),
            self.tokens,
            think_ids=self.think_ids,
            popularity=np.array(self.popularity),
            items=np.array(sorted(self.live)),
        )

    def matching(self, held: Sid, items: set[int]) -> list[int]:
        """The items of `items` that satisfy a partial set, the more popular first, then the lower row."""
        found = [item for item in items if all(h in (-1, c) for h, c in zip(held, self.codes[item], strict=True))]
        return sorted(found, key=lambda item: (-self.popularity[item], item))

    def sets(self, count: int) -> list[Sid]:
        """All partial sets of `count` codes."""
        every = product(*[range(-1, size) for size in self.sizes])
        return [held for held in every if sum(code >= 0 for code in held) == count]

    def written(self, held: Sid, seed: int = 0) -> list[int]:
        """A partial set in tokens, in some order."""
        random = np.random.default_rng([seed, *np.array(held) + 1])
        order = random.permutation([codebook for codebook, code in enumerate(held) if code >= 0])
        codes = [self.tokens[codebook][held[codebook]] for codebook in order]
        return [token for pair in zip(self.think_ids, codes, strict=False) for token in pair] if self.think else codes


@st.composite
def listings(draw) -> Listing:
    sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    sid = st.tuples(*[st.integers(0, size - 1) for size in sizes])
    codes = draw(st.lists(sid, min_size=1, max_size=14))
    popularity = [draw(st.integers(0, 3)) for _ in codes]
    live = draw(st.sets(st.integers(0, len(codes) - 1), min_size=1))
    return Listing(codes, sizes, popularity, live, draw(st.booleans()))


@st.composite
def filters(draw, listing: Listing, grammar: UnorderedGrammar):
    """A filter of a few requests and the live items of each: lists with repeats and dead items, shared masks."""
    total = len(listing.codes)
    lists = st.none() | st.lists(st.integers(0, total - 1), max_size=total + 2).map(lambda x: np.array(x, np.int64))
    flags = [np.array(draw(st.lists(st.booleans(), min_size=total, max_size=total))) for _ in range(2)]
    masks = [grammar.mask(flag) for flag in flags]
    requests = draw(st.lists(st.tuples(lists, lists, st.sampled_from([-1, -1, 0, 1])), min_size=1, max_size=4))
    item_filter = grammar.filter(
        [deny for deny, _, _ in requests],
        [allow for _, allow, _ in requests],
        [None if mask < 0 else masks[mask] for _, _, mask in requests],
    )
    live = []
    for deny, allow, mask in requests:
        items = listing.live if allow is None else listing.live & set(allow.tolist())
        items = items - set(() if deny is None else deny.tolist())
        live.append(items if mask < 0 else {item for item in items if flags[mask][item]})
    return item_filter, live


def states_of(listing: Listing, grammar: UnorderedGrammar, held: list[Sid]) -> torch.Tensor:
    return grammar.walk(torch.tensor([listing.written(one) for one in held], dtype=torch.int64).view(len(held), -1))


def expected_options(listing: Listing, held: Sid, items: set[int]) -> list[tuple[int, int]]:
    """(codebook, code) that may follow a partial set."""
    below = listing.matching(held, items)
    found = {(c, listing.codes[item][c]) for item in below for c, code in enumerate(held) if code < 0}
    return sorted(found)


def options_of(listing: Listing, allowed: torch.Tensor) -> list[tuple[int, int]]:
    numbers = [(c, code) for c, size in enumerate(listing.sizes) for code in range(size)]
    return [option for option, may in zip(numbers, allowed.tolist(), strict=True) if may]


@settings(max_examples=60, deadline=None)
@given(listings(), st.data())
def test_what_may_follow_is_what_some_live_item_satisfies(listing, data):
    """At every partial set, unfiltered and under mixed filters; with the table of pairs and without."""
    with (
        patch.object(unordered, "TABLE_CODES", data.draw(st.sampled_from([0, 4096]))),
        patch.object(unordered, "CHUNK_ITEMS", data.draw(st.sampled_from([2, 1000]))),
    ):
        grammar = listing.grammar()
        item_filter, live = data.draw(filters(listing, grammar))
        assert grammar.num_items == len(listing.live)
        assert item_filter.live.tolist() == [len(items) for items in live]
        for step in range(len(listing.sizes)):
            sets = listing.sets(step)
            states = states_of(listing, grammar, sets)
            free = grammar.successors(states, step)
            rows = grammar.successors(states.repeat(len(live), 1), step, item_filter)
            assert free.index is None and rows.index is None
            assert torch.equal(grammar.step_tokens(step), torch.tensor([t for ids in listing.tokens for t in ids]))
            for row, held in enumerate(sets):
                assert bool(grammar.alive(states)[row]) == bool(listing.matching(held, listing.live))
                assert options_of(listing, free.allowed[row]) == expected_options(listing, held, listing.live)
                for request, items in enumerate(live):
                    allowed = rows.allowed[request * len(sets) + row]
                    assert options_of(listing, allowed) == expected_options(listing, held, items)


@settings(max_examples=60, deadline=None)
@given(listings(), st.data())
def test_only_sets_of_items_can_be_written(listing, data):
    """Any tokens in any order: codes used twice, foreign tokens and wrong thoughts die, and stay dead."""
    grammar = listing.grammar()
    token = st.sampled_from([*[token for ids in listing.tokens for token in ids], -1, 1, 10**6])
    count = len(listing.sizes)
    codes = data.draw(st.lists(st.lists(token, min_size=count, max_size=count), min_size=1, max_size=6))
    wrong = data.draw(st.sampled_from([None, *range(count)])) if listing.think else None
    code_of = {token: (c, code) for c, ids in enumerate(listing.tokens) for code, token in enumerate(ids)}
    for length in range(count + 1):
        rows = []
        for row in codes:
            thoughts = [1 if step == wrong else think for step, think in enumerate(listing.think_ids)]
            pairs = [[thoughts[step], row[step]] if listing.think else [row[step]] for step in range(length)]
            rows.append([token for pair in pairs for token in pair])
        states = grammar.walk(torch.tensor(rows, dtype=torch.int64).view(len(rows), -1))
        for row, state in zip(codes, states.tolist(), strict=True):
            held = [-1] * count
            lives = wrong is None or wrong >= length
            for one in row[:length]:
                codebook, code = code_of.get(one, (0, -1))
                lives = lives and code >= 0 and held[codebook] < 0
                held[codebook] = code
                lives = lives and bool(listing.matching(tuple(held), listing.live))
            assert state == (held if lives else [DEAD] * count)


@settings(max_examples=40, deadline=None)
@given(listings(), st.data())
def test_items_stand_in_bucket_order(listing, data):
    """However a set was written; partial sets hold no item."""
    grammar = listing.grammar()
    item_filter, live = data.draw(filters(listing, grammar))
    limit = data.draw(st.none() | st.integers(1, 4))
    count = len(listing.sizes)
    sids = listing.sets(count)
    written = [listing.written(sid, data.draw(st.integers(0, 9))) for sid in sids]
    states = grammar.walk(torch.tensor(written, dtype=torch.int64).view(len(sids), -1))
    everyone = [listing.live] * len(live)
    for found, who in (
        (grammar.items(states.repeat(len(live), 1), item_filter, limit), live),
        (grammar.items(states.repeat(len(live), 1), limit=limit), everyone),
    ):
        for row in range(len(found)):
            items = [item for item in found[row].tolist() if item >= 0]
            expected = listing.matching(sids[row % len(sids)], who[row // len(sids)])
            assert items[:limit] == expected[:limit] and items == expected[: len(items)]
    partial = states_of(listing, grammar, listing.sets(count - 1))
    assert (grammar.items(partial) < 0).all()


def test_steps_by_option_and_by_token_agree():
    listing = Listing([(0, 1, 2), (1, 1, 0), (0, 0, 2)], (2, 2, 3), [0, 1, 2], {0, 1, 2})
    grammar = listing.grammar()
    state = states_of(listing, grammar, [(-1, 1, -1)] * 4)
    option = torch.tensor([0, 6, 3, -1])  # codebook 0, codebook 2, the used codebook 1, nothing
    assert grammar.advance(state, 1, option).tolist() == [[0, 1, -1], [-1, 1, 2], [DEAD] * 3, [DEAD] * 3]
    token = torch.tensor([0, 6, 3, 5])  # no item has code 1 of both codebook 1 and codebook 2
    assert grammar.step(state, 1, token).tolist() == [[0, 1, -1], [-1, 1, 2], [DEAD] * 3, [DEAD] * 3]
    dead = grammar.advance(state, 1, torch.full((4,), -1))
    assert not grammar.successors(dead, 2).allowed.any()
    assert (grammar.advance(dead, 2, torch.zeros(4, dtype=torch.int64)) == DEAD).all()


@settings(max_examples=40, deadline=None)
@given(listings())
def test_keys_are_equal_where_sets_are(listing):
    grammar = listing.grammar()
    assert grammar.first_numbers.tolist() == np.cumsum([0, *listing.sizes[:-1]]).tolist()
    sets = [held for count in range(len(listing.sizes) + 1) for held in listing.sets(count)]
    keys = grammar.set_keys(torch.tensor(sets))
    assert len(set(keys.tolist())) == len(sets)


def test_keys_stay_exact_up_to_63_bits():
    """63 codebooks of one code each have 2^63 sets; the 64th is one too many, and keys are drawn."""
    for count, exact in ((63, True), (64, False)):
        grammar = UnorderedGrammar(np.zeros((1, count), np.int64), [[token] for token in range(count)])
        keys = grammar.option_keys
        assert (keys.tolist() == [2**c for c in range(count)]) == exact
        assert len(set(keys.tolist())) == count and (keys >= 0).all()


def test_drawn_keys_tell_sets_apart():
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (500, 8))
    grammar = UnorderedGrammar(codes, np.arange(2048).reshape(8, 256).tolist())
    again = UnorderedGrammar(codes[:3], np.arange(2048).reshape(8, 256).tolist())
    assert torch.equal(grammar.option_keys, again.option_keys)
    states = torch.from_numpy(np.where(random.random((20000, 8)) < 0.5, random.integers(0, 256, (20000, 8)), -1))
    keys = grammar.set_keys(states)
    assert len(keys.unique()) == len(states.unique(dim=0))


@settings(max_examples=25, deadline=None)
@given(listings(), st.data())
def test_a_changed_catalog_is_as_one_built_anew(listing, data):
    grammar = listing.grammar()
    sid = st.tuples(*[st.integers(0, size - 1) for size in listing.sizes])
    added = data.draw(st.lists(sid, min_size=1, max_size=4))
    popularity = [data.draw(st.integers(0, 3)) for _ in added]
    removed = data.draw(st.lists(st.integers(0, len(listing.codes) - 1), max_size=4))
    total = len(listing.codes) + len(added)
    live = (listing.live | set(range(len(listing.codes), total))) - set(removed)
    fresh = Listing(listing.codes + added, listing.sizes, listing.popularity + popularity, live, listing.think)
    changed = grammar.with_items(np.array(added), removed, np.array(popularity))
    assert_alike(changed, fresh.grammar(), fresh)
    assert_alike(grammar, listing.grammar(), listing)


def test_a_saved_grammar_comes_back(tmp_path):
    for think in (False, True):
        listing = Listing([(0, 1), (1, 0), (0, 1), (1, 1)], (2, 2), [0, 1, 2, 0], {0, 1, 2}, think)
        listing.grammar().save(tmp_path / "grammar.safetensors")
        assert_alike(UnorderedGrammar.load(tmp_path / "grammar.safetensors"), listing.grammar(), listing)
    with pytest.raises(HfGrError, match="there is no grammar at"):
        UnorderedGrammar.load(tmp_path / "none.safetensors")


def assert_alike(one: UnorderedGrammar, other: UnorderedGrammar, listing: Listing) -> None:
    assert type(one) is type(other) is UnorderedGrammar
    for name in ("num_items", "num_sids", "catalog_size", "think_ids", "codebook_sizes", "nbytes"):
        assert getattr(one, name) == getattr(other, name), name
    assert np.array_equal(one.item_codes, other.item_codes)
    assert torch.equal(one.option_keys, other.option_keys)
    deny = [np.array(sorted(listing.live)[::2]), None]
    for step in range(len(listing.sizes) + 1):
        states = [states_of(listing, grammar, listing.sets(step)).repeat(2, 1) for grammar in (one, other)]
        assert torch.equal(*states)
        pairs = [(grammar, grammar.filter(deny), state) for grammar, state in zip((one, other), states, strict=True)]
        if step < len(listing.sizes):
            assert torch.equal(*(g.successors(state, step, rows).allowed for g, rows, state in pairs))
        else:
            assert torch.equal(*(g.items(state, rows) for g, rows, state in pairs))


def test_codebooks_of_every_size_of_number():
    """Codes that need 8, 16 and 32 bits, and pairs that many items share."""
    for size in (256, 257, 40000):
        random = np.random.default_rng(size)
        codes = np.stack([random.choice([0, size - 1], 700), random.integers(0, 3, 700)], 1)
        grammar = UnorderedGrammar(codes, [list(range(size)), list(range(size, size + 3))])
        state = grammar.walk(torch.tensor([[size - 1], [size + 1]]))
        allowed = [row.nonzero()[:, 0].tolist() for row in grammar.successors(state, 1).allowed]
        assert allowed == [[size, size + 1, size + 2], [0, size - 1]]
        denied = np.flatnonzero((codes == [size - 1, 2]).all(1))
        assert len(denied) > 90
        rows = grammar.filter([denied, denied[:-1]])
        allowed = grammar.successors(state[[0, 0]], 1, rows).allowed
        assert [row.nonzero()[:, 0].tolist() for row in allowed] == [[size, size + 1], [size, size + 1, size + 2]]


def test_no_request_at_all():
    grammar = UnorderedGrammar(np.array([[0, 1], [1, 0], [1, 1]]), [[0, 1], [2, 3]])
    rows = grammar.filter([], [])
    for step in range(2):
        assert grammar.successors(grammar.initial(0), step, rows).allowed.shape == (0, 4)
    assert grammar.items(grammar.initial(0), rows).shape[0] == 0


def test_the_grammar_moves_whole():
    listing = Listing([(0, 1), (1, 0), (0, 1)], (2, 2), [0, 1, 2], {0, 1, 2})
    grammar = listing.grammar()
    assert grammar.to("cpu") is grammar
    moved = grammar.to("meta")
    tensors = [(name, value) for part in (moved, moved._trie) for name, value in vars(part).items()]
    for name, value in tensors:
        for tensor in value if isinstance(value, list) else [value]:
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta", name
    assert moved.initial(2).device.type == moved.option_keys.device.type == moved.first_numbers.device.type == "meta"
    assert grammar.items(states_of(listing, grammar, [(0, 1)])).tolist() == [[2, 0]], "and the first one stays"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_grammar_answers_alike_on_a_gpu():
    random = np.random.default_rng(0)
    codes = random.integers(0, 4, (200, 4))
    flags, deny, allow = random.random(200) < 0.5, random.integers(0, 200, 40), random.integers(0, 200, 30)
    found: dict[str, list[torch.Tensor]] = {"cpu": [], "cuda": []}
    for device, answers in found.items():
        grammar = UnorderedGrammar(codes, np.arange(16).reshape(4, 4).tolist()).to(device)
        mask = grammar.mask(flags)
        rows = grammar.filter([deny, None, deny, None], [None, allow, None, None], [None, mask, mask, None])
        state = grammar.initial(40)
        for step in range(4):
            allowed = grammar.successors(state, step, rows).allowed
            option = (allowed * torch.arange(1, 17, device=device)).argmax(1)
            state = grammar.advance(state, step, option)
            answers += [allowed.cpu(), state.cpu()]
        answers += [grammar.items(state, rows).cpu(), grammar.with_items(codes[:2]).items(state).cpu()]
    assert all(torch.equal(one, other) for one, other in zip(*found.values(), strict=True))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "thinking"])
def small(request):
    """A model, a small catalog with shared SIDs and a dead item, and prompts that themselves end in SIDs."""
    catalog, model = tiny_catalog(14, (3, 2, 3)), tiny_lm()
    vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=10)
    think = vocabulary.think_ids if request.param else ()
    items = np.arange(1, 14)
    grammar = UnorderedGrammar(
        catalog.codes, vocabulary.code_ids, think_ids=think, popularity=catalog.popularity, items=items
    )
    tokens = vocabulary.item_tokens(catalog)
    prompts = [[vocabulary.start_id, *tokens[:count].ravel().tolist()] for count in (4, 0, 2)]
    return model, grammar, prompts


@pytest.mark.parametrize("filtered", [False, True])
def test_unmerged_beams_are_those_of_generate(small, filtered):
    model, grammar, prompts = small
    rows = grammar.filter([np.arange(5), None, None], [None, np.arange(3, 9), None]) if filtered else None
    for width in (2, 7):
        tree = tree_search(model, prompts, grammar, num_beams=width, score="model", item_filter=rows, merge="none")
        plain = generate_search(model, prompts, grammar, num_beams=width, score="model", item_filter=rows)
        assert torch.equal(tree.tokens, plain.tokens) and torch.equal(tree.states, plain.states)
        assert torch.allclose(tree.scores, plain.scores, atol=1e-4)


@pytest.mark.parametrize("filtered", [False, True])
def test_all_orders_together_are_the_exhaustive_ranking(small, filtered):
    model, grammar, prompts = small
    rows = grammar.filter([np.arange(5), None, None], [None, np.arange(3, 9), None]) if filtered else None
    paths = grammar.num_sids * factorial(grammar.num_codes)
    beams = tree_search(model, prompts, grammar, num_beams=paths, item_filter=rows, merge="none")
    every = exhaustive_search(model, prompts, grammar, item_filter=rows)
    if not filtered:
        assert torch.isfinite(beams.scores).all(), "every order of every SID is a path"
    whole = merge_sets(beams, grammar)
    assert torch.allclose(whole.scores[:, : grammar.num_sids], every.scores, atol=1e-4)
    assert torch.isneginf(whole.scores[:, grammar.num_sids :]).all()
    live = torch.isfinite(every.scores)
    assert torch.equal(whole.states[:, : grammar.num_sids][live], every.states[live])
    if not filtered:
        assert torch.allclose(every.scores.exp().sum(1), torch.ones(3), atol=1e-4)


def test_merged_beams_hold_a_set_once(small):
    """And wide enough they hold all sets, with no more probability than there is."""
    model, grammar, prompts = small
    for width in (3, 40):
        beams = tree_search(model, prompts, grammar, num_beams=width)
        for row in range(len(prompts)):
            states = beams.states[row][torch.isfinite(beams.scores[row])]
            assert len(states.unique(dim=0)) == len(states) == min(width, grammar.num_sids)
            assert torch.equal(grammar.walk(beams.tokens[row][: len(states)]), states)
        assert (beams.scores.exp().sum(1) < 1 + 1e-4).all()


def test_as_many_items_as_are_live(small):
    model, grammar, prompts = small
    flags = np.arange(14) % 3 == 0
    rows = grammar.filter([np.arange(6), None, None], [None, np.arange(4), None], [None, None, grammar.mask(flags)])
    live = [set(range(6, 14)), {1, 2, 3}, {3, 6, 9, 12}]
    for top_k in (1, 4, 9, 14):
        for method in ("beam", "exhaustive", "sample", "gumbel"):
            found = beam_search(
                model, prompts, grammar, num_beams=2, top_k=top_k, method=method, item_filter=rows
            ).items
            for row, items in enumerate(live):
                answer = [item for item in found[row].tolist() if item >= 0]
                assert len(set(answer)) == len(answer) == min(top_k, len(items)) and set(answer) <= items
