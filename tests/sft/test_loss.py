"""The loss of answers against a listing of the items, one plain row per answer."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from tiny_runs import distinct_catalog, tiny_data
from transformers import LlamaConfig, Qwen3Config

from hf_gr.branches import IGNORED
from hf_gr.dataset import InteractionDataset
from hf_gr.models import ThinkingConfig, ThinkingHeads, last_hidden
from hf_gr.packing import pack
from hf_gr.sft.loss import answer_loss
from hf_gr.sft.tasks import build, next_item
from hf_gr.vocabulary import add_vocabulary


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return InteractionDataset.load(tiny_data(tmp_path_factory.mktemp("loss")).dataset).split().train


@torch.no_grad()
def listed_loss(model, rows, catalog, vocabulary, full=False):
    """Weighted cross-entropy, predicted tokens and hits: each answer alone, allowed codes from the list of items."""
    total, count, hits = 0.0, 0, 0
    codes = {token: (level, code) for level, ids in enumerate(vocabulary.code_ids) for code, token in enumerate(ids)}
    items = [tuple(sid) for sid in catalog.codes[catalog.live].tolist()]
    for row in rows:
        for attach, answer, labels, weight in zip(
            row["attach"], row["answers"], row["labels"], row["weights"], strict=True
        ):
            logits = model(torch.tensor([row["input_ids"][:attach] + answer])).logits[0].double()
            sid = ()
            for place, label in enumerate(labels):
                if label == IGNORED:
                    continue
                scores, target, count = logits[attach + place - 1], label, count + 1
                if label in codes:
                    level, code = codes[label]
                    if not full:
                        following = sorted({item[level] for item in items if item[:level] == sid})
                        scores = scores[[vocabulary.code_ids[level][option] for option in following]]
                        target = following.index(code)
                    sid += (code,)
                    hits += int(scores.argmax()) == target
                total -= weight * float(torch.log_softmax(scores, 0)[target])
    return total, count, hits


def found_loss(model, rows, catalog, vocabulary, **options):
    packed = pack(rows, think_ids=vocabulary.think_ids)
    hidden = last_hidden(model, **packed.inputs("sdpa", model.dtype))
    return answer_loss(model, hidden, packed, vocabulary.grammar(catalog), **options)


def close(output, expected):
    total, count, hits = expected
    assert float(output.loss) == pytest.approx(total, rel=1e-5)
    assert (int(output.count), int(output.hits)) == (count, hits) and count > 0


@pytest.mark.parametrize("context", ["none", "rating"])
@pytest.mark.parametrize("catalog", [tiny_catalog(), tiny_catalog(sizes=(2, 7)), distinct_catalog()])
@pytest.mark.parametrize("tied", [True, False])
def test_flat_loss_equals_the_listing(train, catalog, context, tied):
    model = tiny_lm(Qwen3Config if tied else LlamaConfig, tie_word_embeddings=tied)
    vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=4, context=context, histories=train)
    rows = next_item(train, catalog, vocabulary).to_list()[:8]
    with torch.no_grad():
        output = found_loss(model, rows, catalog, vocabulary)
    close(output, listed_loss(model, rows, catalog, vocabulary))


@pytest.mark.parametrize("kind", ["constrained", "full"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("form", ["flat", "stepwise", "upfront"])
def test_every_form_and_kind_equals_the_listing(train, form, steps, kind):
    model, catalog = tiny_lm(Qwen3Config), tiny_catalog()
    vocabulary = replace(add_vocabulary(tiny_tokenizer(), model, catalog, max_history=5), form=form)
    rows = next_item(train, catalog, vocabulary, steps=steps, decay=0.7).to_list()[:8]
    with torch.no_grad():
        output = found_loss(model, rows, catalog, vocabulary, kind=kind, credit="any")  # which is for sets alone
    close(output, listed_loss(model, rows, catalog, vocabulary, full=kind == "full"))


@torch.no_grad()
def listed_set_loss(model, rows, catalog, vocabulary, credit):
    """As [`listed_loss`] for sets: what may follow are the codes of unused codebooks that live items still satisfy."""
    total, hits = 0.0, 0
    codes = {token: (level, code) for level, ids in enumerate(vocabulary.code_ids) for code, token in enumerate(ids)}
    items = [set(enumerate(sid)) for sid in catalog.codes[catalog.live].tolist()]
    for row in rows:
        for attach, answer, weight in zip(row["attach"], row["answers"], row["weights"], strict=True):
            logits = model(torch.tensor([row["input_ids"][:attach] + answer])).logits[0].double()
            for place in range(len(answer)):
                held = {codes[token] for token in answer[:place]}
                open_ = {pair for item in items if held <= item for pair in item - held}
                allowed = sorted(vocabulary.code_ids[level][code] for level, code in open_)
                log_p = dict(zip(allowed, torch.log_softmax(logits[attach + place - 1][allowed], 0), strict=True))
                right = answer[place : place + 1] if credit == "next" else answer[place:]
                total -= weight * float(torch.stack([log_p[token] for token in right]).logsumexp(0))
                hits += max(log_p, key=lambda token: log_p[token]) in right
    return total, sum(len(answer) for row in rows for answer in row["answers"]), hits


@pytest.mark.parametrize("trunk_weight", [0.0, 0.4])
@pytest.mark.parametrize("credit", ["next", "any"])
def test_the_loss_of_sets_equals_the_listing(train, credit, trunk_weight):
    model, catalog = tiny_lm(Qwen3Config), tiny_catalog()
    vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=5, form="unordered")
    rows = next_item(train, catalog, vocabulary, steps=2, decay=0.7, trunk_weight=trunk_weight).to_list()[:8]
    packed = pack(rows)
    assert packed.branched.tolist() == [weight != trunk_weight for row in rows for weight in row["weights"]]
    with torch.no_grad():
        output = found_loss(model, rows, catalog, vocabulary, credit=credit)
    close(output, listed_set_loss(model, rows, catalog, vocabulary, credit))


def test_credit_for_any_code_bounds_the_probability_of_the_set(train):
    """Over orders drawn in proportion to p, exp(-loss) averages to the probability of the set over all orders."""
    model, catalog = tiny_lm(Qwen3Config), distinct_catalog()
    vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=5, form="unordered")
    row = next_item(train, catalog, vocabulary).to_list()[0]
    losses = []
    for credit in ("next", "any"):
        losses.append([])
        for order in permutations(range(3)):
            answer = [row["answers"][0][place] for place in order]
            one = {"input_ids": row["input_ids"], "attach": row["attach"][:1], "weights": [1.0]}
            with torch.no_grad():
                alone = found_loss(
                    model, [one | {"answers": [answer], "labels": [answer]}], catalog, vocabulary, credit=credit
                )
            losses[-1].append(float(alone.loss))
    path, bound = torch.tensor(losses, dtype=torch.float64)
    drawn = (bound - path).exp()  # q of an order: p of every step among what is right there
    assert float(drawn.sum()) == pytest.approx(1, rel=1e-5)
    assert float((drawn * (-bound).exp()).sum()) == pytest.approx(float((-path).exp().sum()), rel=1e-5)
    assert float((drawn * bound).sum()) >= -float((-path).exp().sum().log())


@pytest.mark.parametrize("form", ["stepwise", "upfront"])
def test_the_trunk_predicts_beside_its_branches(train, form):
    model, catalog = tiny_lm(Qwen3Config), distinct_catalog()
    vocabulary = replace(add_vocabulary(tiny_tokenizer(), model, catalog, max_history=5), form=form)
    rows = next_item(train, catalog, vocabulary, trunk_weight=0.6).to_list()[:8]
    plain = next_item(train, catalog, vocabulary).to_list()[:8]
    packed = [pack(given, think_ids=vocabulary.think_ids) for given in (rows, plain)]
    assert packed[0].input_ids.numel() <= 1.1 * packed[1].input_ids.numel()  # hardly a column more
    heads = ThinkingHeads.start(ThinkingConfig(clusters=3), 32, catalog, seed=0)
    with torch.no_grad():
        output = found_loss(model, rows, catalog, vocabulary, heads=heads)
        close(output, listed_loss(model, rows, catalog, vocabulary))
        expected = found_loss(model, plain, catalog, vocabulary, heads=heads)  # the trunk has no thoughts
        assert float(output.side) == pytest.approx(float(expected.side), rel=1e-4)


def test_titles_and_semantic_ids_in_one_batch(train):
    """Titles are over the whole vocabulary, whatever the kind of loss."""
    model, catalog, tokenizer = tiny_lm(), tiny_catalog(), tiny_tokenizer()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=3)
    rows = []
    for name in ("next_item", "sid_to_title", "title_to_sid", "sid_history_to_title"):
        rows += build(name, train, catalog, vocabulary, tokenizer).to_list()[:3]
    with torch.no_grad():
        output = found_loss(model, rows, catalog, vocabulary)
    close(output, listed_loss(model, rows, catalog, vocabulary))
    assert int(output.codes) < int(output.count)


def test_titles_alone_have_a_loss_of_codes_of_zero(train):
    model, catalog, tokenizer = tiny_lm(), distinct_catalog(), tiny_tokenizer()
    vocabulary = replace(add_vocabulary(tokenizer, model, catalog, max_history=3), form="stepwise")
    rows = build("sid_to_title", train, catalog, vocabulary, tokenizer).to_list()[:3]
    heads = ThinkingHeads.start(ThinkingConfig(clusters=3), 32, catalog, seed=0)
    output = found_loss(model, rows, catalog, vocabulary, heads=heads)
    close(output, listed_loss(model, rows, catalog, vocabulary))
    assert int(output.codes) == int(output.hits) == 0
    (output.loss + output.side).backward()  # DDP waits for a gradient of every head
    assert float(output.side) == 0
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_the_thinking_loss_is_the_sum_of_its_terms_times_the_targets(train):
    model, catalog = tiny_lm(), distinct_catalog()
    vocabulary = replace(add_vocabulary(tiny_tokenizer(), model, catalog, max_history=4), form="stepwise")
    rows = next_item(train, catalog, vocabulary, steps=2, decay=0.5).to_list()[:6]
    config = ThinkingConfig(clusters=3, align=0.7, interest=0.2, agreement=0.4)
    heads = ThinkingHeads.start(config, 32, catalog, seed=0)
    with torch.no_grad():
        output = found_loss(model, rows, catalog, vocabulary, heads=heads)
        plain = found_loss(model, rows, catalog, vocabulary)
        packed = pack(rows, think_ids=vocabulary.think_ids)
        hidden = last_hidden(model, **packed.inputs("sdpa", model.dtype)).flatten(0, 1)
        sids = np.array([label for row in rows for label in row["labels"]])[:, 1::2]
        codes = torch.tensor([[vocabulary.code_ids[level].index(t) for level, t in enumerate(sid)] for sid in sids])
        terms = heads(hidden, packed, codes, torch.ones(len(codes), dtype=torch.bool))
    weights = sum(weight for row in rows for weight in row["weights"])
    expected = 0.7 * terms["align"] + 0.2 * terms["interest"] + 0.4 * terms["agreement"]
    assert float(output.side) == pytest.approx(float(expected) * weights, rel=1e-5)
    assert torch.equal(output.loss, plain.loss)
