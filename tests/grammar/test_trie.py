import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from listing import DENSE, Listing, Sid, allowed_tokens, listings, requests
from safetensors.torch import save_file

from hf_gr.errors import HfGrError
from hf_gr.grammar import DEAD, Successors, TrieGrammar


ALL = settings(max_examples=60, deadline=None)


def everything(grammar: TrieGrammar, listing: Listing) -> list:
    """All that a grammar answers without a filter."""
    found: list = [grammar.num_items, grammar.num_sids, grammar.item_codes.tolist()]
    for step in range(listing.levels):
        states = grammar.walk(listing.written(listing.prefixes(step)))
        options = grammar.successors(states, step)
        found.append([sorted(allowed_tokens(options, row)) for row in range(len(states))])
    found.append(grammar.items(grammar.walk(listing.written(listing.prefixes(listing.levels)))).tolist())
    return found


@ALL
@given(listings())
def test_walk_and_successors_equal_the_listing(listing):
    grammar = listing.grammar()
    assert grammar.num_items == len(listing.live) and grammar.catalog_size == len(listing.codes)
    assert grammar.num_sids == len({listing.codes[item] for item in listing.live})
    for step in range(listing.levels):
        prefixes = listing.prefixes(step)
        states = grammar.walk(listing.written(prefixes))
        assert states.shape == (len(prefixes), 1) and states.dtype == torch.int64
        if listing.thinking:
            think = torch.full((len(prefixes), 1), listing.think_ids[step])
            assert torch.equal(grammar.walk(torch.cat([listing.written(prefixes), think], 1)), states)
        options = grammar.successors(states, step)
        for row, prefix in enumerate(prefixes):
            below = listing.below(prefix, listing.live)
            assert bool(grammar.alive(states)[row]) == bool(below), "a foreign prefix must be dead, and no other"
            assert allowed_tokens(options, row).keys() == listing.following(prefix, listing.live)
    leaves = grammar.alive(grammar.walk(listing.written(listing.prefixes(listing.levels))))
    assert leaves.tolist() == [bool(listing.below(sid, listing.live)) for sid in listing.prefixes(listing.levels)]


@ALL
@given(listings())
def test_every_way_of_going_on_leads_to_the_same_state(listing):
    grammar = listing.grammar()
    for step in range(listing.levels):
        prefixes = listing.prefixes(step)
        states = grammar.walk(listing.written(prefixes))
        options = grammar.successors(states, step)
        dead = torch.full((len(states), 1), DEAD)
        assert torch.equal(grammar.advance(states, step, torch.full((len(states),), -1)), dead)
        assert torch.equal(grammar.step(states, step, torch.full((len(states),), -1)), dead)
        for code in range(listing.sizes[step]):
            reached = grammar.walk(listing.written([(*prefix, code) for prefix in prefixes]))
            number = torch.full((len(states),), code)
            assert torch.equal(grammar.step(states, step, number), reached)
            option = options.option_of(number)
            assert torch.equal(grammar.advance(states, step, option), reached)
            expected = [allowed_tokens(options, row).get(code, -1) for row in range(len(states))]
            assert option.tolist() == expected


@ALL
@given(listings(), st.data())
def test_foreign_tokens_lead_nowhere(listing, data):
    """Codes of another level, wrong thinking tokens, other ids, −1, and whatever follows them."""
    grammar = listing.grammar()
    answer = listing.tokens(data.draw(st.sampled_from(listing.codes)))
    place = data.draw(st.integers(0, len(answer) - 1))
    level, thought = divmod(place, grammar.stride)
    right = listing.token_ids[level] if thought == grammar.stride - 1 else [listing.think_ids[level]]
    others = [-1, 10**6, *range(listing.vocabulary_size)]
    answer[place] = data.draw(st.sampled_from([token for token in others if token not in right]))
    for length in range(place + 1, len(answer) + 1):
        state = grammar.walk(torch.tensor([answer[:length]]))
        assert state.tolist() == [[DEAD]] and not grammar.alive(state).any()
        step = length // grammar.stride
        if step < listing.levels:
            assert not grammar.successors(state, step).allowed.any()
    assert (grammar.items(state) < 0).all()


@ALL
@given(listings(), st.data())
def test_tokens_are_read_as_the_listing_reads_them(listing, data):
    grammar = listing.grammar()
    assert grammar.answer_length == listing.levels * (1 + listing.thinking) and grammar.num_codes == listing.levels
    assert list(grammar.code_columns) == [c for c in range(grammar.answer_length) if not listing.thinking or c % 2]
    for level, tokens in enumerate(listing.token_ids):
        assert grammar.step_tokens(level).tolist() == grammar.codebook_tokens(level).tolist() == tokens

    token = st.sampled_from([-1, 10**6, *range(listing.vocabulary_size)])
    row = st.lists(token, min_size=grammar.answer_length, max_size=grammar.answer_length)
    drawn = data.draw(st.lists(row, min_size=1, max_size=4))
    index = grammar.step_index(torch.tensor(drawn))
    for answer, numbers in zip(drawn, index.tolist(), strict=True):
        for column in grammar.code_columns:
            tokens = listing.token_ids[column // grammar.stride]
            if answer[column] in tokens:
                assert tokens[numbers[column]] == answer[column]
            else:
                assert numbers[column] < 0

    sids = [data.draw(st.sampled_from(listing.codes)) for _ in range(6)]
    answers = listing.written(sids).reshape(2, 3, -1)
    assert grammar.codes(answers).reshape(6, -1).tolist() == [list(sid) for sid in sids]
    level = data.draw(st.integers(0, listing.levels - 1))
    answers[1, 2, grammar.code_columns[level]] = data.draw(st.sampled_from([-1, 10**6, *listing.think_ids]))
    assert grammar.codes(answers)[1, 2].tolist() == [-1 if c == level else code for c, code in enumerate(sids[5])]


def test_options_pick_their_logits():
    """Both kinds of options, against a listing; what is padding must not surface."""
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    allowed = torch.tensor([[True, False, True], [False, True, False]])
    none = -torch.inf
    assert Successors(None, allowed).masked(logits).tolist() == [[1, none, 3], [none, 5, none]]
    index = torch.tensor([[2, 0, 1], [2, 2, 0]])
    assert Successors(index, allowed).masked(logits).tolist() == [[3, none, 2], [none, 6, none]]
    assert Successors(None, allowed).option_of(torch.tensor([2, 0])).tolist() == [2, -1]
    assert Successors(index, allowed).option_of(torch.tensor([1, 2])).tolist() == [2, 1]
    assert Successors(index, allowed).option_of(torch.tensor([0, -1])).tolist() == [-1, -1]


@ALL
@given(listings(), st.data())
def test_killed_rows_are_dead_and_no_others(listing, data):
    grammar = listing.grammar()
    states = grammar.walk(listing.written([listing.codes[item] for item in sorted(listing.live)]))
    dead = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(states), max_size=len(states))))
    killed = grammar.killed(states, dead)
    assert torch.equal(grammar.alive(killed), ~dead) and torch.equal(killed[~dead], states[~dead])
    assert (grammar.items(killed)[dead] == -1).all()


@ALL
@given(listings(), st.none() | st.integers(1, 3))
def test_items_stand_in_bucket_order(listing, limit):
    grammar, sids = listing.grammar(), listing.prefixes(listing.levels)
    buckets = [listing.below(sid, listing.live) for sid in sids]
    found = grammar.items(grammar.walk(listing.written(sids)), limit=limit)
    width = max(map(len, buckets)) if limit is None else min(limit, max(map(len, buckets)))
    assert found.shape == (len(sids), width) and found.dtype == torch.int64
    assert [[i for i in row if i >= 0] for row in found.tolist()] == [bucket[:width] for bucket in buckets]


def test_popular_items_come_first_then_lower_rows():
    codes, tokens = np.array([[1, 0], [0, 1], [0, 1], [0, 1], [0, 1]]), [[4, 5], [6, 7]]
    popular = np.array([9, 3, 5, 3, 0])
    grammar = TrieGrammar(codes, tokens, popularity=popular, items=np.array([3, 2, 1, 0, 0]))
    shared = grammar.walk(torch.tensor([[4, 7]]))
    assert grammar.num_items == 4, "the order and repeats of `items` say nothing"
    assert grammar.items(shared).tolist() == [[2, 1, 3]]
    assert TrieGrammar(codes, tokens).items(shared).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("dense", DENSE)
def test_many_wide_levels(dense):
    """More codes than one int64 sorts by, and far more nodes than hypothesis tries."""
    random = np.random.default_rng(0)
    sizes = (1000, 2, 700, 900, 3, 1000, 1000, 1000, 1000)
    sids = np.stack([random.integers(0, size, 400) for size in sizes], 1)
    sids[200:, :3] = sids[:200, :3]
    listing = Listing([tuple(s) for s in sids.tolist()], sizes, [0] * 400, set(range(0, 400, 2)), True, dense)
    grammar = listing.grammar()
    assert np.array_equal(grammar.item_codes, np.array(sorted(listing.codes[item] for item in listing.live)))
    for step in range(len(sizes)):
        prefixes = [sid[:step] for sid in listing.codes]
        options = grammar.successors(grammar.walk(listing.written(prefixes)), step)
        for row, prefix in enumerate(prefixes):
            assert allowed_tokens(options, row).keys() == listing.following(prefix, listing.live)


def test_memory_per_item():
    codes = np.random.default_rng(0).integers(0, 256, (200_000, 4))
    grammar = TrieGrammar(codes, np.arange(1024).reshape(4, 256).tolist())
    assert 20 <= grammar.nbytes / len(codes) <= 40


@ALL
@given(listings(), st.data())
def test_a_changed_catalog_is_as_one_built_afresh(listing, data):
    old, size = listing.grammar(), len(listing.codes)
    before = everything(old, listing)
    sid = st.tuples(*[st.integers(0, size - 1) for size in listing.sizes])
    added: list[Sid] = data.draw(st.lists(sid, max_size=4))
    popularity = data.draw(st.none() | st.just(list(range(len(added)))))
    removed = data.draw(st.sets(st.integers(0, size - 1), max_size=size))
    live = listing.live - removed | set(range(size, size + len(added)))
    changed = replace(
        listing,
        codes=listing.codes + added,
        popularity=listing.popularity + (popularity or [0] * len(added)),
        live=live,
    )
    arguments = np.array(added).reshape(-1, listing.levels) if added else None, sorted(removed)
    if live:
        new = old.with_items(*arguments, popularity=None if popularity is None else np.array(popularity))
        assert new.catalog_size == len(changed.codes)
        assert everything(new, changed) == everything(changed.grammar(), changed)
        asked = data.draw(requests(changed))
        assert asked.filter(new).live.tolist() == [len(items) for items in asked.live(changed)]
    else:
        with pytest.raises(HfGrError, match="no live item"):
            old.with_items(*arguments)
    assert everything(old, listing) == before


@settings(max_examples=30, deadline=None)
@given(listings(), st.data())
def test_a_saved_grammar_answers_alike(tmp_path_factory, listing, data):
    grammar, file = listing.grammar(), tmp_path_factory.mktemp("saved") / "grammar.safetensors"
    grammar.save(file)
    loaded = TrieGrammar.load(file)
    assert [path.name for path in file.parent.iterdir()] == [file.name], "nothing else is left there"
    assert everything(loaded, listing) == everything(grammar, listing)
    assert loaded.think_ids == grammar.think_ids and loaded.codebook_sizes == grammar.codebook_sizes
    assert loaded.catalog_size == grammar.catalog_size
    asked = data.draw(requests(listing))
    states = [g.walk(listing.written(listing.codes * len(asked))) for g in (grammar, loaded)]
    found = [g.items(state, asked.filter(g)) for g, state in zip((grammar, loaded), states, strict=True)]
    assert torch.equal(*found)
    again = loaded.with_items(np.array(listing.codes[:1]))
    assert again.num_items == len(listing.live) + 1


SMALL = Listing([(0, 1), (1, 0), (0, 1)], (2, 2), [0, 1, 2], {0, 1, 2})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_loaded_grammar_is_mapped_into_memory(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (100_000, 4))
    file = tmp_path / "grammar.safetensors"
    TrieGrammar(codes, np.arange(1024).reshape(4, 256).tolist()).save(file)
    loaded = TrieGrammar.load(file)
    mapped = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    ranges = [tuple(int(end, 16) for end in span.split("-")) for span in mapped]
    addresses = [tensor.data_ptr() for tensor in (loaded._item, *loaded._children, *loaded._code)]
    addresses += [array.ctypes.data for array in (loaded._position, loaded._popularity)]
    assert all(any(low <= address < high for low, high in ranges) for address in addresses)


def test_saving_over_a_file_leaves_those_who_mapped_it_in_peace(tmp_path):
    file = tmp_path / "grammar.safetensors"
    SMALL.grammar().save(file)
    loaded = TrieGrammar.load(file)
    before = everything(loaded, SMALL)
    loaded.with_items(removed=[0, 2]).save(file)
    assert everything(loaded, SMALL) == before and TrieGrammar.load(file).num_items == 1


def test_what_is_no_grammar_is_said_in_one_line(tmp_path):
    file = tmp_path / "grammar.safetensors"
    with pytest.raises(HfGrError, match=r"there is no grammar at .*; write one with"):
        TrieGrammar.load(file)
    SMALL.grammar().save(file)
    whole = file.read_bytes()
    for broken in (b"", b"abc", whole[:-4], whole[:100], whole[:8] + b"\xff" + whole[9:]):
        file.write_bytes(broken)
        with pytest.raises(HfGrError, match=r"is no grammar \(.*\); write it again") as error:
            TrieGrammar.load(file)
        assert "\n" not in str(error.value)
    for header in (None, {"format": "pt"}, {"format": "3"}):
        save_file({"weight": torch.zeros(2)}, file, header)
        with pytest.raises(HfGrError, match=r"is no grammar \(.*\); write it again"):
            TrieGrammar.load(file)


def test_bad_catalogs_are_refused():
    codes, tokens = np.array([[0, 1], [1, 0]]), [[4, 5], [6, 7]]
    for bad, items in ((np.empty((0, 2), np.int64), None), (codes, np.empty(0, np.int64))):
        with pytest.raises(HfGrError, match="the catalog has no live item; add items"):
            TrieGrammar(bad, tokens, items=items)
    with pytest.raises(HfGrError, match="SIDs have 2 codes, but tokens are given for 3 codebooks"):
        TrieGrammar(codes, [*tokens, [8]])
    with pytest.raises(HfGrError, match="2 codebooks and 1 thinking tokens"):
        TrieGrammar(codes, tokens, think_ids=[9])
    for code in (-1, 2):
        with pytest.raises(HfGrError, match=rf"item 1 has the SID \[1, {code}\], but the codebooks have \[2, 2\]"):
            TrieGrammar(np.array([[0, 1], [1, code]]), tokens)
    TrieGrammar(np.array([[0, 1], [1, 2]]), tokens, items=np.array([0]))  # what is no answer may have no SID
    for row in (-1, 2):
        with pytest.raises(HfGrError, match=rf"{row} is no row of the catalog, which has 2"):
            TrieGrammar(codes, tokens, items=np.array([0, row]))
        with pytest.raises(HfGrError, match=rf"{row} is no row of the catalog, which has 2"):
            TrieGrammar(codes, tokens).with_items(removed=[row])
    with pytest.raises(HfGrError, match=r"added SIDs have shape \[1, 1\]; they must be \[n, 2\]"):
        TrieGrammar(codes, tokens).with_items(np.array([[1]]))


def test_the_grammar_moves_whole():
    grammar = SMALL.grammar()
    assert grammar.to("cpu") is grammar and grammar.device == torch.device("cpu")
    moved = grammar.to("meta")
    assert vars(moved).keys() == vars(grammar).keys()
    for name, value in vars(moved).items():
        for tensor in value if isinstance(value, list) else [value]:
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta", name
    assert moved.device.type == "meta" and moved.initial(2).device.type == "meta"
    assert moved.successors(moved.initial(2), 0).allowed.shape == (2, 2)
    assert (moved.num_items, moved.num_sids, moved.num_codes) == (3, 2, 2)
    assert grammar.items(grammar.walk(SMALL.written([(0, 1)]))).tolist() == [[2, 0]], "and the first one stays"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dense", DENSE)
def test_the_grammar_answers_alike_on_a_gpu(dense):
    sids = [tuple(sid) for sid in np.random.default_rng(0).integers(0, 4, (50, 3)).tolist()]
    listing = Listing(sids, (4, 4, 4), [0] * 50, set(range(50)), True, dense)
    answers = []
    for device in ("cpu", "cuda"):
        grammar = listing.grammar().to(device)
        item_filter = grammar.filter([np.arange(20), None], only=[None, grammar.mask(np.arange(50) % 3 > 0)])
        states = grammar.walk(listing.written([sid[:2] for sid in sids]).to(device))
        options = grammar.successors(states, 2, item_filter)
        leaves = grammar.walk(listing.written(sids).to(device))
        changed = grammar.with_items(np.array([[0, 0, 0]]), [3])
        assert changed.device == grammar.device
        found = [grammar.items(leaves), grammar.items(leaves, item_filter, limit=1)]
        found.append(changed.items(changed.walk(listing.written(sids).to(device))))
        allowed = [sorted(allowed_tokens(options, row)) for row in range(50)]
        answers.append([allowed, [items.tolist() for items in found], item_filter.live.tolist()])
    assert answers[0] == answers[1]
