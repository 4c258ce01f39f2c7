"""Sessions against fresh computations on the same events, and the memory of many of them against plain arithmetic."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from searching import recursive
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PreTrainedModel, Qwen3Config

from hf_gr.dataset import Histories
from hf_gr.decoding import PrefixCache, Recommender, Sessions, recommend_many
from hf_gr.errors import HfGrError
from hf_gr.vocabulary import add_vocabulary


WINDOW, REMOVED = 6, ["i007", "i020"]
POSITION = 2 * 2 * 2 * 8 * 4  # layers × (keys, values) × kv_heads × head_dim × bytes of float32
HIDDEN = 32 * 4


def recommender_of(lm: PreTrainedModel | None = None, prompt: tuple[int, ...] = (), **settings) -> Recommender:
    catalog, tokenizer, lm = tiny_catalog(), tiny_tokenizer(), lm or tiny_lm(Qwen3Config)
    vocabulary = add_vocabulary(tokenizer, lm, catalog, max_history=WINDOW, **settings)
    model, vocabulary = recursive(lm, vocabulary, catalog)
    return Recommender(model, tokenizer, catalog.removed(REMOVED), replace(vocabulary, prompt_ids=prompt))


def tiny_gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4)).eval()


RECOMMENDER = recommender_of()
FILTERS = {"exclude": ["i001", "i003"], "allow": [f"i{row:03d}" for row in range(0, 40, 3)]}
STREAM = [f"i{row:03d}" for row in np.random.default_rng(3).integers(0, 40, 30)]


def histories_of(rows: list[list[str]], **columns: np.ndarray) -> Histories:
    items = np.array([int(item[1:]) for row in rows for item in row], np.int64)
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Histories(np.array([str(row) for row in range(len(rows))], object), ptr, items, items, **columns)


def fresh(recommender: Recommender, history: list[str], **settings) -> list[tuple[str, float]]:
    """Answers of `Recommender.recommend`, as a session has them."""
    return answers_to(recommender, histories_of([history]), **settings)


def answers_to(recommender: Recommender, histories: Histories, **settings) -> list[tuple[str, float]]:
    items, scores = recommender.recommend(histories, **settings)
    kept = items[0] >= 0
    ids = [recommender.catalog.item_ids[item] for item in items[0][kept]]
    return list(zip(ids, scores[0][kept].tolist(), strict=True))


def agree(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [item for item, _ in found] == [item for item, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=2e-5)


@contextmanager
def counting(model: PreTrainedModel):
    """Tokens of every pass of the backbone."""
    passes: list[int] = []
    hook = model.model.backbone.register_forward_hook(
        lambda _, args, kwargs, output: passes.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    yield passes
    hook.remove()


@pytest.mark.parametrize("start", [0, 3])
def test_until_the_window_is_full_answers_are_those_of_a_fresh_computation(start):
    with counting(RECOMMENDER.model) as passes:
        session = RECOMMENDER.session(STREAM[:start])
        assert passes == [1 + start]
    agree(session.recommend(10), fresh(RECOMMENDER, STREAM[:start]))
    for end in range(start + 1, WINDOW + 1):
        with counting(RECOMMENDER.model) as passes:
            session.append(STREAM[end - 1])
            found = session.recommend(10)
            assert passes == [1]
        agree(found, fresh(RECOMMENDER, STREAM[:end]))
        assert (session.num_events, session.positions) == (end, end + 1)
    assert found != session.recommend(10, num_beams=10, exclude=[found[0][0]])


@pytest.mark.parametrize(("block", "dropped"), [(None, 1), (1, 1), (4, 4), (WINDOW, WINDOW)])
def test_a_full_window_is_read_anew_without_its_oldest_block(block, dropped):
    session, window = RECOMMENDER.session(block=block), []
    for count, item in enumerate(STREAM, start=1):
        full = len(window) == WINDOW
        window = [*(window[dropped:] if full else window), item]
        with counting(RECOMMENDER.model) as passes:
            session.append(item)
        assert passes == ([1 + len(window)] if full else [1])
        assert session.num_events == len(window)
        assert count < WINDOW or WINDOW - dropped + 1 <= len(window) <= WINDOW
        agree(session.recommend(5), fresh(RECOMMENDER, window, top_k=5))


def test_a_longer_history_starts_with_its_most_recent_events():
    session = RECOMMENDER.session(STREAM[:20], block=2)
    assert session.num_events == WINDOW
    agree(session.recommend(10), fresh(RECOMMENDER, STREAM[:20]))
    session.append(STREAM[20])
    agree(session.recommend(10), fresh(RECOMMENDER, STREAM[16:21]))


@pytest.mark.parametrize(
    "recommender",
    [
        recommender_of(tiny_lm(LlamaConfig)),
        recommender_of(tiny_lm(MistralConfig, sliding_window=3)),
        recommender_of(tiny_gpt2()),
        recommender_of(prompt=(5, 9)),
    ],
    ids=["llama", "sliding", "gpt2", "prompt"],
)
def test_other_backbones_and_prompts(recommender):
    session = recommender.session(STREAM[:2])
    for end in range(3, WINDOW + 1):
        session.append(STREAM[end - 1])
        agree(session.recommend(10), fresh(recommender, STREAM[:end]))
    session.append(STREAM[WINDOW])
    agree(session.recommend(10), fresh(recommender, STREAM[1 : WINDOW + 1]))


@pytest.mark.parametrize("kind", ["rating", "behavior"])
def test_events_with_context(kind):
    values = [3.0, 5.0, 1.0, 3.0, 5.0, 3.0, 1.0] if kind == "rating" else ["view", "buy", "cart", "view"] + ["buy"] * 3
    array = np.array(values, np.float32 if kind == "rating" else object)
    events = histories_of([STREAM[:7]], **{f"{kind}s": array})
    recommender = recommender_of(context=kind, histories=events)
    session = recommender.session(STREAM[:1], context=values[:1])
    for item, value in zip(STREAM[1:6], values[1:6], strict=True):
        with counting(recommender.model) as passes:
            session.append(item, value)
        assert passes == [2]
    agree(session.recommend(10), answers_to(recommender, events.cut(np.array([0]), np.array([6]))))
    session.append(STREAM[6], values[6])
    agree(session.recommend(10), answers_to(recommender, events))
    sessions = recommender.sessions(10**6)
    assert sessions.bytes_of(4) == sessions.get("u", STREAM[:4], values[:4]).nbytes == POSITION * 9 + HIDDEN
    for wrong in (None, 2 if kind == "behavior" else "view"):
        with pytest.raises(HfGrError, match=f"reads a {kind} with every item"):
            session.append(STREAM[0], wrong)


def test_filters_are_those_of_recommend():
    session = RECOMMENDER.session(STREAM[:10])
    session.append(STREAM[10])
    rows = {name: np.array([int(item[1:]) for item in ids]) for name, ids in FILTERS.items()}
    only, window = RECOMMENDER.mask(category="even"), STREAM[5:11]
    seen = np.array([int(item[1:]) for item in STREAM[:11]])
    given = {name: [own] for name, own in rows.items()}
    agree(session.recommend(40, **FILTERS), fresh(RECOMMENDER, window, top_k=40, **given))
    agree(session.recommend(40, only=only), fresh(RECOMMENDER, window, top_k=40, only=[only]))
    agree(session.recommend(40, exclude_seen=True), fresh(RECOMMENDER, window, top_k=40, exclude=[seen]))
    both = [np.union1d(seen, rows["exclude"])]
    found = session.recommend(40, exclude_seen=True, exclude=FILTERS["exclude"])
    agree(found, fresh(RECOMMENDER, window, top_k=40, exclude=both))
    assert not {item for item, _ in found} & {*STREAM[:11], *FILTERS["exclude"], *REMOVED}


def test_many_sessions_are_answered_as_each_alone():
    sessions = [RECOMMENDER.session(STREAM[:length]) for length in (0, 2, 9)]
    for session, found in zip(sessions, recommend_many(sessions, 10), strict=True):
        agree(found, session.recommend(10))
    exclude, allow = [None, ["i001"], []], [["i001", "i002"], ["i001"], None]
    found = recommend_many(sessions, 5, exclude=exclude, allow=allow, exclude_seen=True)
    assert {item for item, _ in found[0]} == {"i001", "i002"} and found[1] == []
    agree(found[2], sessions[2].recommend(5, exclude_seen=True))


def test_a_session_without_answers_says_so(caplog):
    assert RECOMMENDER.session().recommend(5, allow=REMOVED[:1]) == []
    assert "no item to answer with" in caplog.text


def test_a_swapped_catalog_reaches_live_sessions():
    recommender = recommender_of()
    session = recommender.session(STREAM[:3])
    best = session.recommend(1)[0][0]
    recommender.swap(recommender.catalog.removed([best]))
    assert best not in [item for item, _ in session.recommend(40)]
    session.append(best)  # its events are still events
    agree(session.recommend(10), fresh(recommender, [*STREAM[:3], best]))


def test_what_a_session_refuses():
    session = RECOMMENDER.session(STREAM[:3])
    before = session.recommend(10)
    for call in (lambda: session.append("nothing"), lambda: session.recommend(exclude=["nothing"])):
        with pytest.raises(HfGrError, match="'nothing' is not in the catalog"):
            call()
    assert session.recommend(10) == before
    for block in (0, WINDOW + 1):
        with pytest.raises(HfGrError, match=f"block is {block}; give 1 to {WINDOW}"):
            RECOMMENDER.session(block=block)
    with pytest.raises(HfGrError, match="give a list"):
        RECOMMENDER.session("i001")
    with pytest.raises(HfGrError, match="several recommenders"):
        recommend_many([session, recommender_of().session()])


def test_other_models_are_sent_to_the_prefix_cache():
    catalog, tokenizer, lm = tiny_catalog(), tiny_tokenizer(), tiny_lm()
    vocabulary = add_vocabulary(tokenizer, lm, catalog, max_history=WINDOW)
    recommender = Recommender(lm, tokenizer, catalog, vocabulary, PrefixCache())
    with pytest.raises(HfGrError, match=r"form recursive, this one's is flat; .*PrefixCache"):
        recommender.session()
    with pytest.raises(HfGrError, match="PrefixCache"):
        recommender.sessions(10**6)


def test_bytes_are_those_of_the_tensors():
    sessions = RECOMMENDER.sessions(10**6)
    session = sessions.get("u", [])
    for count, item in enumerate(STREAM[:WINDOW], start=1):
        session.append(item)
        assert session.nbytes == sessions.nbytes == sessions.bytes_of(count) == POSITION * (1 + count) + HIDDEN
    for each in (session, RECOMMENDER.session(STREAM[:WINDOW])):
        tensors = [x for layer in each._trunk.cache.layers for x in (layer.keys, layer.values)]
        stored = [x.untyped_storage().nbytes() for x in (*tensors, each._trunk.hidden)]
        assert sum(stored) == each.nbytes == sessions.bytes_of(WINDOW)  # no view keeps more alive
    sessions.drop("u")
    assert (sessions.nbytes, len(sessions)) == (0, 0)
    sessions.drop("u")


def test_the_least_recently_used_session_goes_first():
    room = 3 * (POSITION * 3 + HIDDEN)  # three sessions of two events
    sessions = RECOMMENDER.sessions(room)
    kept = {user: sessions.get(user, STREAM[:2]) for user in "abc"}
    assert sessions.nbytes == room
    assert sessions.get("a", []) is kept["a"]
    sessions.get("d", STREAM[:2])
    assert [user in sessions for user in "abcd"] == [True, False, True, True]
    kept["c"].append(STREAM[2])  # grows, and was used: a goes
    assert [user in sessions for user in "acd"] == [False, True, True]
    assert sessions.nbytes == POSITION * 7 + 2 * HIDDEN <= room
    kept["a"].append(STREAM[2])  # dropped, but held here: not counted
    assert sessions.nbytes == POSITION * 7 + 2 * HIDDEN and "a" not in sessions
    assert (sessions.found, sessions.made) == (1, 4)
    again = sessions.get("b", STREAM[:3])
    assert again is not kept["b"]
    kept["b"].append(STREAM[3])  # the old one, held here, does not take the place of the new one
    assert sessions.get("b", []) is again
    agree(again.recommend(10), fresh(RECOMMENDER, STREAM[:3]))


def test_a_budget_holds_at_least_a_full_window():
    full = POSITION * (1 + WINDOW) + HIDDEN
    with pytest.raises(HfGrError, match=f"max_bytes is {full - 1}, .* takes {full}"):
        Sessions(RECOMMENDER, full - 1)
    sessions = Sessions(RECOMMENDER, full, block=2)
    for user in "ab":
        for item in STREAM[:9]:
            sessions.get(user, []).append(item)
    assert len(sessions) == 1 and "b" in sessions
    agree(sessions.get("b", []).recommend(10), fresh(RECOMMENDER, STREAM[4:9]))


def test_threads_share_sessions():
    sessions = RECOMMENDER.sessions(4 * (POSITION * 7 + HIDDEN))

    def work(number: int) -> None:
        for step in range(6):
            session = sessions.get(f"u{(number + step) % 6}", STREAM[:2])
            session.append(STREAM[step])
            assert len(session.recommend(3, num_beams=5)) == 3

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert sessions.nbytes == sum(session.nbytes for session, _ in sessions._kept.values()) <= sessions.max_bytes
    assert sessions.found + sessions.made == 48
    for session, counted in sessions._kept.values():
        assert counted == POSITION * session.positions + HIDDEN and session.positions == session.num_events + 1


def test_filters_are_as_many_as_sessions():
    sessions = [RECOMMENDER.session(), RECOMMENDER.session(["i001"])]
    for name in ("exclude", "allow", "only"):
        for entries in (1, 3):
            with pytest.raises(HfGrError, match=f"{name} has {entries} entries for 2 sessions; give one for each"):
                recommend_many(sessions, 3, **{name: [None] * entries})
    with pytest.raises(HfGrError, match="there are no sessions to answer"):
        recommend_many([], 3)


def test_filters_of_a_session_mask_its_list():
    session = RECOMMENDER.session(STREAM[:4])
    whole = session.recommend(40, num_beams=40)
    agree(session.recommend(10, num_beams=40, exclude=[item for item, _ in whole[:10]]), whole[10:20])
    agree(
        session.recommend(40, num_beams=40, **FILTERS),
        [pair for pair in whole if pair[0] in FILTERS["allow"] and pair[0] not in FILTERS["exclude"]],
    )
