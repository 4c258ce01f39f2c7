"""Rankings by several scorers against a listing of all items; a scorer that the package does not know."""

import math

import numpy as np
import pytest
import torch
from searching import RECURSIVE, _written, build, every_sid, feed_of
from tiny import tiny_tokenizer
from transformers import GPT2Config, LlamaConfig

from hf_gr.decoding import Recommender, beam_search
from hf_gr.errors import HfGrError
from hf_gr.histories import Histories
from hf_gr.scoring import DenseScores, Requests, mixed
from hf_gr.search_config import SEMANTIC_ID, Mixture
from hf_gr.vocabulary import add_vocabulary


class Successors:
    """A scorer of 20 lines: what followed the latest item how often. It knows nothing of the model or its tokens."""

    def __init__(self, num_items: int):
        counts = np.random.default_rng(5).exponential(size=(num_items + 1, num_items)) ** 3
        self.logits = torch.from_numpy(np.log(counts)).float()  # the last row: after nothing

    def read(self, requests: Requests) -> DenseScores:
        last = [int(history[-1]) if len(history) else -1 for history in requests.histories or []]
        return DenseScores(self.logits[last], requests)


def listed(case, prompt, dense, mixture, feed=None):
    """{item: score}, every item by itself."""
    codes = [tuple(sid) for sid in case.catalog.codes.tolist()]
    if case.vocabulary.form == "unordered":
        distinct, order = sorted(set(codes)), tuple(range(len(codes[0])))
        sids = {sid: _written(case, prompt, sid, order, distinct, None) for sid in distinct}
    else:
        sids = every_sid(case, prompt, feed=feed)
    weights, scores = dict(mixture.weights), {}
    for item, sid in enumerate(codes):
        p = math.exp(sids[sid]) / (1 if mixture.rule == "shares" else codes.count(sid))
        q = math.exp(dense[item])
        pairs = (weights.get(SEMANTIC_ID, 0), p), (weights["next"], q)
        if mixture.rule == "probabilities":
            scores[item] = math.log(sum(weight * share for weight, share in pairs))
        else:
            epsilon = mixture.smoothing if mixture.rule == "log_probs" else 0
            scores[item] = sum(w * math.log((1 - epsilon) * share + epsilon / len(codes)) for w, share in pairs)
    return scores


PLACES = {
    "flat": (LlamaConfig, "flat"),
    "stepwise": (LlamaConfig, "stepwise"),
    "unordered": (LlamaConfig, "unordered"),
    "recursive": (LlamaConfig, RECURSIVE),
    "rows": (GPT2Config, "flat"),
    "rows stepwise": (GPT2Config, "stepwise"),
}
MIXTURES = {
    "probabilities": Mixture({SEMANTIC_ID: 0.7, "next": 0.3}, "probabilities"),
    "log_probs": Mixture({SEMANTIC_ID: 0.7, "next": 0.3}, "log_probs", smoothing=0.01),
    "shares": Mixture({SEMANTIC_ID: 0.7, "next": 0.3}, "shares"),
    "alone": Mixture({"next": 1.0}, "probabilities"),
}


@pytest.mark.parametrize("rule", MIXTURES)
@pytest.mark.parametrize("place", PLACES)
def test_the_ranking_is_that_of_all_items_listed(place, rule):
    """Few beams, so that most candidates are the other scorer's; many; and every item scored."""
    config_class, form = PLACES[place]
    case, mixture = build(config_class, form), MIXTURES[rule]
    scorer, lengths = Successors(len(case.catalog)), (5, 0, 3)
    histories = [np.arange(length) for length in lengths]
    prompts = case.prompts(lengths)
    if form == RECURSIVE:  # which reads histories off its prompts
        histories = [np.array(prompt[1:]) - case.vocabulary.first_item_id for prompt in prompts]
    options = {"scorers": {"next": scorer}, "histories": histories, "mixture": mixture, "top_k": 6}
    methods = [{"num_beams": 6}, {"num_beams": 40}] + [{"method": "exhaustive"}] * (not place.startswith("rows"))
    for method in methods:
        found = beam_search(case.model, prompts, case.grammar, **options, **method)
        for row, prompt in enumerate(prompts):
            last = int(histories[row][-1]) if len(histories[row]) else -1
            dense = scorer.logits[last].log_softmax(0).tolist()
            expected = listed(case, prompt, dense, mixture)
            items = found.items[row].tolist()
            assert found.scores[row].tolist() == pytest.approx([expected[item] for item in items], abs=2e-4)
            assert found.sids[row].tolist() == case.catalog.codes[items].tolist()
            if method != {"num_beams": 6}:
                best = sorted(expected.values())[::-1][:6]
                assert found.scores[row].tolist() == pytest.approx(best, abs=2e-4)


def test_filters_and_hidden_feedback():
    case = build(form="stepwise")
    feed, scorer, prompts = feed_of(case), Successors(40), case.prompts()
    histories = [np.arange(length) for length in (5, 0, 3)]
    live = np.arange(40) % 3 == 0
    item_filter = case.grammar.filter(only=[case.grammar.mask(live)] * 3)
    found = beam_search(
        case.model,
        prompts,
        case.grammar,
        num_beams=40,
        top_k=16,
        feed=feed,
        item_filter=item_filter,
        scorers={"next": scorer},
        histories=histories,
        mixture=MIXTURES["probabilities"],
    )
    for row, prompt in enumerate(prompts):
        dense = scorer.logits[[4, -1, 2][row]].log_softmax(0).tolist()
        expected = listed(case, prompt, dense, MIXTURES["probabilities"], feed)
        items = [item for item in found.items[row].tolist() if item >= 0]
        assert sorted(items) == np.flatnonzero(live).tolist(), "a full list of all live items, each once"
        assert found.scores[row, : len(items)].tolist() == pytest.approx([expected[i] for i in items], abs=2e-4)
        assert torch.isneginf(found.scores[row, len(items) :]).all()


@pytest.mark.parametrize("form", ["flat", "stepwise"])
def test_a_recommender_takes_a_scorer_that_the_package_does_not_know(form):
    case, tokenizer = build(form=form), tiny_tokenizer()
    add_vocabulary(tokenizer, build().model, case.catalog, max_history=10)
    mixture = MIXTURES["probabilities"]
    scorers = {"next": Successors(len(case.catalog))}
    recommender = Recommender(case.model, tokenizer, case.catalog, case.vocabulary, scorers=scorers, mixture=mixture)
    rows = np.array([3, 8, 21])
    histories = Histories(np.array(["u"], object), np.array([0, 3]), rows, np.arange(3))
    _, scores = recommender.recommend(histories, top_k=5)
    (prompt,) = recommender.prompts(histories)
    expected = listed(case, prompt, scorers["next"].logits[21].log_softmax(0).tolist(), mixture)
    assert scores[0].tolist() == pytest.approx(sorted(expected.values())[::-1][:5], abs=2e-4)
    alone = recommender.recommend(histories, top_k=5, mixture=Mixture({SEMANTIC_ID: 1.0}))
    plain = Recommender(case.model, tokenizer, case.catalog, case.vocabulary).recommend(histories, top_k=5)
    assert alone[0].tolist() == plain[0].tolist() and np.allclose(alone[1], plain[1])


def test_an_item_that_a_scorer_does_not_know_has_probability_0():
    requests = Requests([[1]], None, None, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, False]]))
    scores = DenseScores(torch.tensor([[0.0, 1.0, 5.0]]), requests)
    assert torch.isneginf(scores.log_probs(torch.tensor([[2]]))).all(), "a removed item"
    assert scores.candidates(9).tolist() == [[1, 0, -1]]
    parts = [(0.5, torch.tensor([[-1.0]])), (0.5, torch.tensor([[-math.inf]]))]
    assert float(mixed(parts, "probabilities", 0, 4)) == pytest.approx(math.log(0.5 * math.exp(-1)))
    smoothed = 0.5 * math.log(0.9 * math.exp(-1) + 0.025) + 0.5 * math.log(0.025)
    assert float(mixed(parts, "log_probs", 0.1, 4)) == pytest.approx(smoothed)
    assert float(mixed(parts, "shares", 0, 4)) == -math.inf


@pytest.mark.parametrize(
    ("line", "make"),
    [
        ("the weight of next is -1", lambda: Mixture({"next": -1})),
        ("no scorer has a weight above 0", lambda: Mixture({"next": 0})),
        ("rule is 'sum'", lambda: Mixture({"next": 1}, "sum")),
        ("smoothing is 2", lambda: Mixture({"next": 1}, smoothing=2)),
        ("weights are 3", lambda: Mixture(3)),
        ("weighs 'other', but the model's scorers are: semantic_id", lambda: ask(Mixture({"other": 1}))),
        (
            "give a SearchGraphs here",
            lambda: ask(MIXTURES["alone"], graphs=True),
        ),
        ('score="model" is for models that rank by semantic IDs', lambda: ask(MIXTURES["alone"], score="model")),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(line, make):
    with pytest.raises(HfGrError, match=line):
        make()


def ask(mixture, **options):
    case = build()
    scorers = {"next": Successors(40)}
    return beam_search(case.model, case.prompts(), case.grammar, mixture=mixture, scorers=scorers, **options)
