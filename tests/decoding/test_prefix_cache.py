"""With and without a prefix cache: the same answers, and fewer tokens read."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import LlamaConfig, Qwen3Config

from hf_gr.dataset import Histories
from hf_gr.decoding import PrefixCache, Recommender, tree_search
from hf_gr.errors import HfGrError
from hf_gr.grammar import TrieGrammar
from hf_gr.vocabulary import add_vocabulary


CATALOG = tiny_catalog(30, (4, 3, 3))
TOKEN_IDS = [range(100, 104), range(104, 107), range(107, 110)]
FLAT = TrieGrammar(CATALOG.codes, TOKEN_IDS)
STEPWISE = TrieGrammar(CATALOG.codes, TOKEN_IDS, think_ids=[110, 111, 112])
MODELS = {config: tiny_lm(config) for config in (LlamaConfig, Qwen3Config)}
MODEL = MODELS[LlamaConfig]
TEXT = np.random.default_rng(0).integers(0, 259, 200).tolist()
OTHER = np.random.default_rng(1).integers(0, 259, 200).tolist()


class Reading:
    """Counts the tokens of every forward pass, padding included; a flat search of three codes has three."""

    def __init__(self, model):
        self.tokens: list[int] = []
        self.handle = model.base_model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        self.tokens.append(kwargs["input_ids"].numel())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


def found(prompts, cache=None, model=MODEL, grammar=FLAT):
    return tree_search(model, prompts, grammar, num_beams=30, prefix_cache=cache)


def check(prompts, cache, model=MODEL, grammar=FLAT):
    expected, answers = found(prompts, None, model, grammar), found(prompts, cache, model, grammar)
    torch.testing.assert_close(answers.scores, expected.scores, atol=1e-5, rtol=0)
    for row, answer in enumerate(answers.tokens):  # beams may tie, so the same answers in any order
        assert {tuple(beam) for beam in answer.tolist()} == {tuple(beam) for beam in expected.tokens[row].tolist()}


BATCHES = [
    [TEXT[:40]],
    [TEXT[:40]],  # as before
    [TEXT[:48], TEXT[:64], TEXT[:41]],  # grown
    [TEXT[:48], TEXT[:48]],  # a multiple of the block, twice in a batch
    [OTHER[:3], TEXT[:70]],  # shorter than a block; nothing is known of one row
    [OTHER[:1]],
    [TEXT[:32] + OTHER[:40], TEXT[:32] + OTHER[50:52], TEXT[:15] + OTHER[:5]],  # a shared instruction
    [TEXT[:32] + OTHER[:45], TEXT[:33], OTHER[:90], TEXT[:64] + OTHER[:7]],
    [OTHER[:95], TEXT[:64] + OTHER[:11], TEXT[:8]],
]


@pytest.mark.parametrize("grammar", [FLAT, STEPWISE], ids=["flat", "stepwise"])
@pytest.mark.parametrize("config", MODELS)
def test_the_same_scores(config, grammar):
    cache = PrefixCache(block=8)
    for prompts in BATCHES:
        check(prompts, cache, MODELS[config], grammar)
    extra = len(grammar.think_ids[:1])
    assert cache.hits + cache.misses == sum(len(prompt) + extra for prompts in BATCHES for prompt in prompts)
    assert cache.hits > 300


PIECES = st.lists(st.tuples(st.sampled_from([TEXT, OTHER]), st.integers(1, 20)), min_size=1, max_size=3)


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.lists(PIECES, min_size=1, max_size=4), min_size=2, max_size=4), kept=st.integers(3, 60))
def test_the_same_scores_for_any_prompts_and_any_eviction(batches, kept):
    cache = PrefixCache(max_tokens=kept, block=3)
    for pieces in batches:
        check([[token for text, length in row for token in text[:length]] for row in pieces], cache)
        assert cache.tokens <= kept


def test_only_what_is_new_is_read():
    cache = PrefixCache()
    with Reading(MODEL) as reading:
        found([TEXT[:100]], cache)
        found([TEXT[:100]], cache)
        found([TEXT[:96]], cache)  # its last token is always read
        found([TEXT[:120], TEXT[:97]], cache)
    assert reading.tokens[::3] == [100, 4, 16, 2 * 24]
    assert (cache.hits, cache.misses) == (96 + 80 + 96 + 80, 100 + 4 + 16 + 24 + 17)


def test_a_batch_is_never_wider_than_without():
    """A row takes nothing that would not shorten the batch."""
    cache = PrefixCache(block=4)
    found([TEXT[:100]], cache)
    with Reading(MODEL) as reading:
        found([TEXT[:50], OTHER[:60], TEXT[:70]], cache)
    assert reading.tokens[0] == 3 * 60
    assert cache.hits == 12  # of the third row's 70 tokens: 10, in blocks of 4


def test_the_least_recently_used_blocks_go_first():
    cache = PrefixCache(max_tokens=64, block=16)
    found([TEXT[:33]], cache)
    found([OTHER[:33]], cache)
    assert cache.tokens == 64
    found([TEXT[:33]], cache)  # now OTHER is the older
    assert cache.hits == 32
    found([TEXT[:16] + OTHER[100:117]], cache)  # the end of OTHER goes, its beginning stays
    assert (cache.tokens, cache.hits) == (64, 48)
    found([TEXT[:33]], cache)
    assert cache.hits == 80
    found([OTHER[:33]], cache)
    assert (cache.tokens, cache.hits) == (64, 96)


def test_a_prompt_longer_than_the_cache_keeps_its_beginning():
    cache = PrefixCache(max_tokens=40, block=16)
    check([TEXT], cache)
    assert cache.tokens == 32
    check([TEXT], cache)
    assert cache.hits == 32


def test_blocks_that_go_while_a_batch_is_read_are_stored_again():
    class Forgetful(PrefixCache):
        def load(self, *arguments):
            taken = super().load(*arguments)
            self.clear()
            return taken

    cache = Forgetful(block=8)
    for prompts in BATCHES:
        check(prompts, cache)
    assert cache.hits > 100


def test_blocks_are_copies():
    """Nothing of a batch's cache stays alive."""
    cache = PrefixCache()
    found([TEXT[:100], TEXT[:16] + OTHER[:150]], cache)
    layers, heads, width = 2, 2, 8
    for block in cache._blocks.values():
        assert block.states.untyped_storage().nbytes() == layers * 2 * heads * 16 * width * 4


def test_another_model_is_refused():
    cache = PrefixCache()
    found([TEXT[:20]], cache)
    with pytest.raises(HfGrError, match=r"keys of another model.*make a PrefixCache for each model") as caught:
        found([TEXT[:20]], cache, MODELS[Qwen3Config])
    assert "\n" not in str(caught.value)
    moved = tiny_lm()
    cache = PrefixCache()
    found([TEXT[:20]], cache, moved)
    with pytest.raises(HfGrError, match=r"before it moved \(now torch.bfloat16 on cpu, then torch.float32 on cpu\)"):
        found([TEXT[:20]], cache, moved.to(torch.bfloat16))
    with pytest.raises(HfGrError, match="block is 17 and max_tokens 16"):
        PrefixCache(16, 17)


def test_changed_weights_need_a_clear():
    model, cache = tiny_lm(), PrefixCache()
    check([TEXT[:50]], cache, model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    stale = found([TEXT[:50]], cache, model).scores
    assert not torch.allclose(stale, found([TEXT[:50]], None, model).scores, atol=1e-5)
    cache.clear()
    assert cache.tokens == 0
    check([TEXT[:50]], cache, model)


def test_threads_share_a_cache():
    cache = PrefixCache(max_tokens=96, block=8)
    prompts = [TEXT[: 20 + 7 * row] if row % 2 else OTHER[: 20 + 7 * row] for row in range(8)]
    expected = [found([prompt]).scores for prompt in prompts]
    wrong: list[int] = []

    def ask(order):
        for row in order:
            if not torch.allclose(found([prompts[row]], cache).scores, expected[row], atol=1e-5):
                wrong.append(row)

    threads = [threading.Thread(target=ask, args=[order]) for order in (range(8), range(7, -1, -1), [3, 5] * 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.hits and cache.tokens <= 96
    assert cache.hits + cache.misses == 2 * sum(map(len, prompts)) + 4 * (len(prompts[3]) + len(prompts[5]))


def test_a_recommender_whose_users_come_back():
    catalog, tokenizer, model = tiny_catalog(), tiny_tokenizer(), tiny_lm()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=30)
    cache = PrefixCache(block=8)
    plain = Recommender(model, tokenizer, catalog, vocabulary)
    cached = Recommender(model, tokenizer, catalog, vocabulary, prefix_cache=cache)
    for lengths in ([8, 20], [9, 21], [10, 22]):
        items = np.concatenate([np.arange(length) for length in lengths])
        ptr = np.array([0, *np.cumsum(lengths)])
        histories = Histories(np.array(["ann", "bob"], dtype=object), ptr, items, np.arange(len(items)))
        queries = ["something calm", "something calm"]
        expected = plain.recommend(histories, top_k=40, queries=queries)
        answer = cached.recommend(histories, top_k=40, queries=queries)
        np.testing.assert_array_equal(answer[0], expected[0])
        np.testing.assert_allclose(answer[1], expected[1], atol=1e-5)
    assert cache.hits > 4 * 24
