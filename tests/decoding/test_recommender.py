import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import GPT2Config, LlamaConfig, pipeline

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories
from hf_gr.decoding import PrefixCache, Recommender, beam_search
from hf_gr.errors import HfGrError
from hf_gr.hub import save_repo
from hf_gr.models import ThinkingConfig, ThinkingHeads, from_scratch
from hf_gr.vocabulary import add_vocabulary


NUM_ITEMS, SIZES, REMOVED = 40, (3, 4, 2), {0, 7, 20}  # 40 items on at most 24 SIDs


def build(config_class=LlamaConfig, form="flat", **overrides) -> Recommender:
    catalog = tiny_catalog(NUM_ITEMS, SIZES).removed([f"i{row:03d}" for row in REMOVED])
    tokenizer, model = tiny_tokenizer(), tiny_lm(config_class, **overrides)
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=4)
    return Recommender(model, tokenizer, catalog, replace(vocabulary, form=form))


RECOMMENDER = build()
CATALOG = RECOMMENDER.catalog
LIVE = set(range(NUM_ITEMS)) - REMOVED


def histories_of(rows: list[list[int]]) -> Histories:
    items = np.array([item for row in rows for item in row], np.int64)
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    users = np.array([f"u{row}" for row in range(len(rows))], dtype=object)
    return Histories(users, ptr, items, np.arange(len(items)))


@torch.no_grad()
def code_scores(prompt: list[int], form: str = "flat") -> dict[tuple, torch.Tensor]:
    """Logits of the next level's codes after every prefix of a SID, by plain forward passes."""
    vocabulary, found = RECOMMENDER.vocabulary, {}
    thinks = [[think] if form == "stepwise" else [] for think in vocabulary.think_ids]
    for level in range(len(SIZES)):
        prefixes = sorted({tuple(sid[:level]) for sid in CATALOG.codes.tolist()})
        tokens = [
            [t for at, code in enumerate(prefix) for t in (*thinks[at], vocabulary.code_ids[at][code])] + thinks[level]
            for prefix in prefixes
        ]
        logits = RECOMMENDER.model(torch.tensor([prompt + more for more in tokens])).logits[:, -1].double()
        found |= dict(zip(prefixes, logits[:, list(vocabulary.code_ids[level])], strict=True))
    return found


def ranked_by_hand(logits: dict[tuple, torch.Tensor], live: set[int]) -> list[tuple[int, float]]:
    """The items of `live` with their scores, best first: SIDs by log-probability over all live ones, then buckets."""
    sids = {tuple(CATALOG.codes[item].tolist()) for item in LIVE}
    buckets: dict[tuple, list[int]] = {}
    for item in sorted(live, key=lambda item: (-CATALOG.popularity[item], item)):
        buckets.setdefault(tuple(CATALOG.codes[item].tolist()), []).append(item)
    scored = []
    for sid, bucket in buckets.items():
        total = 0.0
        for level in range(len(SIZES)):
            following = sorted({other[level] for other in sids if other[:level] == sid[:level]})
            row = torch.log_softmax(logits[sid[:level]][following], -1)
            total += float(row[following.index(sid[level])])
        scored.append((total, bucket))
    return [(item, score) for score, bucket in sorted(scored, reverse=True) for item in bucket]


HISTORIES = [[4, 8, 15], [], [16, 23, 39, 0, 7, 20]]  # the second is a cold user, the last one is cut
LOGITS = [code_scores(prompt) for prompt in RECOMMENDER.prompts(histories_of(HISTORIES))]


def check(
    items: np.ndarray, scores: np.ndarray, live: list[set[int]], top_k: int, logits: list[dict] = LOGITS
) -> None:
    assert items.shape == scores.shape == (len(live), top_k)
    assert items.dtype == np.int64 and scores.dtype == np.float32
    for row, wanted in enumerate(live):
        expected = ranked_by_hand(logits[row], wanted)[:top_k]
        missing = top_k - len(expected)
        assert len(expected) == min(top_k, len(wanted))
        assert items[row].tolist() == [item for item, _ in expected] + [-1] * missing
        assert scores[row, : len(expected)] == pytest.approx([score for _, score in expected], abs=1e-4)
        assert np.isneginf(scores[row, len(expected) :]).all()


@pytest.mark.parametrize("top_k", [1, 10, 37, 60])
def test_answers_equal_the_exhaustive_ranking(top_k):
    check(*RECOMMENDER.recommend(histories_of(HISTORIES), top_k=top_k), [LIVE] * 3, top_k)


def test_lists_are_as_many_as_histories():
    histories = histories_of(HISTORIES)
    for name in ("exclude", "allow", "only", "queries"):
        for entries in (2, 4):
            with pytest.raises(HfGrError, match=f"{name} has {entries} entries for 3 histories; give one for each"):
                RECOMMENDER.recommend(histories, **{name: [None] * entries})


def test_a_stepwise_model_answers_by_its_thinking():
    recommender = build(form="stepwise")  # the same weights
    prompts = recommender.prompts(histories_of(HISTORIES))
    logits = [code_scores(prompt, "stepwise") for prompt in prompts]
    check(*recommender.recommend(histories_of(HISTORIES), top_k=12), [LIVE] * 3, 12, logits)


def test_thoughts_up_front_are_read_with_the_prompt():
    recommender = build(form="upfront")  # the same weights
    histories = histories_of(HISTORIES)
    prompts = recommender.prompts(histories, ["red", None, None])
    plain = RECOMMENDER.prompts(histories, ["red", None, None])
    assert prompts == [prompt + list(recommender.vocabulary.think_ids) for prompt in plain]
    logits = [code_scores(prompt) for prompt in recommender.prompts(histories)]
    recommender.prefix_cache = PrefixCache(block=2)
    for _ in range(2):  # the second time from the cache
        check(*recommender.recommend(histories, top_k=12), [LIVE] * 3, 12, logits)
    assert recommender.prefix_cache.hits


def test_masks_leave_only_their_items_and_compose_with_the_rest():
    even = np.arange(NUM_ITEMS) % 2 == 0
    mask = RECOMMENDER.grammar.mask(even)
    exclude, allow = [np.array([2, 4]), None, None], [None, None, np.arange(3, 9)]
    found = RECOMMENDER.recommend(
        histories_of(HISTORIES), top_k=12, exclude=exclude, allow=allow, only=[mask, None, mask]
    )
    check(*found, [(LIVE & set(range(0, NUM_ITEMS, 2))) - {2, 4}, LIVE, {4, 6, 8}], 12)


rows = st.none() | st.lists(st.integers(0, NUM_ITEMS - 1), max_size=45).map(lambda x: np.array(x, np.int64))


@settings(max_examples=25, deadline=None)
@given(st.lists(rows, min_size=3, max_size=3), st.none() | st.lists(rows, min_size=3, max_size=3), st.integers(1, 45))
def test_exactly_as_many_items_as_there_are(exclude, allow, top_k):
    found = RECOMMENDER.recommend(histories_of(HISTORIES), top_k=top_k, exclude=exclude, allow=allow)
    live = [
        (LIVE if one is None else LIVE & set(one.tolist())) - set([] if other is None else other.tolist())
        for one, other in zip(allow or [None] * 3, exclude, strict=True)
    ]
    check(*found, live, top_k)


def test_few_beams_are_raised_to_what_is_wanted():
    """A narrow search may miss the best, but never comes back with fewer items than there are."""
    for num_beams, top_k in ((1, 20), (3, 3), (1, 1)):
        items, _ = RECOMMENDER.recommend(histories_of(HISTORIES), top_k=top_k, num_beams=num_beams)
        assert all(len(set(row)) == top_k and set(row) <= LIVE for row in items.tolist())


def test_a_request_that_leaves_nothing_gets_an_empty_list(caplog):
    allow = [None, np.array(sorted(REMOVED)), np.array([1, 2])]
    with caplog.at_level(logging.WARNING):
        found = RECOMMENDER.recommend(histories_of(HISTORIES), top_k=4, allow=allow)
    check(*found, [LIVE, set(), {1, 2}], 4)
    assert "1 request(s) leave no item" in caplog.text
    found = RECOMMENDER.recommend(histories_of(HISTORIES), top_k=4, exclude=[np.arange(NUM_ITEMS)] * 3)
    check(*found, [set()] * 3, 4)


def test_no_request_at_all():
    for filters in ({}, {"exclude": []}, {"exclude": [], "allow": []}, {"queries": []}):
        items, scores = RECOMMENDER.recommend(histories_of([]), top_k=5, **filters)
        assert items.shape == scores.shape == (0, 5)


def test_the_batch_does_not_matter():
    together = RECOMMENDER.recommend(histories_of(HISTORIES), top_k=15)
    for row, history in enumerate(HISTORIES):
        items, scores = RECOMMENDER.recommend(histories_of([history]), top_k=15)
        assert items[0].tolist() == together[0][row].tolist()
        assert scores[0] == pytest.approx(together[1][row], abs=1e-4)


def test_old_events_beyond_the_limit_do_not_matter():
    one, other = ([first, 39, 0, 7, 20] for first in (5, 6))
    items, scores = RECOMMENDER.recommend(histories_of([one, other]), top_k=5)
    assert np.array_equal(items[0], items[1]) and scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_the_query_stands_before_the_history():
    histories = histories_of([[4, 8], [4, 8], [4, 8]])
    plain = RECOMMENDER.prompts(histories)
    asked = RECOMMENDER.prompts(histories, ["red shoes", "", None])
    assert asked[1:] == plain[1:]
    text = asked[0][: -len(plain[0])]
    assert asked[0][-len(plain[0]) :] == plain[0]
    assert "".join(RECOMMENDER.tokenizer.convert_ids_to_tokens(text)) == "redĠshoes"
    _, scores = RECOMMENDER.recommend(histories, top_k=5, queries=["red shoes", "", None])
    assert scores[1] == pytest.approx(scores[2], abs=1e-5)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["<s0_2>", "<items>", "<think_0>", "<eos>", "<pad>"]) | st.text(), max_size=5))
def test_a_query_cannot_write_control_tokens(parts):
    query = "".join(parts).encode(errors="ignore").decode()
    histories = histories_of([[4, 8]])
    prompt, plain = RECOMMENDER.prompts(histories, [query])[0], RECOMMENDER.prompts(histories)[0]
    text = prompt[: len(prompt) - len(plain)]
    assert prompt[len(text) :] == plain and len(text) == len(query.encode())
    assert all(3 <= token < 259 for token in text)  # bytes


def test_a_model_of_sids_alone_refuses_queries():
    model, tokenizer = from_scratch({"layers": 1, "width": 32})
    vocabulary = add_vocabulary(tokenizer, model, CATALOG, max_history=4)
    recommender = Recommender(model, tokenizer, CATALOG, vocabulary)
    histories = histories_of([[4, 8], [15]])
    recommender.recommend(histories, top_k=3, queries=[None, ""])
    for query in ("red shoes", "a", "<pad>"):
        with pytest.raises(HfGrError, match="made from SIDs alone and reads no query; train one with text: true"):
            recommender.recommend(histories, top_k=3, queries=[None, query])


def thinking_heads(feedback: str) -> ThinkingHeads:
    config = ThinkingConfig(clusters=2, interest_width=16, feedback=feedback)
    heads = ThinkingHeads.start(config, 32, CATALOG, seed=0)
    if heads.feed is not None:
        torch.nn.init.normal_(heads.feed.weight, std=0.3)
    return heads


@pytest.mark.parametrize("feedback", ["token", "hidden"])
def test_thinking_heads_come_with_the_model_and_feed_its_thoughts(feedback, tmp_path):
    plain, heads = build(form="stepwise"), thinking_heads(feedback)
    save_repo(tmp_path / "model", plain.model, plain.tokenizer, CATALOG, plain.vocabulary)
    assert Recommender.from_pretrained(tmp_path / "model", device="cpu").thinking is None
    heads.save(tmp_path / "model")
    loaded = Recommender.from_pretrained(tmp_path / "model", device="cpu")
    served = pipeline("generative-recommendation", model=str(tmp_path / "model"), device="cpu").recommender
    given = Recommender(plain.model, plain.tokenizer, CATALOG, plain.vocabulary, thinking=heads)
    histories = histories_of(HISTORIES)
    expected = beam_search(
        plain.model, plain.prompts(histories), plain.grammar, num_beams=50, top_k=12, feed=heads.feed
    )
    for recommender in (loaded, served, given):
        assert recommender.thinking.config == heads.config
        items, scores = recommender.recommend(histories, top_k=12)
        assert np.array_equal(items, expected.items.numpy()) and scores == pytest.approx(expected.scores, abs=1e-4)
    changed = np.abs(plain.recommend(histories, top_k=1)[1] - scores[:, :1]).max() > 1e-3
    assert changed == (feedback == "hidden")


def test_other_architectures_answer_by_generate():
    recommender = build(GPT2Config, n_layer=1, n_embd=32, n_head=4, n_positions=128)
    exclude = [None, np.arange(NUM_ITEMS), np.arange(5, NUM_ITEMS)]
    items, scores = recommender.recommend(histories_of(HISTORIES), top_k=10, num_beams=30, exclude=exclude)
    assert len(set(items[0].tolist())) == 10 and set(items[0].tolist()) <= LIVE
    assert (np.diff(scores[0]) <= 0).all()
    assert (items[1] == -1).all()
    assert sorted(items[2].tolist()) == [-1] * 6 + [1, 2, 3, 4]


def test_what_is_saved_answers_alike(tmp_path):
    RECOMMENDER.model.save_pretrained(tmp_path)
    for part in (RECOMMENDER.catalog, RECOMMENDER.vocabulary):
        part.save(tmp_path)
    RECOMMENDER.tokenizer.save_pretrained(tmp_path)
    again = Recommender.from_pretrained(tmp_path, device="cpu")
    assert again.model.dtype == torch.float32 and not again.model.training
    check(*again.recommend(histories_of(HISTORIES), top_k=12), [LIVE] * 3, 12)


def test_parts_of_different_models_are_refused():
    other = tiny_catalog(NUM_ITEMS, SIZES, seed=1)
    with pytest.raises(HfGrError, match="is not the one this model was trained on"):
        Recommender(RECOMMENDER.model, RECOMMENDER.tokenizer, other, RECOMMENDER.vocabulary)
    with pytest.raises(HfGrError, match="the tokenizer does not hold the catalog's tokens"):
        Recommender(RECOMMENDER.model, tiny_tokenizer(), CATALOG, RECOMMENDER.vocabulary)


def test_one_item_is_a_catalog_too():
    catalog = SidCatalog.from_codes(np.array([[0, 0]]), tiny_catalog(1).items, (1, 1))
    tokenizer, model = tiny_tokenizer(), tiny_lm()
    recommender = Recommender(model, tokenizer, catalog, add_vocabulary(tokenizer, model, catalog, max_history=2))
    items, scores = recommender.recommend(histories_of([[], [0]]), top_k=2)
    assert items.tolist() == [[0, -1], [0, -1]] and scores[:, 0] == pytest.approx([0, 0])


# ---------------------------------------------------------------- reflection


def test_reflection_is_that_of_the_beam_search():
    histories = histories_of(HISTORIES)
    reflection = RECOMMENDER.reflection(0.9)
    expected = beam_search(
        RECOMMENDER.model,
        RECOMMENDER.prompts(histories),
        RECOMMENDER.grammar,
        num_beams=6,
        top_k=6,
        reflection=reflection,
    )
    answers = RECOMMENDER.answers(histories, num_beams=6, top_k=6, reflection=0.9)
    assert np.array_equal(answers.items, expected.items.numpy()) and (answers.pruned > 0).all()
    assert np.allclose(answers.pruned, expected.pruned.numpy())
    items, scores = RECOMMENDER.recommend(histories, num_beams=6, top_k=6, reflection=0.9)
    assert np.array_equal(items, answers.items) and np.array_equal(scores, answers.scores)
    plain = RECOMMENDER.answers(histories, num_beams=6, top_k=6)
    assert plain.pruned is None and not np.array_equal(plain.items, items)


def test_requests_without_live_items_have_no_share_of_pruned_paths():
    allow = [np.array([1, 2]), np.array([], np.int64), None]
    answers = RECOMMENDER.answers(histories_of(HISTORIES), top_k=3, allow=allow, reflection=0.5)
    assert np.isnan(answers.pruned).tolist() == [False, True, False]


def test_reflections_are_made_once_for_a_catalog_and_threshold():
    recommender = build()
    assert recommender.reflection(0) is None and recommender.reflection(0.0) is None
    first = recommender.reflection(0.5)
    assert recommender.reflection(0.5) is first and recommender.reflection(0.6) is not first
    recommender.swap(CATALOG)
    assert recommender.reflection(0.5) is not first
    for threshold in (-1, 2, "0.5", [0.5], None):
        with pytest.raises(HfGrError, match="give a number between 0"):
            recommender.recommend(histories_of(HISTORIES), reflection=threshold)
    bare = SidCatalog.from_codes(CATALOG.codes, CATALOG.items.drop_columns("categories"), SIZES)
    recommender = Recommender(RECOMMENDER.model, RECOMMENDER.tokenizer, bare, RECOMMENDER.vocabulary)
    with pytest.raises(HfGrError, match="items have no categories that tell them apart"):
        recommender.recommend(histories_of(HISTORIES), reflection=0.5)
