"""From prompts to items: whatever the catalog, the filter and the model, min(K, live) distinct live items."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import FORMS, build, every_sid, feed_of
from tiny import tiny_catalog
from transformers import (
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3NextConfig,
)

from hf_gr.decoding import PrefixCache, beam_search, search, tree_search, tree_support
from hf_gr.decoding.tree import merge_sets
from hf_gr.errors import HfGrError


# windows, and models that mix in layers without attention
ROW_ARCHITECTURES: list[tuple[type[PreTrainedConfig], dict]] = [
    (MistralConfig, {"sliding_window": 4}),
    (Qwen2Config, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    (Gemma3TextConfig, {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    (Lfm2Config, {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    (
        Qwen3NextConfig,
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 0,
            "mlp_only_layers": [0, 1],
        },
    ),
]
CASES = {form: build(LlamaConfig, form, tiny_catalog(num_items=30, sizes=(4, 3, 3))) for form in FORMS}


@st.composite
def requests(draw, num_items: int = 30):
    """Filters and prompt lengths of a batch; some requests leave no item."""
    item = st.integers(0, num_items - 1)
    lists = st.none() | st.lists(item, max_size=num_items + 5).map(lambda rows: np.array(rows, np.int64))
    flags = st.none() | st.lists(st.booleans(), min_size=num_items, max_size=num_items).map(np.array)
    request = st.tuples(lists, lists, flags, st.integers(0, 6))
    return draw(st.lists(request, min_size=1, max_size=3))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMS),
    requests(),
    st.integers(1, 6),
    st.integers(1, 35),
    st.sampled_from(["beam", "gumbel", "exhaustive"]),
)
def test_k_live_items_whatever_is_asked(form, batch, num_beams, top_k, method):
    case = CASES[form]
    live = []
    for deny, allow, flags, _ in batch:
        items = set(range(30)) if allow is None else set(allow.tolist())
        items -= set() if deny is None else set(deny.tolist())
        live.append(items if flags is None else {item for item in items if flags[item]})
    masks = [None if flags is None else case.grammar.mask(flags) for _, _, flags, _ in batch]
    item_filter = case.grammar.filter([row[0] for row in batch], [row[1] for row in batch], masks)
    prompts = case.prompts(tuple(row[3] for row in batch))
    arguments = {"num_beams": num_beams, "top_k": top_k, "method": method, "item_filter": item_filter}
    if not all(live):
        with pytest.raises(HfGrError, match="leaves no live item"):
            beam_search(case.model, prompts, case.grammar, **arguments)
        return
    answer = beam_search(case.model, prompts, case.grammar, **arguments)
    assert answer.items.shape == answer.scores.shape == (len(batch), top_k)
    for row, expected in enumerate(live):
        count = min(top_k, len(expected))
        items = answer.items[row, :count].tolist()
        assert len(set(items)) == count and set(items) <= expected
        assert (answer.items[row, count:] == -1).all() and answer.scores[row, count:].isneginf().all()
        assert torch.isfinite(answer.scores[row, :count]).all()
        assert answer.sids[row, :count].tolist() == case.catalog.codes[items].tolist()
        assert (answer.sids[row, count:] == -1).all()


@pytest.mark.parametrize("form", ["flat", "stepwise"])
def test_with_beams_for_all_it_is_the_exhaustive_ranking(form):
    case = CASES[form]
    arguments = {"num_beams": 30, "top_k": 30}
    beams = beam_search(case.model, case.prompts(), case.grammar, **arguments)
    every = beam_search(case.model, case.prompts(), case.grammar, method="exhaustive", **arguments)
    assert torch.equal(beams.items, every.items)
    assert torch.allclose(beams.scores, every.scores, atol=1e-4)


def test_merged_paths_of_all_orders_are_the_exhaustive_ranking():
    case = build(LlamaConfig, "unordered", tiny_catalog(num_items=8, sizes=(3, 3, 3)))
    paths = tree_search(case.model, case.prompts(), case.grammar, num_beams=8 * 6, merge="none")
    found = merge_sets(paths, case.grammar)
    every = beam_search(case.model, case.prompts(), case.grammar, top_k=8, method="exhaustive")
    distinct = case.grammar.num_sids
    assert torch.allclose(found.scores[:, :distinct].sort(1).values, _sid_scores(every, distinct), atol=1e-4)
    assert found.scores[:, distinct:].isneginf().all()


def _sid_scores(ranking, distinct):
    """Scores of the distinct SIDs of each row, ascending."""
    rows = []
    for sids, scores in zip(ranking.sids.tolist(), ranking.scores.tolist(), strict=True):
        rows.append(
            sorted({tuple(sid): score for sid, score in zip(sids, scores, strict=True) if sid[0] >= 0}.values())
        )
    assert all(len(row) == distinct for row in rows)
    return torch.tensor(rows)


def test_shared_sids_give_their_items_in_bucket_order():
    case = CASES["flat"]
    answer = beam_search(case.model, case.prompts(), case.grammar, num_beams=30, top_k=30)
    popularity = case.catalog.popularity
    for items, sids in zip(answer.items.tolist(), answer.sids.tolist(), strict=True):
        for place in range(len(items) - 1):
            one, other = items[place], items[place + 1]
            if sids[place] == sids[place + 1]:
                assert (-popularity[one], one) < (-popularity[other], other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("config_class", "settings_"), ROW_ARCHITECTURES, ids=lambda value: getattr(value, "__name__", "")
)
def test_other_models_take_generate_behind_the_same_call(config_class, settings_, form):
    case = build(config_class, form, tiny_catalog(num_items=20), **settings_)
    prompts = case.prompts((5, 0, 3))
    assert not tree_support(case.model, max(map(len, prompts)) + case.grammar.answer_length)[0]
    item_filter = case.grammar.filter([np.arange(0, 20, 2), None, np.arange(18)])
    answer = beam_search(case.model, prompts, case.grammar, num_beams=6, top_k=5, item_filter=item_filter)
    for row, live in enumerate((set(range(1, 20, 2)), set(range(20)), {18, 19})):
        count = min(5, len(live))
        items = answer.items[row, :count].tolist()
        assert len(set(items)) == count and set(items) <= live
    # padding changes nothing, and neither does the path that a short prompt may take
    for row, prompt in enumerate(prompts):
        alone = beam_search(
            case.model,
            [prompt],
            case.grammar,
            num_beams=6,
            top_k=5,
            item_filter=item_filter.rows(torch.tensor([row])),
        )
        if form != "unordered":  # there the tree merges at every step, `generate` at the end
            assert torch.equal(alone.items[0], answer.items[row])
            assert torch.allclose(alone.scores[0], answer.scores[row], atol=1e-4)


@pytest.mark.parametrize(
    ("config_class", "settings_"), ROW_ARCHITECTURES, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_row_path_scores_what_the_model_says(config_class, settings_):
    case = build(config_class, **settings_)
    for prompt in case.prompts():
        beams = search(case.model, [prompt], case.grammar, num_beams=4, score="model")
        for tokens, score in zip(beams.tokens[0].tolist(), beams.scores[0].tolist(), strict=True):
            with torch.no_grad():
                log_probs = torch.log_softmax(case.model(torch.tensor([prompt + tokens])).logits[0].double(), -1)
            expected = sum(float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens))
            assert abs(score - expected) < 1e-4


def test_a_short_list_is_searched_for_again():
    """With two items to a SID and few beams of an unordered grammar, one search finds too few."""
    case = CASES["unordered"]
    answer = beam_search(case.model, case.prompts((3,)), case.grammar, num_beams=1, top_k=30)
    assert sorted(answer.items[0].tolist()) == list(range(30))


def test_hidden_feedback_reaches_the_tree_and_is_refused_elsewhere():
    case = CASES["stepwise"]
    feed, prompts = feed_of(case), case.prompts()
    arguments = {"num_beams": 30, "top_k": 30}
    fed = beam_search(case.model, prompts, case.grammar, feed=feed, **arguments)
    cached = PrefixCache(block=2)
    for _ in range(2):  # the second time from the cache
        again = beam_search(case.model, prompts, case.grammar, feed=feed, prefix_cache=cached, **arguments)
        assert torch.allclose(again.scores, fed.scores, atol=1e-4)
    assert cached.hits
    for row, prompt in enumerate(prompts):
        best = sorted(every_sid(case, prompt, feed=feed).items(), key=lambda pair: -pair[1])[0]
        assert tuple(fed.sids[row, 0].tolist()) == best[0] and abs(fed.scores[row, 0] - best[1]) < 1e-4
    with pytest.raises(HfGrError, match='use method="beam" instead of "exhaustive"'):
        beam_search(case.model, prompts, case.grammar, method="exhaustive", feed=feed)
    windowed = build(MistralConfig, "stepwise", sliding_window=4)
    with pytest.raises(HfGrError, match="needs the tree search, which is not for this model: its sliding window of 4"):
        beam_search(windowed.model, windowed.prompts(), windowed.grammar, feed=feed)
