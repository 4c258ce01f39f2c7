"""Rows of every task, against a reference that writes histories one event at a time."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NUM_ITEMS, tiny_lm, tiny_tokenizer
from tiny_runs import distinct_catalog

from hf_gr.branches import IGNORED, fit
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Cases, Histories
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.models import sid_tokenizer
from hf_gr.packing import pack
from hf_gr.sft.tasks import (
    TASKS,
    build,
    held_out,
    mixture,
    next_item,
    query_to_sid,
    sid_history_to_title,
    sid_to_title,
    title_history_to_sid,
    title_to_sid,
)
from hf_gr.sft.writing import answer_tokens
from hf_gr.vocabulary import add_vocabulary


FORMS = ["flat", "stepwise", "upfront"]
BEHAVIORS = ["view", "cart", "buy"]
NAMELESS, TRICKY, LONG, WORDLESS = 3, 4, 5, 6  # rows of the catalog
LEVELS = 3


def catalog_of() -> SidCatalog:
    items = {
        "item_id": [f"i{row:03d}" for row in range(NUM_ITEMS)],
        "title": [f"Soft soap {row} with oil" for row in range(NUM_ITEMS)],
        "categories": [["Beauty", f"Kind {row % 3}"] if row % 2 else [] for row in range(NUM_ITEMS)],
        "brand": [f"Brand {row % 5}" if row % 3 else None for row in range(NUM_ITEMS)],
    }
    items["title"][NAMELESS] = ""
    items["title"][TRICKY] = "<items> <s0_2> <think_1> cream"
    items["title"][LONG] = "long " * 100
    items["title"][WORDLESS], items["categories"][WORDLESS], items["brand"][WORDLESS] = "", None, None
    return SidCatalog.from_codes(distinct_catalog().codes, pa.table(items), (4, 4, 4))


CATALOG = catalog_of()


def histories_of(lengths, seed=0) -> Histories:
    random = np.random.default_rng(seed)
    total = sum(lengths)
    return Histories(
        np.array([f"u{user}" for user in range(len(lengths))], dtype=object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        random.integers(0, NUM_ITEMS, total),
        np.arange(total),
        random.integers(1, 6, total).astype(np.float32),
        random.choice(np.array(BEHAVIORS, dtype=object), total),
    )


HISTORIES = histories_of([1, 2, 5, 0, 9, 10, 11, 30])
TOKENIZER, MODEL = tiny_tokenizer(), tiny_lm()
PLAIN = add_vocabulary(TOKENIZER, MODEL, CATALOG, max_history=5)


def vocabulary_of(max_history=5, context="none", form="flat"):
    if context == "none":
        return replace(PLAIN, max_history=max_history, form=form)
    vocabulary = add_vocabulary(
        tiny_tokenizer(), tiny_lm(), CATALOG, max_history=max_history, context=context, histories=histories_of([200])
    )
    return replace(vocabulary, form=form)


def characters(text: str) -> list[int]:
    """Token ids of the byte-level tokenizer, one character each."""
    return [TOKENIZER.convert_tokens_to_ids("Ġ" if one == " " else "Ċ" if one == "\n" else one) for one in text]


def text_of(tokens: list[int]) -> str:
    return "".join(TOKENIZER.convert_ids_to_tokens(tokens)).replace("Ġ", " ").replace("Ċ", "\n")


def sid_of(item, vocabulary) -> list[int]:
    return [vocabulary.code_ids[level][code] for level, code in enumerate(CATALOG.codes[item])]


def written(item, vocabulary) -> tuple[list[int], list[int]]:
    """An answer and its labels, spelt out."""
    tokens, labels = [], []
    if vocabulary.form == "upfront":
        for think in vocabulary.think_ids:
            tokens.append(think)
            labels.append(IGNORED)
    for level, code in enumerate(sid_of(item, vocabulary)):
        if vocabulary.form == "stepwise":
            tokens.append(vocabulary.think_ids[level])
            labels.append(IGNORED)
        tokens.append(code)
        labels.append(code)
    return tokens, labels


def event_tokens(histories, event, vocabulary) -> list[int]:
    tokens = sid_of(histories.items[event], vocabulary)
    if vocabulary.context == "rating":
        tokens.append(vocabulary.context_ids[str(int(histories.ratings[event]))])
    elif vocabulary.context == "behavior":
        tokens.append(vocabulary.context_ids[histories.behaviors[event]])
    return tokens


def reference_windows(histories, length):
    for user in range(len(histories)):
        left = list(range(histories.ptr[user], histories.ptr[user + 1]))
        while left:
            left, window = left[:-length], left[-length:]
            yield window


def reference_rows(histories, vocabulary, write, *, front=None, event=None, length=None, steps=1, decay=0.5, least=1):
    """Rows of histories, the latest window of each user first.

    Args:
        write: Tokens and labels of an item's answer, or `None` where it is no target.
        front, event: Tokens that open a row, and those of an event; left out: `<items>` and the SID with its context.
        least: Positions with fewer tokens before them get no answer.
    """
    front = [vocabulary.start_id] if front is None else front
    event = event or (lambda number: event_tokens(histories, number, vocabulary))
    rows = []
    for window in reference_windows(histories, length or vocabulary.max_history + 1):
        row = {"input_ids": list(front), "attach": [], "answers": [], "labels": [], "weights": []}
        for place, number in enumerate(window):
            for step, target in enumerate(window[place : place + steps]):
                found = write(histories.items[target])
                if found is None or len(row["input_ids"]) < least:
                    continue
                row["attach"].append(len(row["input_ids"]))
                row["answers"].append(found[0])
                row["labels"].append(found[1])
                row["weights"].append(decay**step)
            row["input_ids"] += event(number)
        if row["answers"]:
            rows.append(row)
    return rows


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", ["none", "rating", "behavior"])
@pytest.mark.parametrize(("max_history", "steps"), [(1, 1), (4, 1), (4, 3), (50, 2)])
def test_next_item_equals_the_reference(form, context, max_history, steps):
    vocabulary = vocabulary_of(max_history, context, form)
    expected = reference_rows(HISTORIES, vocabulary, lambda item: written(item, vocabulary), steps=steps, decay=0.7)
    assert next_item(HISTORIES, CATALOG, vocabulary, steps=steps, decay=0.7).to_list() == expected


@pytest.mark.parametrize("form", FORMS)
def test_the_trunk_predicts_every_next_item_as_well(form):
    vocabulary = vocabulary_of(form=form)
    plain = next_item(HISTORIES, CATALOG, vocabulary, steps=2).to_list()
    rows = next_item(HISTORIES, CATALOG, vocabulary, steps=2, trunk_weight=0.25).to_list()
    if form == "flat":
        assert rows == plain
        return
    flat = next_item(HISTORIES, CATALOG, replace(vocabulary, form="flat")).to_list()
    for row, branches, trunk in zip(rows, plain, flat, strict=True):
        count = len(branches["attach"])
        assert row["input_ids"] == branches["input_ids"]
        for name in ("attach", "answers", "labels"):
            assert row[name] == branches[name] + trunk[name]
        assert row["weights"] == branches["weights"] + [0.25] * (len(row["attach"]) - count)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 6), st.sampled_from(FORMS), st.integers(0, 99)
)
def test_every_training_event_is_a_target_exactly_once(lengths, max_history, form, seed):
    histories, vocabulary = histories_of(lengths, seed), vocabulary_of(max_history, form=form)
    item_of = {tuple(tokens): item for item, tokens in enumerate(vocabulary.item_tokens(CATALOG).tolist())}
    taught, longest = [], 0
    for row in next_item(histories, CATALOG, vocabulary):
        taught += [item_of[tuple(token for token in labels if token != IGNORED)] for labels in row["labels"]]
        longest = max(longest, len(row["answers"]))
        assert row["weights"] == [1.0] * len(row["answers"])
    assert sorted(taught) == sorted(histories.items.tolist())
    assert longest == min(max_history + 1, max(lengths))


def test_the_longest_history_is_the_longest_prompt():
    vocabulary = vocabulary_of(5)
    longest_prompt = max(map(len, vocabulary.prompts(HISTORIES, CATALOG)))
    assert max(max(row["attach"]) for row in next_item(HISTORIES, CATALOG, vocabulary)) == longest_prompt


def test_flat_answers_stand_in_the_trunk_and_others_take_columns():
    columns = {form: pack(next_item(HISTORIES, CATALOG, vocabulary_of(5, form=form)).to_list()) for form in FORMS}
    assert not columns["flat"].branch.any()
    assert columns["stepwise"].branch.any() and columns["upfront"].branch.any()
    assert torch.equal(columns["flat"].labels, columns["stepwise"].labels)


@pytest.mark.parametrize("form", ["flat", "stepwise"])
def test_answers_are_what_the_grammar_reads(form):
    vocabulary = vocabulary_of(form=form)
    grammar = vocabulary.grammar(CATALOG)
    tokens, labels = answer_tokens(vocabulary, CATALOG, np.arange(NUM_ITEMS))
    assert tokens.shape == labels.shape == (NUM_ITEMS, grammar.answer_length)
    assert grammar.codes(torch.from_numpy(tokens)).tolist() == CATALOG.codes.tolist()
    assert grammar.alive(grammar.walk(torch.from_numpy(tokens))).all()
    assert (labels[:, list(grammar.code_columns)] != IGNORED).all() and (labels != IGNORED).sum() == NUM_ITEMS * LEVELS


def test_a_prompt_opens_every_history():
    prompt = characters("Next: ")
    prompted = replace(PLAIN, prompt_ids=tuple(prompt))
    for name in ("next_item", "sid_history_to_title", "query_to_sid", "title_to_sid"):
        plain = build(name, HISTORIES, CATALOG, PLAIN, TOKENIZER).to_list()
        for row in plain:
            start = row["input_ids"].index(PLAIN.start_id)
            row["input_ids"][start:start] = prompt
            row["attach"] = [attach + len(prompt) for attach in row["attach"]]
        assert build(name, HISTORIES, CATALOG, prompted, TOKENIZER).to_list() == plain, name
    cases = Cases(HISTORIES, np.arange(len(HISTORIES)))
    trunks = [row["input_ids"] for row in held_out(cases, CATALOG, prompted)]
    assert trunks == prompted.prompts(HISTORIES, CATALOG)


def test_no_events_are_no_rows():
    for form in FORMS:
        rows = next_item(histories_of([0, 0]), CATALOG, vocabulary_of(form=form))
        assert len(rows) == 0 and rows.features == next_item(HISTORIES, CATALOG, PLAIN).features


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("context", ["none", "behavior"])
def test_held_out_rows_teach_their_target_only(form, context):
    targets = np.array([7, 0, 39, 1, 2, 3, 4, 5])
    vocabulary = vocabulary_of(4, context, form)
    rows = held_out(Cases(HISTORIES, targets), CATALOG, vocabulary).to_list()
    assert len(rows) == len(targets)
    prompts = replace(vocabulary, form="flat").prompts(HISTORIES, CATALOG)
    for user, row in enumerate(rows):
        events = range(HISTORIES.ptr[user], HISTORIES.ptr[user + 1])
        prompt = [vocabulary.start_id]
        for event in list(events)[-4:]:
            prompt += event_tokens(HISTORIES, event, vocabulary)
        tokens, labels = written(targets[user], vocabulary)
        expected = {"input_ids": prompt, "attach": [len(prompt)], "answers": [tokens], "labels": [labels]}
        assert row == expected | {"weights": [1.0]}
        assert prompt == prompts[user]


def test_removed_items_stay_in_histories_but_are_no_target():
    """The grammar does not lead to them: as targets they would teach some other code."""
    gone = int(HISTORIES.items[4])
    catalog = CATALOG.removed([CATALOG.item_ids[gone]])

    def write(item):
        return None if item == gone else written(item, PLAIN)

    for steps in (1, 3):
        rows = next_item(HISTORIES, catalog, PLAIN, steps=steps).to_list()
        assert rows == reference_rows(HISTORIES, PLAIN, write, steps=steps)
    assert any(sid_of(gone, PLAIN) == row["input_ids"][1 + 3 * k : 4 + 3 * k] for row in rows for k in range(6))
    two = replace(histories_of([1, 3]), items=np.array([gone, 1, 2, 3]))
    expected = reference_rows(two, PLAIN, write)
    assert next_item(two, catalog, PLAIN).to_list() == expected and len(expected) == 1
    assert len(query_to_sid(two, catalog, PLAIN, TOKENIZER, seed=0)) == 1
    cases = Cases(histories_of([3, 8]), np.array([gone, (gone + 1) % NUM_ITEMS]))
    kept = held_out(cases, catalog, PLAIN).to_list()
    assert kept == held_out(cases, CATALOG, PLAIN).to_list()[1:]

    sid, title = sid_of(gone, PLAIN), [*characters(CATALOG.titles[gone]), TOKENIZER.eos_token_id]
    for name in TASKS:
        rows = build(name, HISTORIES, catalog, PLAIN, TOKENIZER)
        taught = [[token for token in labels if token != IGNORED] for row in rows for labels in row["labels"]]
        assert len(taught) > 3 and sid not in taught and title not in taught, name


def test_what_cannot_be_trained_is_refused():
    for wrong in ({"steps": 0}, {"decay": 0.0}, {"decay": 1.5}):
        with pytest.raises(HfGrError, match="steps is"):
            next_item(HISTORIES, CATALOG, PLAIN, **wrong)
    with pytest.raises(HfGrError, match="'nextitem' is no task; choose from next_item, "):
        build("nextitem", HISTORIES, CATALOG, PLAIN, TOKENIZER)


# text


def titles_of(max_text) -> list[list[int]]:
    return [characters(title)[:max_text] for title in CATALOG.titles]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("max_text", [64, 8])
def test_title_to_sid(form, max_text):
    vocabulary = vocabulary_of(form=form)
    expected = []
    for item, title in enumerate(titles_of(max_text)):
        if title:
            trunk, (tokens, labels) = [*title, vocabulary.start_id], written(item, vocabulary)
            row = {"input_ids": trunk, "attach": [len(trunk)], "answers": [tokens], "labels": [labels]}
            expected.append(row | {"weights": [1.0]})
    assert len(expected) == NUM_ITEMS - 2
    assert title_to_sid(CATALOG, vocabulary, TOKENIZER, max_text=max_text).to_list() == expected


def test_a_title_is_asked_as_the_query_of_a_cold_user():
    recommender = Recommender(MODEL, TOKENIZER, CATALOG, PLAIN)
    [prompt] = recommender.prompts(histories_of([0]), [CATALOG.titles[TRICKY]])
    trunks = [row["input_ids"] for row in title_to_sid(CATALOG, PLAIN, TOKENIZER)]
    assert prompt in trunks
    assert prompt.count(PLAIN.start_id) == 1  # the title's own stayed characters
    assert not set(prompt[:-1]) & set(PLAIN.token_ids)


@pytest.mark.parametrize("form", FORMS)
def test_sid_to_title(form):
    vocabulary, end = vocabulary_of(form=form), TOKENIZER.eos_token_id
    expected = []
    for item, title in enumerate(titles_of(64)):
        if title:
            trunk, answer = [vocabulary.start_id, *sid_of(item, vocabulary), *characters("\nTitle:")], [*title, end]
            row = {"input_ids": trunk, "attach": [len(trunk)], "answers": [answer], "labels": [answer]}
            expected.append(row | {"weights": [1.0]})
    assert sid_to_title(CATALOG, vocabulary, TOKENIZER).to_list() == expected


@pytest.mark.parametrize("form", FORMS)
def test_title_history_to_sid(form):
    vocabulary, titles = vocabulary_of(5, form=form), titles_of(64)

    def write(item):
        tokens, labels = written(item, vocabulary)
        return [vocabulary.start_id, *tokens], [IGNORED, *labels]

    for max_titles, length in ((20, 6), (2, 3)):
        expected = reference_rows(
            HISTORIES,
            vocabulary,
            write,
            front=[],
            event=lambda number: [*titles[HISTORIES.items[number]], *characters("\n")],
            length=length,
        )
        found = title_history_to_sid(HISTORIES, CATALOG, vocabulary, TOKENIZER, max_titles=max_titles)
        assert found.to_list() == expected


@pytest.mark.parametrize("context", ["none", "rating"])
def test_sid_history_to_title(context):
    vocabulary, titles = vocabulary_of(5, context, "stepwise"), titles_of(64)
    marker, end = characters("\nTitle:"), TOKENIZER.eos_token_id

    def write(item):
        if titles[item]:
            return [*marker, *titles[item], end], [IGNORED] * len(marker) + [*titles[item], end]
        return None

    expected = reference_rows(HISTORIES, vocabulary, write)
    assert sid_history_to_title(HISTORIES, CATALOG, vocabulary, TOKENIZER).to_list() == expected


@pytest.mark.parametrize(("form", "context"), [("flat", "none"), ("stepwise", "behavior"), ("upfront", "none")])
def test_queries_are_the_targets_own_words_before_its_history(form, context):
    vocabulary = vocabulary_of(4, context, form)
    histories = histories_of([6] * 300 + [0, 1])
    rows = query_to_sid(histories, CATALOG, vocabulary, TOKENIZER, seed=1).to_list()
    item_of = {tuple(tokens): item for item, tokens in enumerate(vocabulary.item_tokens(CATALOG).tolist())}
    drawn, kinds, user = Counter(), Counter(), -1
    for row in rows:
        opened = row["input_ids"].index(vocabulary.start_id)
        query, history = text_of(row["input_ids"][:opened]), row["input_ids"][opened:]
        [answer], [labels] = row["answers"], row["labels"]
        item = item_of[tuple(token for token in labels if token != IGNORED)]
        assert (answer, labels) == written(item, vocabulary)
        assert row["attach"] == [len(row["input_ids"])] and row["weights"] == [1.0]

        def prompt_before(user, place):
            start = histories.ptr[user]
            events = range(max(start, start + place - 4), start + place)
            return sum((event_tokens(histories, event, vocabulary) for event in events), [vocabulary.start_id])

        places = []
        while not places:  # users come in order, at most one row each
            user += 1
            taken = histories.items[histories.ptr[user] : histories.ptr[user + 1]]
            places = [n for n in np.flatnonzero(taken == item) if prompt_before(user, n) == history]
        drawn[int(places[0])] += 1
        parts = query.split()
        title, brand = CATALOG.titles[item].split(), CATALOG.items["brand"][item].as_py()
        categories = CATALOG.items["categories"][item].as_py() or []
        if query == brand:
            kinds["brand"] += 1
        elif query in (*categories, " ".join(categories)):
            kinds["categories"] += 1
        else:
            kinds[f"title {len(parts)}"] += 1
            assert 1 <= len(parts) <= 3 and is_part(parts, title)
    assert len(rows) >= 295  # of 302 users, those who took only what has no words and the empty one are left out
    assert set(kinds) == {"brand", "categories", "title 1", "title 2", "title 3"} and min(kinds.values()) > 10
    assert set(drawn) == set(range(6)) and min(drawn.values()) > 20
    again = query_to_sid(histories, CATALOG, vocabulary, TOKENIZER, seed=1).to_list()
    assert again == rows != query_to_sid(histories, CATALOG, vocabulary, TOKENIZER, seed=2).to_list()


def is_part(words, of) -> bool:
    """Whether some words stand in this order among others."""
    left = iter(of)
    return all(word in left for word in words)


def test_queries_are_cut_and_stay_text():
    taken = replace(histories_of([3]), items=np.array([TRICKY, TRICKY, TRICKY]))
    for seed in range(30):
        [row] = query_to_sid(taken, CATALOG, PLAIN, TOKENIZER, seed=seed, max_text=7)
        opened = row["input_ids"].index(PLAIN.start_id)
        assert 0 < opened <= 7 and not set(row["input_ids"][:opened]) & set(PLAIN.token_ids)


def test_a_tokenizer_without_text_or_end_is_refused():
    words = sid_tokenizer()
    vocabulary = add_vocabulary(words, tiny_lm(), CATALOG, max_history=5)
    for name in TASKS:
        if name == "next_item":
            assert len(build(name, HISTORIES, CATALOG, vocabulary, words))
        else:
            with pytest.raises(HfGrError, match="the task needs texts"):
                build(name, HISTORIES, CATALOG, vocabulary, words)
    endless = tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(HfGrError, match="eos_token"):
        sid_to_title(CATALOG, PLAIN, endless)


# all together


def test_build_is_the_task_itself():
    given = (HISTORIES, CATALOG, PLAIN, TOKENIZER)
    expected = {
        "next_item": next_item(*given[:3], steps=2, decay=0.3),
        "title_to_sid": title_to_sid(*given[1:], max_text=9),
        "sid_to_title": sid_to_title(*given[1:], max_text=9),
        "title_history_to_sid": title_history_to_sid(*given, max_text=9),
        "sid_history_to_title": sid_history_to_title(*given, max_text=9),
        "query_to_sid": query_to_sid(*given, seed=4, max_text=9),
    }
    assert list(expected) == list(TASKS)
    for name, rows in expected.items():
        found = build(name, *given, steps=2, decay=0.3, max_text=9, seed=4)
        assert found.to_list() == rows.to_list() and found.features == rows.features, name


def test_all_tasks_are_packed_together():
    vocabulary = vocabulary_of(form="stepwise")
    tasks = {name: build(name, HISTORIES, CATALOG, vocabulary, TOKENIZER) for name in TASKS}
    rows = [part for row in mixture(tasks, dict.fromkeys(TASKS, 1), 0) for part in fit(row, 600)]
    packed = pack(rows, think_ids=vocabulary.think_ids, max_columns=600)
    labels = [token for row in rows for answer in row["labels"] for token in answer if token != IGNORED]
    assert packed.labels[packed.labels != IGNORED].tolist() == labels


def numbered(size, first=0):
    rows = next_item(histories_of([1] * size), CATALOG, PLAIN)
    return rows.add_column("number", list(range(first, first + size)))


def test_a_mixture_takes_rows_by_weight():
    tasks = {"a": numbered(10), "b": numbered(6, 100), "c": numbered(7, 200), "d": numbered(5, 300)}
    mixed = mixture(tasks, {"b": 2, "a": 0.5, "c": 1.6, "d": 0}, seed=3)
    counts = Counter(mixed["number"])
    assert sum(counts.values()) == len(mixed) == 12 + 5 + 11
    assert all(counts[number] == 2 for number in range(100, 106))
    assert sorted(counts[number] for number in range(10)) == [0] * 5 + [1] * 5
    assert sorted(counts[number] for number in range(200, 207)) == [1] * 3 + [2] * 4
    assert not any(counts[number] for number in range(300, 305))
    assert mixture(tasks, {"b": 2, "a": 0.5, "c": 1.6}, seed=3)["number"] == mixed["number"]
    assert len({tuple(mixture(tasks, {"a": 0.5}, seed)["number"]) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"e": 1}, "task 'e', but has rows of a, b"), ({"a": -1}, "weight -1"), ({"a": 0}, "no rows"), ({}, "no rows")],
)
def test_a_mixture_of_nothing_is_refused(weights, message):
    with pytest.raises(HfGrError, match=message):
        mixture({"a": numbered(3), "b": numbered(2)}, weights, 0)
