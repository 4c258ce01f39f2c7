"""Log-probabilities of given items, fed as one trie or as rows, against plain forward passes of every answer."""

import pytest
import torch
from searching import FORMS, RECURSIVE, build, every_sid, feed_of
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from hf_gr.decoding import beam_search
from hf_gr.decoding.given import item_log_probs, row_log_probs
from hf_gr.decoding.trunk import Trunk
from hf_gr.search_config import SearchConfig


ITEMS = torch.tensor([[3, 3, 0, 29, -1, 14], [5, -1, -1, -1, -1, -1], [39, 38, 37, 36, 2, 2]])


def trunk_of(case, prompts, feed=None):
    thought = [] if feed is not None else [*case.grammar.think_ids[:1]]
    return Trunk.of(case.model, [prompt + thought for prompt in prompts])


def by_hand(case, prompt, feed=None):
    """{item: log-probability of its SID as it is written codebook by codebook}."""
    ordered = every_sid(case, prompt, feed=feed)
    return {row: ordered[tuple(sid)] for row, sid in enumerate(case.catalog.codes.tolist())}


def compare(found, items, case, feed=None):
    for row, prompt in enumerate(case.prompts()):
        expected = by_hand(case, prompt, feed)
        for item, score in zip(items[row].tolist(), found[row].tolist(), strict=True):
            assert score == (pytest.approx(expected[item], abs=1e-4) if item >= 0 else -torch.inf), (row, item)


@pytest.mark.parametrize("form", ["flat", "stepwise", RECURSIVE])
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
def test_given_items_score_as_plain_rows_do(config_class, form):
    case = build(config_class, form)
    compare(item_log_probs(trunk_of(case, case.prompts()), ITEMS, case.grammar), ITEMS, case)


def test_after_a_search_from_the_same_prompts():
    """Branches that a search has fed are not seen."""
    case = build(form="stepwise")
    trunk = trunk_of(case, case.prompts())
    item_log_probs(trunk, torch.arange(40).expand(3, -1), case.grammar)
    compare(item_log_probs(trunk, ITEMS, case.grammar), ITEMS, case)


def test_with_hidden_feedback():
    case = build(form="stepwise")
    feed = feed_of(case)
    compare(item_log_probs(trunk_of(case, case.prompts(), feed), ITEMS, case.grammar, feed=feed), ITEMS, case, feed)


@pytest.mark.parametrize("config_class", [LlamaConfig, GPT2Config, MistralConfig])
@pytest.mark.parametrize("form", ["flat", "stepwise"])
def test_rows_score_the_same(config_class, form):
    """For models that take no mask of ours."""
    options = {"sliding_window": 4} if config_class is MistralConfig else {}
    case = build(config_class, form, **options)
    compare(row_log_probs(case.model, case.prompts(), ITEMS, case.grammar), ITEMS, case)


@pytest.mark.parametrize("score", ["constrained", "model"])
@pytest.mark.parametrize("form", FORMS)
def test_scores_are_those_of_the_exhaustive_search(form, score):
    """In all settings that change one; of an unordered item, whose orders add up there, at most that."""
    case, config = build(form=form), SearchConfig(top_k=40, score=score, temperature=0.7, method="exhaustive")
    every = beam_search(case.model, case.prompts(), case.grammar, config)
    found = item_log_probs(trunk_of(case, case.prompts()), every.items, case.grammar, config)
    if form == "unordered":
        assert (found <= every.scores + 1e-4).all() and (found < every.scores - 0.1).any()
        rows = row_log_probs(case.model, case.prompts(), every.items, case.grammar, config)
        assert torch.allclose(found, rows, atol=1e-4)
    else:
        assert torch.allclose(found, every.scores, atol=1e-4)


def test_shared_prefixes_are_fed_once(monkeypatch):
    case = build(form="flat")
    fed = []
    feed = Trunk.feed
    monkeypatch.setattr(Trunk, "feed", lambda self, ids, *rest: (fed.append(ids.shape[1]), feed(self, ids, *rest))[1])
    item_log_probs(trunk_of(case, case.prompts()), torch.arange(40).expand(3, -1), case.grammar)
    codes = case.catalog.codes
    assert fed == [len({tuple(sid[:depth]) for sid in codes.tolist()}) for depth in range(1, codes.shape[1])]


def test_removed_items_and_none_have_no_probability():
    case = build(form="flat")
    left = case.grammar.with_items(removed=[3])
    found = item_log_probs(trunk_of(case, case.prompts()), ITEMS, left)
    assert torch.isneginf(found[0, [0, 1, 4]]).all() and torch.isfinite(found[0, [2, 3, 5]]).all()
    assert item_log_probs(trunk_of(case, case.prompts()), ITEMS[:, :0], left).shape == (3, 0)
