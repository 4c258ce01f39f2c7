"""The tree search against plain forward passes, against `generate`, and against the exhaustive search."""

import numpy as np
import pytest
import torch
from searching import FORMS, RECURSIVE, TREE_ARCHITECTURES, build, every_sid, feed_of
from tiny import tiny_catalog
from transformers import LlamaConfig, Qwen3Config

from hf_gr.decoding import SearchGraphs, exhaustive_search, generate_search, tree_search
from hf_gr.errors import HfGrError


def found(case, beams, row):
    """{SID: score} of a prompt's answers; none may come twice."""
    sids = case.grammar.codes(beams.tokens[row]).tolist()
    pairs = [(tuple(sid), float(score)) for sid, score in zip(sids, beams.scores[row], strict=True) if score > -1e30]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize("form", ["flat", "stepwise", RECURSIVE])
@pytest.mark.parametrize("config_class", TREE_ARCHITECTURES)
def test_with_beams_for_all_it_is_the_exhaustive_ranking(config_class, form):
    case = build(config_class, form)
    prompts = case.prompts()
    beams = tree_search(case.model, prompts, case.grammar, num_beams=case.grammar.num_sids)
    every = exhaustive_search(case.model, prompts, case.grammar)
    for row, prompt in enumerate(prompts):
        expected = every_sid(case, prompt)
        for answers in (found(case, beams, row), found(case, every, row)):
            assert answers.keys() == expected.keys()
            assert all(abs(answers[sid] - expected[sid]) < 1e-4 for sid in expected)
    for answers in (beams, every):
        assert (answers.scores.diff(dim=1) <= 0).all()
    assert torch.allclose(beams.log_probs.sum(2), beams.scores, atol=1e-5)


@pytest.mark.parametrize("config_class", TREE_ARCHITECTURES)
def test_the_exhaustive_search_adds_up_all_orders_of_a_set(config_class):
    case = build(config_class, "unordered", tiny_catalog(num_items=12, sizes=(3, 3, 3)))
    prompts = case.prompts()
    every = exhaustive_search(case.model, prompts, case.grammar)
    for row, prompt in enumerate(prompts):
        expected = every_sid(case, prompt)
        answers = found(case, every, row)
        assert answers.keys() == expected.keys()
        assert all(abs(answers[sid] - expected[sid]) < 1e-4 for sid in expected)
        assert abs(sum(np.exp(score) for score in answers.values()) - 1) < 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("config_class", TREE_ARCHITECTURES)
def test_its_beams_are_those_of_generate(config_class, form):
    case = build(config_class, form)
    prompts = case.prompts()
    for width, score in ((1, "model"), (1, "constrained"), (6, "model"), (6, "constrained")):
        tree = tree_search(case.model, prompts, case.grammar, num_beams=width, score=score, merge="none")
        rows = generate_search(case.model, prompts, case.grammar, num_beams=width, score=score)
        assert torch.equal(tree.tokens, rows.tokens)
        assert torch.allclose(tree.scores, rows.scores, atol=1e-4)
        assert torch.equal(tree.states, rows.states)


@pytest.mark.parametrize("form", FORMS)
def test_its_beams_are_those_of_generate_under_filters(form):
    case = build(Qwen3Config, form)
    prompts = case.prompts()
    only = [None, None, case.grammar.mask(np.arange(40) % 3 == 0)]
    item_filter = case.grammar.filter([np.arange(0, 40, 2), None, np.arange(9)], [None, np.arange(7), None], only)
    kwargs = {"num_beams": 4, "item_filter": item_filter}
    tree = tree_search(case.model, prompts, case.grammar, score="model", merge="none", **kwargs)
    rows = generate_search(case.model, prompts, case.grammar, score="model", **kwargs)
    assert torch.equal(tree.tokens, rows.tokens)
    assert torch.allclose(tree.scores, rows.scores, atol=1e-4)


@pytest.mark.parametrize("form", [*FORMS, RECURSIVE])
def test_prompts_of_a_batch_do_not_see_each_other(form):
    case = build(LlamaConfig, form)
    prompts = case.prompts((5, 0, 3, 8))
    together = tree_search(case.model, prompts, case.grammar, num_beams=5)
    for row, prompt in enumerate(prompts):
        alone = tree_search(case.model, [prompt], case.grammar, num_beams=5)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert torch.allclose(alone.scores[0], together.scores[row], atol=1e-5)


def test_a_filter_without_live_items_is_refused():
    case = build()
    item_filter = case.grammar.filter([None, np.arange(40)])
    for method in (tree_search, generate_search):
        with pytest.raises(HfGrError, match="request 1 leaves no live item"):
            method(case.model, case.prompts((1, 1)), case.grammar, num_beams=2, item_filter=item_filter)
    with pytest.raises(HfGrError, match="request 1 leaves no live item"):
        exhaustive_search(case.model, case.prompts((1, 1)), case.grammar, item_filter=item_filter)


@pytest.mark.parametrize("form", [*FORMS, RECURSIVE])
def test_more_beams_than_items(form):
    case = build(LlamaConfig, form, tiny_catalog(num_items=3))
    beams = tree_search(case.model, case.prompts(), case.grammar, num_beams=30)
    assert beams.tokens.shape == (3, 30, case.grammar.answer_length)
    assert ((beams.scores > -1e30).sum(1) == case.grammar.num_sids).all()
    assert (beams.tokens[beams.scores.isneginf()] == -1).all()
    assert not case.grammar.alive(beams.states[beams.scores.isneginf()]).any()


@pytest.mark.parametrize("form", ["flat", "stepwise"])
@pytest.mark.parametrize("search", [tree_search, generate_search])
def test_samples_follow_the_policy(search, form):
    case = build(LlamaConfig, form, tiny_catalog(num_items=6, sizes=(2, 2)))
    prompt = case.prompts((3,))[0]
    expected = every_sid(case, prompt)
    torch.manual_seed(0)
    beams = search(case.model, [prompt], case.grammar, num_beams=3000, method="sample")
    sids = case.grammar.codes(beams.tokens[0])
    for sid, score in expected.items():
        drawn = (sids == torch.tensor(sid)).all(1)
        assert abs(float(drawn.float().mean()) - np.exp(score)) < 0.035
        assert torch.allclose(beams.scores[0][drawn], torch.tensor(score), atol=1e-4)


def test_samples_of_sets_are_scored_by_their_path():
    case = build(LlamaConfig, "unordered", tiny_catalog(num_items=6, sizes=(2, 2)))
    prompt = case.prompts((3,))[0]
    expected = every_sid(case, prompt)
    torch.manual_seed(0)
    beams = tree_search(case.model, [prompt], case.grammar, num_beams=3000, method="sample")
    sids = case.grammar.codes(beams.tokens[0])
    for sid, score in expected.items():
        drawn = (sids == torch.tensor(sid)).all(1)
        assert abs(float(drawn.float().mean()) - np.exp(score)) < 0.035
        pairs = zip(beams.tokens[0][drawn].tolist(), beams.scores[0][drawn].tolist(), strict=True)
        paths = {tuple(path): path_score for path, path_score in pairs}
        assert abs(np.logaddexp.reduce(list(paths.values())) - score) < 1e-4


@pytest.mark.parametrize("form", ["flat", "stepwise", RECURSIVE])
def test_stochastic_beams_are_distinct_draws_of_the_policy(form):
    case = build(LlamaConfig, form, tiny_catalog(num_items=7, sizes=(3, 3)))
    prompt = case.prompts((3,))[0]
    expected = every_sid(case, prompt)
    probability = {sid: np.exp(score) for sid, score in expected.items()}
    torch.manual_seed(0)
    beams = tree_search(case.model, [prompt] * 3000, case.grammar, num_beams=2, method="gumbel")
    sids = [[tuple(sid) for sid in row] for row in case.grammar.codes(beams.tokens).tolist()]
    assert all(first != second for first, second in sids)
    assert (beams.keys.diff(dim=1) <= 0).all()
    for sid in expected:  # the first is a draw from the policy, the second one from what is left
        drawn = np.mean([first == sid for first, _ in sids])
        assert abs(drawn - probability[sid]) < 0.035
        second = sum(p * probability[sid] / (1 - p) for other, p in probability.items() if other != sid)
        assert abs(np.mean([other == sid for _, other in sids]) - second) < 0.035
    for row in range(50):
        assert all(abs(float(s) - expected[sid]) < 1e-4 for s, sid in zip(beams.scores[row], sids[row], strict=True))


@pytest.mark.parametrize("score", ["constrained", "model"])
@pytest.mark.parametrize("width", [1, 5])
def test_both_paths_know_temperature(score, width):
    case = build(form="stepwise")
    settings = {"num_beams": width, "score": score}
    tree = tree_search(case.model, case.prompts(), case.grammar, temperature=0.4, **settings)
    rows = generate_search(case.model, case.prompts(), case.grammar, temperature=0.4, **settings)
    assert torch.equal(tree.tokens, rows.tokens)
    assert torch.allclose(tree.scores, rows.scores, atol=1e-4)
    without = generate_search(case.model, case.prompts(), case.grammar, **settings)
    assert not torch.allclose(without.scores, rows.scores, atol=1e-2)


def test_temperature_divides_the_logits():
    case = build(catalog=tiny_catalog(num_items=6, sizes=(2, 2)))
    prompts = case.prompts((3,))
    cold = tree_search(case.model, prompts, case.grammar, num_beams=6, temperature=0.5)
    hot = tree_search(case.model, prompts, case.grammar, num_beams=6, temperature=50.0)
    uniform = tree_search(case.model, prompts, case.grammar, num_beams=6, temperature=1e6)
    assert cold.scores[0, 0] > hot.scores[0, 0]
    assert torch.allclose(hot.scores, uniform.scores, atol=0.2)


def test_draws_have_no_score_over_the_whole_vocabulary():
    case = build()
    with pytest.raises(HfGrError, match="draws from the constrained policy"):
        tree_search(case.model, case.prompts(), case.grammar, num_beams=2, method="gumbel", score="model")
    with pytest.raises(HfGrError, match="needs the tree search"):
        generate_search(case.model, case.prompts(), case.grammar, num_beams=2, method="gumbel")


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_answers_are_live_items(form):
    case = build(Qwen3Config, form)
    case.model.bfloat16()
    beams = tree_search(case.model, case.prompts(), case.grammar, num_beams=8)
    assert (case.grammar.items(beams.states.flatten(0, 1))[:, 0] >= 0).all()


# ---------------------------------------------------------------- hidden feedback


@pytest.mark.parametrize("config_class", TREE_ARCHITECTURES)
def test_with_hidden_feedback_it_is_the_recursion_over_all_items(config_class):
    case = build(config_class, "stepwise")
    feed, prompts = feed_of(case), case.prompts()
    beams = tree_search(case.model, prompts, case.grammar, num_beams=case.grammar.num_sids, feed=feed)
    token_fed = tree_search(case.model, prompts, case.grammar, num_beams=case.grammar.num_sids)
    for row, prompt in enumerate(prompts):
        expected = every_sid(case, prompt, feed=feed)
        answers, other = found(case, beams, row), found(case, token_fed, row)
        assert answers.keys() == expected.keys()
        assert all(abs(answers[sid] - expected[sid]) < 1e-4 for sid in expected)
        assert max(abs(other[sid] - expected[sid]) for sid in expected) > 1e-2
    assert (beams.scores.diff(dim=1) <= 0).all()


def test_a_feed_of_zeros_changes_nothing():
    case = build(Qwen3Config, "stepwise")
    feed, prompts = feed_of(case), case.prompts()
    torch.nn.init.zeros_(feed.weight)
    item_filter = case.grammar.filter([np.arange(0, 40, 2), None, np.arange(9)])
    for width in (1, 6):
        settings = {"num_beams": width, "item_filter": item_filter}
        plain = tree_search(case.model, prompts, case.grammar, **settings)
        fed = tree_search(case.model, prompts, case.grammar, feed=feed, **settings)
        assert torch.equal(fed.tokens, plain.tokens) and torch.equal(fed.states, plain.states)
        assert torch.allclose(fed.scores, plain.scores, atol=1e-4)


@pytest.mark.parametrize("method", ["sample", "gumbel"])
def test_draws_under_hidden_feedback_have_the_scores_of_the_recursion(method):
    case = build(LlamaConfig, "stepwise")
    feed, prompts = feed_of(case), case.prompts()
    beams = tree_search(case.model, prompts, case.grammar, num_beams=5, method=method, feed=feed)
    for row, prompt in enumerate(prompts):
        expected = every_sid(case, prompt, feed=feed)
        for tokens, score in zip(beams.tokens[row], beams.scores[row], strict=True):
            assert abs(float(score) - expected[tuple(case.grammar.codes(tokens).tolist())]) < 1e-4


def test_where_hidden_feedback_is_not_to_be_had():
    stepwise, flat = build(form="stepwise"), build()
    feed, prompts = feed_of(flat), flat.prompts()
    with pytest.raises(HfGrError, match="answers with a thinking token before each code; leave feed out"):
        tree_search(flat.model, prompts, flat.grammar, num_beams=2, feed=feed)
    with pytest.raises(HfGrError, match="not captured as CUDA graphs; leave graphs out"):
        tree_search(stepwise.model, prompts, stepwise.grammar, num_beams=2, feed=feed, graphs=SearchGraphs())
