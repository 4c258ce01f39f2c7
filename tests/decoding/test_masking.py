"""A filter is a mask: a filtered list is the whole exhaustive list, filtered, in every form and by both paths."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import RECURSIVE, Case, build, hybrid
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import LlamaConfig, MistralConfig, Qwen3Config

from hf_gr.decoding import (
    Ranking,
    Recommender,
    Reflection,
    SearchGraphs,
    beam_search,
    choose,
    exhaustive_search,
    recommend_many,
    tree_search,
    trunk,
)
from hf_gr.errors import HfGrError
from hf_gr.grammar import SidLogitsProcessor
from hf_gr.models import ItemVectors
from hf_gr.models.bsarec import BSARecConfig, BSARecModel
from hf_gr.vocabulary import add_vocabulary


SMALL = {"num_items": 16, "sizes": (3, 3, 2)}  # on 18 SIDs, some shared
PLACES = ["tree flat", "tree stepwise", "tree upfront", "tree unordered", f"tree {RECURSIVE}", "tree hybrid"]
PLACES += ["tree blended", "generate flat", "generate stepwise", "generate unordered"]
PROMPTS = (4, 0, 3)


@cache
def case_of(place: str) -> Case:
    """A model that takes one of the two paths. That of `generate` has a window, too short for the tree."""
    path, form = place.split()
    if form in ("hybrid", "blended"):
        case = hybrid()
        if form == "blended":
            torch.manual_seed(3)
            retriever = BSARecModel(BSARecConfig(len(case.catalog), hidden_size=16, initializer_range=0.5))
            case.model.config.retriever, case.model.config.retriever_share = retriever.config.settings, 0.3
            case.model.retriever = retriever.eval()  # as in blends of older releases
        return case
    catalog = tiny_catalog(**SMALL)
    if path == "generate":
        return build(MistralConfig, form, catalog, sliding_window=4)
    return build(Qwen3Config if form == RECURSIVE else LlamaConfig, form, catalog)


def ranking(place: str, top_k: int, item_filter=None, **options) -> Ranking:
    """By as many beams as there are paths, so that nothing is pruned."""
    case = case_of(place)
    paths = case.grammar.num_sids * (6 if "unordered" in place else 1)
    options = {"num_beams": paths} | ({} if "method" in options else {"merge": "end"}) | options
    prompts = case.prompts(PROMPTS)
    return beam_search(case.model, prompts, case.grammar, top_k=top_k, item_filter=item_filter, **options)


@cache
def whole(place: str) -> Ranking:
    """The list of all items: exhaustive, but for `generate`."""
    case = case_of(place)
    method = "beam" if place.startswith("generate") else "exhaustive"
    return ranking(place, len(case.catalog), method=method)


def is_whole_list_filtered(found: Ranking, place: str, left: list[np.ndarray], top_k: int) -> None:
    """Items of equal scores (a shared SID has its bucket's order) may stand in any."""
    every = whole(place)
    for row, live in enumerate(left):
        place_of = [n for n, item in enumerate(every.items[row].tolist()) if item >= 0 and live[item]]
        expected = every.items[row, place_of].tolist()[:top_k]
        assert found.items[row].tolist() == expected + [-1] * (top_k - len(expected))
        scores = every.scores[row, place_of][:top_k]
        assert torch.allclose(found.scores[row, : len(expected)], scores, atol=1e-4)
        assert found.sids[row, : len(expected)].tolist() == every.sids[row, place_of][:top_k].tolist()


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_a_filtered_list_is_the_whole_list_filtered(place, data):
    case = case_of(place)
    count = len(case.catalog)
    rows = st.lists(st.integers(0, count - 1), max_size=count).map(lambda x: np.array(x, np.int64))
    flags = st.lists(st.booleans(), min_size=count, max_size=count).map(np.array)
    deny, allow, masks, left = [], [], [], []
    for _ in PROMPTS:
        denied, allowed, mask = (data.draw(st.none() | what) for what in (rows, rows, flags))
        live = np.ones(count, bool) if mask is None else mask.copy()
        live &= True if allowed is None else np.isin(np.arange(count), allowed)
        live[[] if denied is None else denied] = False
        if not live.any():  # another test's
            denied, allowed, mask, live = None, np.array([3]), None, np.arange(count) == 3
        deny, allow, left = [*deny, denied], [*allow, allowed], [*left, live]
        masks.append(None if mask is None else case.grammar.mask(mask))
    top_k = data.draw(st.integers(1, count))
    is_whole_list_filtered(ranking(place, top_k, case.grammar.filter(deny, allow, masks)), place, left, top_k)


@pytest.mark.parametrize("place", PLACES)
def test_pages_join(place):
    case, every = case_of(place), whole(place)
    first = ranking(place, 5)
    second = ranking(place, 5, case.grammar.filter(list(first.items.numpy())))
    assert torch.cat([first.items, second.items], 1).tolist() == every.items[:, :10].tolist()
    assert torch.allclose(torch.cat([first.scores, second.scores], 1), every.scores[:, :10], atol=1e-4)


@pytest.mark.parametrize("place", [place for place in PLACES if place.startswith("tree")])
def test_the_exhaustive_list_is_masked_too(place):
    case = case_of(place)
    live = np.arange(len(case.catalog)) % 3 == 0
    found = ranking(place, 12, case.grammar.filter(only=[case.grammar.mask(live)] * 3), method="exhaustive")
    is_whole_list_filtered(found, place, [live] * 3, 12)


@pytest.mark.parametrize("place", ["tree flat", "tree unordered", "generate flat"])
def test_scores_of_the_whole_vocabulary_are_masked_too(place):
    case = case_of(place)
    free = ranking(place, 16, score="model")
    live = np.arange(16) % 2 == 0
    found = ranking(place, 8, case.grammar.filter(only=[case.grammar.mask(live)] * 3), score="model")
    for row in range(3):
        kept = live[free.items[row]]
        assert found.items[row].tolist() == free.items[row][kept].tolist()
        assert torch.allclose(found.scores[row], free.scores[row][kept], atol=1e-4)


@pytest.mark.parametrize("method", ["sample", "gumbel"])
@pytest.mark.parametrize("place", ["tree flat", "tree unordered"])
def test_draws_under_a_filter_have_the_scores_of_the_whole_policy(place, method):
    case = case_of(place)
    live = np.arange(16) % 4 == 1
    item_filter = case.grammar.filter(allow=[np.flatnonzero(live)] * 3)
    search = {"num_beams": 400, "item_filter": item_filter, "method": method}
    torch.manual_seed(0)
    beams = tree_search(case.model, case.prompts(PROMPTS), case.grammar, **search)
    free = tree_search(case.model, case.prompts(PROMPTS), case.grammar, num_beams=400, merge="none")
    for row in range(3):
        scores = {tuple(own): score for own, score in zip(free.tokens[row].tolist(), free.scores[row], strict=True)}
        drawn = [n for n in range(400) if beams.scores[row, n] > -torch.inf]
        assert drawn and all(
            float(beams.scores[row, n]) == pytest.approx(float(scores[tuple(beams.tokens[row, n].tolist())]), abs=1e-4)
            for n in drawn
        )
    found = case.grammar.items(beams.states.flatten(0, 1), item_filter.rows(torch.arange(3)))
    assert set(found[found >= 0].tolist()) <= set(np.flatnonzero(live).tolist())
    assert torch.allclose(beams.log_probs.sum(2)[beams.scores.isfinite()], beams.scores[beams.scores.isfinite()])


def test_a_code_is_drawn_in_proportion_among_those_left():
    case = case_of("tree flat")
    allowed = np.flatnonzero(case.catalog.codes[:, 0] != 0)
    search = {"item_filter": case.grammar.filter(allow=[allowed] * 40), "num_beams": 100, "method": "sample"}
    torch.manual_seed(0)
    beams = tree_search(case.model, case.prompts((4,)) * 40, case.grammar, **search)
    first = case.grammar.codes(beams.tokens)[..., 0].flatten().bincount(minlength=3) / 4000
    free = tree_search(case.model, case.prompts((4,)), case.grammar, num_beams=18)
    shares = torch.zeros(3)
    for tokens, log_prob in zip(case.grammar.codes(free.tokens)[0], free.log_probs[0, :, 0], strict=True):
        if int(tokens[0]) >= 0:
            shares[int(tokens[0])] = log_prob.exp()
    assert first[0] == 0 and torch.allclose(first[1:], shares[1:] / shares[1:].sum(), atol=0.03)


def test_draws_reach_what_has_almost_no_probability():
    """Masses below float32 under a filter: each draw is still a live one."""
    log_probs = torch.full((1, 1, 6), -torch.inf)
    log_probs[0, 0, 2:4] = torch.tensor([-200.0, -200.0])
    torch.manual_seed(0)
    chosen = choose.draw(choose.renormalized(log_probs), 200, None)
    assert set(chosen.flatten().tolist()) == {2, 3}
    assert choose.renormalized(torch.full((1, 2), -torch.inf)).isneginf().all()


def test_masks_and_filters_know_their_grammar():
    """Another state of the catalog with as many live items, which their length would not tell."""
    case = case_of("tree flat")
    states = [case.vocabulary.grammar(case.catalog.removed([gone])) for gone in ("i003", "i004")]
    mask, rows = states[0].mask(np.ones(16, bool)), states[0].filter([np.array([1])] * 3)
    assert states[0].filter(only=[mask]).live.tolist() == states[0].to("cpu").filter(only=[mask]).live.tolist() == [15]
    with pytest.raises(HfGrError, match="a mask belongs to the grammar that made it; make it again"):
        states[1].filter(only=[mask])
    for search in (beam_search, tree_search, exhaustive_search):
        options = {} if search is exhaustive_search else {"num_beams": 3}
        with pytest.raises(HfGrError, match="a filter belongs to the grammar that made it"):
            search(case.model, case.prompts(PROMPTS), states[1], item_filter=rows, **options)
        with pytest.raises(HfGrError, match=r"the filter is of 3 request\(s\), but there are 2 prompt"):
            search(case.model, case.prompts((1, 1)), states[0], item_filter=rows, **options)
    with pytest.raises(HfGrError, match="a filter belongs to the grammar that made it"):
        SidLogitsProcessor(states[1], prompt_length=1, item_filter=rows)
    foreign = case_of("tree unordered").grammar
    with pytest.raises(HfGrError, match="a mask belongs to the grammar"):
        foreign.filter(only=[mask])
    assert states[0].to("meta") is states[0].to("meta") and states[0].to("meta").identity is states[0].identity
    assert states[0].to("meta").to("cpu") is states[0]


def recommender_of(case: Case) -> Recommender:
    tokenizer = tiny_tokenizer()
    add_vocabulary(tokenizer, tiny_lm(), case.catalog, max_history=10)  # the tokenizer's part of what `build` did
    return Recommender(case.model, tokenizer, case.catalog, case.vocabulary)


def broken(place: str) -> Case:
    """A model whose weights became NaN."""
    case = fresh(place)
    spoil(case)
    return case


def fresh(place: str) -> Case:
    """A case that no other test shares."""
    case_of.cache_clear()
    whole.cache_clear()
    case = case_of(place)
    case_of.cache_clear()
    return case


def spoil(case: Case) -> None:
    with torch.no_grad():
        list(case.model.base_model.parameters())[-1].fill_(torch.nan)
        case.model.get_output_embeddings().weight.fill_(torch.nan)


@pytest.mark.parametrize("place", PLACES)
def test_scores_that_are_nan_are_one_line_and_no_answer(place):
    case = broken(place)
    methods = ["beam"] if "hybrid" in place or "blended" in place else ["beam", "sample"]
    methods += ["exhaustive"] if place.startswith("tree") else []
    for method in methods:
        for item_filter in (None, case.grammar.filter([np.array([1])] * 3)):
            with pytest.raises(HfGrError, match=r"scores are not finite .*lower learning_rate") as raised:
                beam_search(
                    case.model,
                    case.prompts(PROMPTS),
                    case.grammar,
                    num_beams=4,
                    method=method,
                    item_filter=item_filter,
                )
            assert "\n" not in str(raised.value)
    with pytest.raises(HfGrError, match="scores are not finite"):
        recommender_of(case)


def test_a_session_of_a_model_that_became_nan_has_no_answer():
    case = fresh("tree recursive")
    session = recommender_of(case).session(["i001"])
    spoil(case)
    with pytest.raises(HfGrError, match="scores are not finite"):
        recommend_many([session], 3)


def test_a_search_that_finds_nothing_more_raises(monkeypatch):
    """Logits of −inf (float16 that overflowed) leave items that no beam reaches."""
    case = case_of("tree flat")
    plain = trunk.code_logits

    def overflowed(model, hidden, tokens):
        logits = plain(model, hidden, tokens)
        if len(hidden) == 1:  # the first code
            logits[:, 0] = -torch.inf
        return logits

    monkeypatch.setattr(trunk, "code_logits", overflowed)
    with pytest.raises(HfGrError, match=r"found .* items and then none, but 16 are there: the model gives the others"):
        beam_search(case.model, case.prompts((2,)), case.grammar, num_beams=16, top_k=16)


@pytest.mark.parametrize("place", ["tree hybrid", "tree blended"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2.0},
        {"score": "model"},
        {"method": "sample"},
        {"method": "gumbel"},
        {"reflection": Reflection(torch.ones(8, 1), 0.3)},
        {"graphs": SearchGraphs()},
        {"feed": torch.nn.Linear(2, 2)},
    ],
)
def test_what_means_nothing_to_several_outputs_is_refused(place, options):
    with pytest.raises(HfGrError, match=f"{next(iter(options))}.* is for models that rank by semantic IDs alone"):
        ranking(place, 5, **options)


def test_item_vectors_are_made_once_for_a_state_of_the_weights(monkeypatch):
    case_of.cache_clear()
    case, vectors = case_of("tree hybrid"), ItemVectors()
    search = {"num_beams": 40, "top_k": 10, "item_vectors": vectors}
    first = beam_search(case.model, case.prompts(PROMPTS), case.grammar, **search)
    kept = vectors.of(case.model)
    beam_search(case.model, case.prompts(PROMPTS), case.grammar, **search)
    assert vectors.of(case.model) is kept
    with torch.no_grad():
        case.model.model.items.embedding.weight.mul_(3)
    changed = beam_search(case.model, case.prompts(PROMPTS), case.grammar, **search)
    fresh = beam_search(case.model, case.prompts(PROMPTS), case.grammar, num_beams=40, top_k=10)
    assert vectors.of(case.model) is not kept
    assert torch.equal(changed.scores, fresh.scores) and not torch.equal(changed.scores, first.scores)
    now = vectors.of(case.model)
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=0.1)
    case.model.model.items.embedding.weight.grad = torch.ones_like(case.model.model.items.embedding.weight)
    optimizer.step()
    assert vectors.of(case.model) is not now
    now = vectors.of(case.model)
    case.model.load_state_dict(case.model.state_dict())
    assert vectors.of(case.model) is not now
    assert vectors.of(case.model.to(torch.float64)).dtype == torch.float64
    case_of.cache_clear()


def test_no_prompts_have_no_answers():
    case = case_of("tree flat")
    found = beam_search(case.model, [], case.grammar, top_k=4)
    assert found.items.shape == found.scores.shape == (0, 4) and found.sids.shape == (0, 4, 3)
    with pytest.raises(HfGrError, match="there are no prompts to search from"):
        tree_search(case.model, [], case.grammar, num_beams=3)
    with pytest.raises(HfGrError, match="prompt 1 has no token"):
        beam_search(case.model, [[1], []], case.grammar)
