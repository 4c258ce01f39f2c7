import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories
from hf_gr.errors import HfGrError
from hf_gr.models import from_scratch
from hf_gr.vocabulary import SidVocabulary, add_vocabulary, context_values, reads_text, text_ids


OLD_SIZE = 259  # of the tiny tokenizer
SIZES = (20, 3)


def build(context="none", histories=None, catalog=None, **options):
    tokenizer, model = tiny_tokenizer(), tiny_lm()
    catalog = catalog or tiny_catalog(sizes=SIZES)
    vocabulary = add_vocabulary(
        tokenizer, model, catalog, max_history=3, context=context, histories=histories, **options
    )
    return tokenizer, model, catalog, vocabulary


def histories_of(rows: list[list[int]], ratings=None, behaviors=None) -> Histories:
    items = np.array([item for row in rows for item in row], np.int64)
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    users = np.array([f"u{row}" for row in range(len(rows))], dtype=object)
    return Histories(users, ptr, items, np.arange(len(items)), ratings, behaviors)


ROWS = [[4, 8, 15, 16, 23], [], [39, 0]]
RATINGS = np.array([1, 4.6, 5, np.nan, 2.4, 3, 3], np.float32)
BEHAVIORS = np.array(["view", "buy", None, "view", "cart", "view", "buy"], dtype=object)
HISTORIES = histories_of(ROWS, RATINGS, BEHAVIORS)


# ---------------------------------------------------------------- tokens


def test_the_new_tokens_are_special_and_stand_at_the_end():
    tokenizer, model, _, vocabulary = build("rating", HISTORIES)
    tokens = ["<items>", *(f"<s0_{c}>" for c in range(20)), *(f"<s1_{c}>" for c in range(3)), "<think_0>", "<think_1>"]
    tokens += [f"<rating_{value}>" for value in (0, 1, 2, 3, 5, "unknown")]
    assert vocabulary.token_ids == list(range(OLD_SIZE, OLD_SIZE + len(tokens)))
    ids = [vocabulary.start_id, *vocabulary.code_ids[0], *vocabulary.code_ids[1], *vocabulary.think_ids]
    ids += [vocabulary.context_ids[value] for value in [*"01235", "unknown"]]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == OLD_SIZE + len(tokens)
    assert vocabulary.num_levels == 2 and vocabulary.form == "flat"


# ---------------------------------------------------------------- grammar


@pytest.mark.parametrize("form", ["flat", "stepwise", "unordered", "upfront"])
def test_the_grammar_writes_the_catalog_in_the_models_tokens(form):
    _, _, catalog, vocabulary = build()
    gone = [row for row in range(40) if row % 3 == 0]
    grammar = replace(vocabulary, form=form).grammar(catalog.removed([f"i{row:03d}" for row in gone]))
    assert [grammar.codebook_tokens(level).tolist() for level in range(2)] == list(map(list, vocabulary.code_ids))
    assert grammar.num_items == 40 - len(gone)
    items = vocabulary.item_tokens(catalog)
    first, second = (torch.from_numpy(items[:, level]) for level in range(2))
    think = [torch.full((40,), token) for token in vocabulary.think_ids]
    orders = {"flat": [first, second], "stepwise": [think[0], first, think[1], second], "unordered": [second, first]}
    orders["upfront"] = orders["flat"]
    answers = torch.stack(orders[form], 1)
    assert np.array_equal(grammar.codes(answers).numpy(), catalog.codes)
    for sid, bucket in zip(catalog.codes, grammar.items(grammar.walk(answers)).tolist(), strict=True):
        same = set(np.flatnonzero((catalog.codes == sid).all(1))) - set(gone)
        assert {item for item in bucket if item >= 0} == same


def test_a_catalog_without_live_items_has_no_grammar():
    _, _, catalog, vocabulary = build()
    with pytest.raises(HfGrError, match="no live item; add items"):
        vocabulary.grammar(catalog.removed(catalog.item_ids))


def test_the_grammar_puts_the_more_popular_of_a_shared_sid_first():
    catalog = SidCatalog.from_codes(np.zeros((3, 1)), tiny_catalog(num_items=3).items, (2,), np.array([1, 5, 5]))
    vocabulary = build(catalog=catalog)[3]
    grammar = vocabulary.grammar(catalog)
    assert grammar.items(grammar.walk(torch.tensor([[vocabulary.code_ids[0][0]]]))).tolist() == [[1, 2, 0]]


TOKENIZER, _, _, VOCABULARY = build("rating", HISTORIES)
CONTROL = ["<s0_17>", "<s1_2>", "<items>", "<think_0>", "<rating_3>", "<pad>", "<eos>", "<unk>"]
MIXED = st.lists(st.sampled_from(CONTROL) | st.text(st.characters(exclude_categories=["Cs"])), max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(MIXED)
def test_free_text_stays_text(text):
    ids = text_ids(TOKENIZER, text)
    assert len(ids) == len(text.encode())  # the tokenizer has no merges: one plain token a byte, nothing else
    assert all(3 <= token < OLD_SIZE for token in ids)
    assert not set(ids) & set(VOCABULARY.token_ids)


@pytest.mark.parametrize("token", CONTROL)
def test_the_control_tokens_do_exist(token):
    (token_id,) = TOKENIZER(token, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode([token_id]) == token and token_id not in text_ids(TOKENIZER, f"a {token} b")
    assert TOKENIZER(token, add_special_tokens=False)["input_ids"] == [token_id], "text changed the tokenizer"


def test_adding_twice_is_refused():
    tokenizer, model, catalog, _ = build()
    size = len(tokenizer)
    with pytest.raises(HfGrError, match="already holds SID tokens; continue that model with --from"):
        add_vocabulary(tokenizer, tiny_lm(), catalog, max_history=3)
    assert len(tokenizer) == size == model.get_input_embeddings().weight.shape[0]


# ---------------------------------------------------------------- rows


def uneven_lm(tied: bool, vocab_size: int = OLD_SIZE):
    """A model whose dimensions differ in mean and spread, and whose head differs from its embedding."""
    model = tiny_lm(tie_word_embeddings=tied, vocab_size=vocab_size)
    with torch.no_grad():
        for weight, offset in zip(matrices(model), (0.0, 3.0), strict=False):
            width = weight.shape[1]
            weight.mul_(torch.linspace(0.5, 8, width)).add_(torch.linspace(-1, 1, width) + offset)
    return model


def matrices(model) -> list[torch.Tensor]:
    tied = model.config.tie_word_embeddings
    return [model.get_input_embeddings().weight] + ([] if tied else [model.get_output_embeddings().weight])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("row_start", ["random", "codes", "text", "mean"])
def test_new_rows_have_the_scale_of_the_old(row_start, tied):
    model, tokenizer, catalog = uneven_lm(tied), tiny_tokenizer(), tiny_catalog(600, (400, 30))
    before = [weight.detach().clone() for weight in matrices(model)]
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=3, row_start=row_start)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    for old, weight in zip(before, matrices(model), strict=True):
        assert torch.equal(weight[:OLD_SIZE], old), "rows of the plain tokens must stay"
        mean, std = old.mean(0), old.std(0)
        for level, ids in enumerate(vocabulary.code_ids):
            rows = weight[list(ids)]
            if row_start == "mean":
                assert torch.allclose(rows.mean(0), mean, atol=0.01) and (rows.std(0) < 0.05 * std).all()
            elif row_start == "random":
                deviations = (rows.mean(0) - mean) / (std / len(rows) ** 0.5)
                assert deviations.abs().max() < 5 and deviations.std() > 0.3
                assert ((rows.std(0) / std - 1).abs() < 5 / (2 * len(rows)) ** 0.5).all()
            elif row_start == "codes":
                assert torch.allclose(rows.mean(0), mean, atol=1e-4) and torch.allclose(rows.std(0), std, rtol=1e-3)
            else:  # codes that no item has all start alike
                assert torch.allclose(rows.mean(0), mean, atol=1e-4) and torch.allclose(rows.std(0), std, rtol=1e-3)
                used = torch.from_numpy(np.bincount(catalog.codes[:, level], minlength=len(ids)) > 0)
                assert (rows[~used] == rows[~used][:1]).all() and len(rows[used].unique(dim=0)) > 20
        others = weight[[vocabulary.start_id, *vocabulary.think_ids]]
        assert row_start == "mean" or ((others - mean).abs() / std < 5).all()


@pytest.mark.parametrize("row_start", ["random", "codes", "text"])
def test_the_head_gets_rows_of_its_own(row_start):
    model, tokenizer = uneven_lm(tied=False), tiny_tokenizer()
    vocabulary = add_vocabulary(tokenizer, model, tiny_catalog(sizes=SIZES), max_history=3, row_start=row_start)
    embedding, head = (weight[vocabulary.token_ids] for weight in matrices(model))
    assert abs((head - embedding).mean().item() - 3) < 1


def test_rows_of_close_codes_are_close():
    """`codes` keeps the geometry: near code vectors give near rows."""
    catalog = tiny_catalog(sizes=SIZES)
    catalog.code_vectors[0][1] = catalog.code_vectors[0][0] + 1e-3
    _, model, _, vocabulary = build(catalog=catalog, row_start="codes")
    rows = model.get_input_embeddings().weight[list(vocabulary.code_ids[0])]
    distances = torch.cdist(rows, rows).detach()
    assert distances[0, 1] < 0.05 * distances[0, 2:].min()


def test_text_rows_follow_the_titles():
    """Codes of items with the same title start alike; another title starts elsewhere."""
    catalog = tiny_catalog(sizes=(3,), num_items=3)
    items = catalog.items.set_column(1, "title", pa.array(["same", "same", "other"]))
    catalog = SidCatalog.from_codes(np.array([[0], [1], [2]]), items, (3,))
    _, model, _, vocabulary = build(catalog=catalog, row_start="text")
    rows = model.get_input_embeddings().weight[list(vocabulary.code_ids[0])]
    assert torch.equal(rows[0], rows[1]) and not torch.allclose(rows[0], rows[2])


@pytest.mark.parametrize("row_start", ["random", "codes", "text", "mean"])
def test_one_code_on_a_level_still_starts_finite(row_start):
    _, model, _, vocabulary = build(catalog=tiny_catalog(sizes=(4, 1)), row_start=row_start)
    assert all(weight[vocabulary.token_ids].isfinite().all() for weight in matrices(model))


def test_the_seed_decides_the_rows():
    rows = [build(seed=seed)[1].get_input_embeddings().weight for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_codes_without_vectors_are_refused():
    bare = SidCatalog.from_codes(tiny_catalog().codes, tiny_catalog().items, (4, 4, 4))
    with pytest.raises(HfGrError, match="holds no code vectors; use random or text"):
        build(catalog=bare, row_start="codes")


def test_a_padded_model_keeps_its_size():
    """Models often have more rows than the tokenizer has tokens; the new tokens take those first."""
    model, tokenizer = uneven_lm(tied=True, vocab_size=512), tiny_tokenizer()
    old = model.get_input_embeddings().weight[:OLD_SIZE].detach().clone()
    with torch.no_grad():
        model.get_input_embeddings().weight[OLD_SIZE:] = 100.0
    vocabulary = add_vocabulary(tokenizer, model, tiny_catalog(sizes=SIZES), max_history=3)
    assert model.get_input_embeddings().weight.shape[0] == 512
    rows = model.get_input_embeddings().weight[vocabulary.token_ids]
    assert ((rows - old.mean(0)).abs() / old.std(0) < 6).all()


@pytest.mark.parametrize("architecture", ["qwen3", "gemma"])
def test_rows_of_a_model_of_sids_alone_start_as_its_other_weights(architecture):
    """Its three rows tell no scale: the new ones would share a direction drawn by chance."""
    model, tokenizer = from_scratch({"architecture": architecture, "layers": 1, "width": 64})
    catalog = tiny_catalog(600, (400, 30))
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=3)
    rows = model.get_input_embeddings().weight[vocabulary.token_ids]
    assert rows.std(0).mean().item() == pytest.approx(0.02, rel=0.05)
    assert rows.mean(0).abs().max() < 5 * 0.02 / len(rows) ** 0.5
    assert not reads_text(tokenizer)


def test_a_model_of_sids_alone_has_no_titles_to_start_from():
    model, tokenizer = from_scratch({"layers": 1, "width": 32})
    with pytest.raises(HfGrError, match="made from SIDs alone; use random or codes"):
        add_vocabulary(tokenizer, model, tiny_catalog(), max_history=3, row_start="text")
    model, tokenizer = from_scratch({"layers": 1, "width": 32, "text": True})
    add_vocabulary(tokenizer, model, tiny_catalog(), max_history=3, row_start="text")
    assert reads_text(tokenizer)


# ---------------------------------------------------------------- prompts


def written_by_hand(context: str, tokenizer, catalog, max_history: int) -> list[list[int]]:
    prompts, event = [], 0
    for row in ROWS:
        tokens = []
        for item in row:
            tokens.append([f"<s{level}_{code}>" for level, code in enumerate(catalog.codes[item])])
            if context == "rating":
                value = RATINGS[event]
                tokens[-1].append("<rating_0>" if np.isnan(value) else f"<rating_{round(float(value))}>")
            if context == "behavior":
                tokens[-1].append(f"<behavior_{BEHAVIORS[event] or 'unknown'}>")
            event += 1
        recent = tokens[-max_history:] if max_history else []
        text = ["<items>", *(token for one in recent for token in one)]
        prompts.append(tokenizer.convert_tokens_to_ids(text))
    return prompts


@pytest.mark.parametrize("max_history", [1, 3, 5, 99])
@pytest.mark.parametrize("context", ["none", "rating", "behavior"])
def test_prompts_are_written_as_said(context, max_history):
    tokenizer, catalog = tiny_tokenizer(), tiny_catalog(sizes=SIZES)
    vocabulary = add_vocabulary(
        tokenizer, tiny_lm(), catalog, max_history=max_history, context=context, histories=HISTORIES
    )
    assert vocabulary.prompts(HISTORIES, catalog) == written_by_hand(context, tokenizer, catalog, max_history)
    events = vocabulary.event_tokens(HISTORIES, catalog)
    assert events.shape == (7, 2 if context == "none" else 3)
    assert events[:, :2].tolist() == vocabulary.item_tokens(catalog)[HISTORIES.items].tolist()


@pytest.mark.parametrize("max_history", [1, 3, 99])
@pytest.mark.parametrize("context", ["none", "rating"])
def test_thoughts_up_front_end_every_prompt(context, max_history):
    tokenizer, catalog = tiny_tokenizer(), tiny_catalog(sizes=SIZES)
    settings = {"max_history": max_history, "context": context, "histories": HISTORIES}
    vocabulary = add_vocabulary(tokenizer, tiny_lm(), catalog, form="upfront", **settings)
    assert vocabulary.form == "upfront"
    thoughts = tokenizer.convert_tokens_to_ids(["<think_0>", "<think_1>"])
    by_hand = written_by_hand(context, tokenizer, catalog, max_history)
    assert vocabulary.prompts(HISTORIES, catalog) == [prompt + thoughts for prompt in by_hand]
    assert vocabulary.grammar(catalog).answer_length == 2


@pytest.mark.parametrize("form", ["flat", "stepwise", "unordered"])
def test_other_forms_think_in_no_prompt(form):
    _, _, catalog, vocabulary = build(form=form)
    assert vocabulary.form == form
    assert not set(vocabulary.think_ids) & set(chain(*vocabulary.prompts(HISTORIES, catalog)))


@pytest.mark.parametrize(("context", "seen"), [("rating", ["5"]), ("behavior", ["view"])])
def test_a_context_that_no_training_event_has_is_unknown(context, seen):
    """Validation may hold the first refund; models of earlier releases, without a token for it, say so."""
    _, _, catalog, vocabulary = build(context, HISTORIES)
    later = histories_of([[1, 2]], np.array([5, 4], np.float32), np.array(["view", "refund"], dtype=object))
    first, second = vocabulary.context_tokens(later)
    assert first == vocabulary.context_ids[seen[0]] and second == vocabulary.context_ids["unknown"]
    known = {value: token for value, token in vocabulary.context_ids.items() if value != "unknown"}
    with pytest.raises(HfGrError, match=r"is not among those the model knows \(.+\), and it is of a release whose"):
        replace(vocabulary, context_ids=known).prompts(later, catalog)
    assert len(replace(vocabulary, context_ids=known).prompts(later.cut(np.array([0]), np.array([1])), catalog)) == 1


def test_a_model_of_behaviors_has_a_token_for_unknown_ones():
    every = np.array(["view", "buy", "view", "view", "cart", "view", "buy"], dtype=object)
    tokenizer, _, _, vocabulary = build("behavior", replace(HISTORIES, behaviors=every))
    assert tokenizer.convert_ids_to_tokens(vocabulary.context_ids["unknown"]) == "<behavior_unknown>"


def test_context_must_be_there():
    _, _, catalog, rated = build("rating", HISTORIES)
    with pytest.raises(HfGrError, match="the dataset has no rating column; set context: none"):
        rated.prompts(histories_of([[1, 2]]), catalog)
    with pytest.raises(HfGrError, match="the dataset has no behavior column; set context: none"):
        build("behavior", histories_of([[1, 2]]))


def test_context_values():
    assert context_values(HISTORIES, "rating").tolist() == ["1", "5", "5", "0", "2", "3", "3"]
    assert context_values(HISTORIES, "behavior").tolist() == ["view", "buy", "unknown", "view", "cart", "view", "buy"]


# ---------------------------------------------------------------- on disk


@pytest.mark.parametrize(
    ("context", "form"), [("none", "stepwise"), ("rating", "flat"), ("none", "unordered"), ("none", "upfront")]
)
def test_what_is_saved_is_loaded(context, form, tmp_path):
    tokenizer, _, catalog, vocabulary = build(context, HISTORIES)
    vocabulary = replace(vocabulary, form=form)
    vocabulary.save(tmp_path)
    loaded = SidVocabulary.load(tmp_path)
    assert loaded == vocabulary and loaded.token_ids == vocabulary.token_ids
    assert loaded.prompts(HISTORIES, catalog) == vocabulary.prompts(HISTORIES, catalog)
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    loaded.check(catalog, again, tmp_path)
    assert text_ids(again, "<s0_17>") == text_ids(tokenizer, "<s0_17>")


def test_a_vocabulary_from_before_there_were_forms_is_flat(tmp_path):
    vocabulary = build()[3]
    vocabulary.save(tmp_path)
    file = tmp_path / "vocabulary.json"
    data = json.loads(file.read_text())
    assert data.pop("form") == "flat"
    file.write_text(json.dumps(data))
    assert SidVocabulary.load(tmp_path) == vocabulary


def test_a_plain_model_folder_has_no_vocabulary(tmp_path):
    with pytest.raises(HfGrError, match=r"has no vocabulary\.json: it is no model of hf_gr"):
        SidVocabulary.load(tmp_path)


def test_check_refuses_what_does_not_belong():
    tokenizer, _, catalog, vocabulary = build()
    vocabulary.check(catalog, tokenizer, "here")
    vocabulary.check(catalog.removed(["i003"]), tokenizer, "here")
    other = tiny_catalog(sizes=SIZES, seed=1)
    with pytest.raises(HfGrError, match=r"here: the catalog \(fingerprint .*\) is not the one .*again") as error:
        vocabulary.check(other, tokenizer, "here")
    assert other.fingerprint in str(error.value) and catalog.fingerprint in str(error.value)
    larger = build(catalog=tiny_catalog(sizes=(30, 3)))[0]  # its level 1 starts at another id
    smaller = build(catalog=tiny_catalog(sizes=(20,)))[0]
    for foreign in (tiny_tokenizer(), larger, smaller):
        with pytest.raises(HfGrError, match=r"here: the tokenizer does not hold the catalog's tokens \(found \["):
            vocabulary.check(catalog, foreign, "here")
