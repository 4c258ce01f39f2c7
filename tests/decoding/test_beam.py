import numpy as np
import pytest
import torch
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import (
    GemmaConfig,
    LlamaConfig,
    LogitsProcessorList,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from hf_gr.decoding import SidLogitsProcessor, generate_search, search, tree_search, tree_support
from hf_gr.errors import HfGrError
from hf_gr.vocabulary import add_vocabulary


ARCHITECTURES = [LlamaConfig, Qwen2Config, Qwen3Config, MistralConfig, GemmaConfig]


def build(config_class=LlamaConfig, catalog=None, **overrides):
    if config_class is MistralConfig:
        overrides.setdefault("sliding_window", None)
    catalog = catalog or tiny_catalog()
    tokenizer, model = tiny_tokenizer(), tiny_lm(config_class, **overrides)
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10)
    return model, catalog.grammar(), vocabulary, catalog


def prompts_of(vocabulary, catalog, lengths=(5, 0, 3), seed=0):
    random = np.random.default_rng(seed)
    tokens = vocabulary.item_tokens(catalog)
    return [
        [vocabulary.start_id, *tokens[random.integers(0, len(catalog), length)].ravel().tolist()] for length in lengths
    ]


@torch.no_grad()
def every_sid(model, prompt, grammar, vocabulary, catalog, live):
    """Brute force: {SID: log-probability} over the live items, one plain forward pass per SID."""
    sids = sorted({tuple(catalog.codes[item]) for item in live})
    scores = {}
    for sid in sids:
        tokens = [vocabulary.code_ids[level][code] for level, code in enumerate(sid)]
        logits = model(torch.tensor([prompt + tokens])).logits[0].double()
        total = 0.0
        for level in range(len(sid)):
            following = sorted({other[level] for other in sids if other[:level] == sid[:level]})
            ids = [vocabulary.code_ids[level][code] for code in following]
            row = torch.log_softmax(logits[len(prompt) - 1 + level, ids], -1)
            total += float(row[following.index(sid[level])])
        scores[sid] = total
    return scores


@pytest.mark.parametrize("config_class", ARCHITECTURES)
def test_all_beams_equal_the_exhaustive_ranking(config_class):
    model, grammar, vocabulary, catalog = build(config_class)
    prompts = prompts_of(vocabulary, catalog)
    beams = tree_search(model, prompts, grammar, vocabulary, num_beams=grammar.num_sids)
    for row, prompt in enumerate(prompts):
        expected = every_sid(model, prompt, grammar, vocabulary, catalog, range(len(catalog)))
        found = {
            tuple(codes): float(score)
            for codes, score in zip(beams.codes[row].tolist(), beams.scores[row], strict=True)
        }
        assert found.keys() == expected.keys()
        assert all(abs(found[sid] - expected[sid]) < 1e-4 for sid in expected)
        assert (beams.scores[row].diff() <= 0).all()


@pytest.mark.parametrize("config_class", ARCHITECTURES)
def test_model_score_equals_generate(config_class):
    model, grammar, vocabulary, catalog = build(config_class)
    prompts = prompts_of(vocabulary, catalog)
    tree = tree_search(model, prompts, grammar, vocabulary, num_beams=6, score="model")
    rows = generate_search(model, prompts, grammar, vocabulary, num_beams=6)
    assert torch.equal(tree.codes, rows.codes)
    assert torch.allclose(tree.scores, rows.scores, atol=1e-4)


def test_filter_leaves_live_items_only_and_all_of_them():
    model, grammar, vocabulary, catalog = build()
    prompts = prompts_of(vocabulary, catalog)
    deny = [np.arange(0, 40, 2), None, np.arange(39)]
    item_filter = grammar.filter(deny, [None, np.arange(7), None])
    live = [set(range(1, 40, 2)), set(range(7)), {39}]
    for path in (tree_search, generate_search):
        beams = path(model, prompts, grammar, vocabulary, num_beams=40, item_filter=item_filter)
        for row in range(3):
            expected = {tuple(catalog.codes[item].tolist()) for item in live[row]}
            found = [tuple(codes) for codes in beams.codes[row].tolist() if codes[0] >= 0]
            assert len(found) == len(set(found)) and set(found) == expected, path.__name__


def test_empty_filter_raises():
    model, grammar, vocabulary, catalog = build()
    with pytest.raises(HfGrError, match="request 1 leaves no live item"):
        tree_search(
            model,
            prompts_of(vocabulary, catalog, (1, 1)),
            grammar,
            vocabulary,
            num_beams=2,
            item_filter=grammar.filter([None, np.arange(40)]),
        )


def test_more_beams_than_items():
    catalog = tiny_catalog(num_items=3)
    model, grammar, vocabulary, _ = build(catalog=catalog)
    beams = tree_search(model, prompts_of(vocabulary, catalog), grammar, vocabulary, num_beams=30)
    assert ((beams.states >= 0).sum(1) == grammar.num_sids).all()
    assert torch.isneginf(beams.scores[beams.states < 0]).all()


def test_samples_follow_the_policy():
    model, grammar, vocabulary, catalog = build(catalog=tiny_catalog(num_items=6, sizes=(2, 2)))
    prompt = prompts_of(vocabulary, catalog, (3,))[0]
    expected = every_sid(model, prompt, grammar, vocabulary, catalog, range(6))
    torch.manual_seed(0)
    beams = tree_search(model, [prompt], grammar, vocabulary, num_beams=4000, method="sample")
    for sid, score in expected.items():
        drawn = (beams.codes[0] == torch.tensor(sid)).all(1)
        assert abs(float(drawn.float().mean()) - np.exp(score)) < 0.03
        assert torch.allclose(beams.scores[0][drawn], torch.tensor(score), atol=1e-4)


def test_processor_in_plain_generate_yields_items_only():
    model, grammar, vocabulary, catalog = build()
    prompts = [prompts_of(vocabulary, catalog, (4,))[0]] * 3  # each ends in a SID
    ids = torch.tensor(prompts)
    for options in ({"do_sample": True, "temperature": 2.0}, {"do_sample": False}, {"num_beams": 4}):
        processor = SidLogitsProcessor(grammar, vocabulary, ids.shape[1], eos_token_id=1)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            logits_processor=LogitsProcessorList([processor]),
            **options,
        )
        answer = out[:, ids.shape[1] :]
        assert (grammar.walk(vocabulary.codes_of(answer[:, :3])) >= 0).all()
        assert (answer[:, 3] == 1).all()


def test_processor_raises_on_a_foreign_prefix():
    _, grammar, vocabulary, _ = build()
    processor = SidLogitsProcessor(grammar, vocabulary, 0, eos_token_id=1)
    with pytest.raises(HfGrError, match="no live item continues"):
        processor(torch.tensor([[5]]), torch.zeros(1, 300))


def test_support_is_decided_from_the_config():
    assert tree_support(tiny_lm(), 100)[0]
    windowed = tiny_lm(MistralConfig, sliding_window=16)
    assert tree_support(windowed, 16)[0]
    supported, reason = tree_support(windowed, 17)
    assert not supported and "window of 16" in reason


def test_samples_by_generate_follow_the_policy_too():
    model, grammar, vocabulary, catalog = build(catalog=tiny_catalog(num_items=6, sizes=(2, 2)))
    prompt = prompts_of(vocabulary, catalog, (3,))[0]
    expected = every_sid(model, prompt, grammar, vocabulary, catalog, range(6))
    torch.manual_seed(0)
    beams = generate_search(model, [prompt], grammar, vocabulary, num_beams=2000, method="sample")
    for sid, score in expected.items():
        drawn = (beams.codes[0] == torch.tensor(sid)).all(1)
        assert abs(float(drawn.float().mean()) - np.exp(score)) < 0.04
        assert torch.allclose(beams.scores[0][drawn], torch.tensor(score), atol=1e-4)


def test_search_takes_the_row_path_where_the_tree_is_not_to_be_had():
    windowed, grammar, vocabulary, catalog = build(MistralConfig, sliding_window=4)
    prompts = prompts_of(vocabulary, catalog)
    found = search(windowed, prompts, grammar, vocabulary, num_beams=5)
    assert torch.equal(found.codes, generate_search(windowed, prompts, grammar, vocabulary, num_beams=5).codes)
    with pytest.raises(HfGrError, match="tree search is not for this model"):
        tree_search(windowed, prompts, grammar, vocabulary, num_beams=5)
