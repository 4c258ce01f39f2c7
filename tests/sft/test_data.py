"""Training rows, against a reference that cuts and labels histories one event at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NUM_ITEMS, tiny_lm, tiny_tokenizer
from tiny_runs import distinct_catalog

from hf_gr.dataset import Cases, Histories
from hf_gr.sft.data import IGNORED, held_out_rows, next_item_rows
from hf_gr.vocabulary import add_vocabulary


BEHAVIORS = ["view", "cart", "buy"]
CATALOG = distinct_catalog()


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


def vocabulary_of(max_history, context="none", histories=None):
    histories = histories or histories_of([200])
    return add_vocabulary(
        tiny_tokenizer(), tiny_lm(), CATALOG, max_history=max_history, context=context, histories=histories
    )


PLAIN = {size: vocabulary_of(size) for size in (1, 2, 5)}


def reference_event(histories, event, vocabulary):
    """Token ids of one event and their labels, spelt out."""
    sid = CATALOG.codes[histories.items[event]]
    tokens = [vocabulary.code_ids[level][code] for level, code in enumerate(sid)]
    labels = list(tokens)
    if vocabulary.context == "rating":
        tokens.append(vocabulary.context_ids[str(int(histories.ratings[event]))])
        labels.append(IGNORED)
    elif vocabulary.context == "behavior":
        tokens.append(vocabulary.context_ids[histories.behaviors[event]])
        labels.append(IGNORED)
    return tokens, labels


def reference_rows(histories, vocabulary):
    """Every user's rows, the latest window first."""
    rows = []
    for user in range(len(histories)):
        left = list(range(histories.ptr[user], histories.ptr[user + 1]))
        while left:
            left, window = left[: -(vocabulary.max_history + 1)], left[-(vocabulary.max_history + 1) :]
            ids, labels = [vocabulary.start_id], [IGNORED]
            for event in window:
                tokens, marked = reference_event(histories, event, vocabulary)
                ids += tokens
                labels += marked
            rows.append({"input_ids": ids, "labels": labels})
    return rows


@pytest.mark.parametrize("context", ["none", "rating", "behavior"])
@pytest.mark.parametrize("max_history", [1, 4, 50])
def test_rows_equal_the_reference(context, max_history):
    histories = histories_of([1, 2, 5, 9, 10, 11, 30])
    vocabulary = vocabulary_of(max_history, context, histories)
    assert next_item_rows(histories, CATALOG, vocabulary).to_list() == reference_rows(histories, vocabulary)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.sampled_from(sorted(PLAIN)), st.integers(0, 99))
def test_every_training_event_is_a_target_exactly_once(lengths, max_history, seed):
    histories, vocabulary = histories_of(lengths, seed), PLAIN[max_history]
    item_of = {tuple(tokens): item for item, tokens in enumerate(vocabulary.item_tokens(CATALOG).tolist())}
    taught, longest = [], 0
    for row in next_item_rows(histories, CATALOG, vocabulary):
        targets = [label for label in row["labels"] if label != IGNORED]
        assert row["input_ids"][0] == vocabulary.start_id and row["labels"][0] == IGNORED
        assert all(label in (token, IGNORED) for token, label in zip(row["input_ids"], row["labels"], strict=True))
        assert len(targets) % 3 == 0
        taught += [item_of[tuple(targets[start : start + 3])] for start in range(0, len(targets), 3)]
        longest = max(longest, len(targets) // 3)
    assert sorted(taught) == sorted(histories.items.tolist())
    assert longest == min(max_history + 1, max(lengths))


def test_the_longest_row_is_the_longest_prompt_and_its_answer():
    histories, vocabulary = histories_of([40]), PLAIN[5]
    longest_prompt = max(map(len, vocabulary.prompts(histories, CATALOG)))
    longest_row = max(len(row["input_ids"]) for row in next_item_rows(histories, CATALOG, vocabulary))
    assert longest_row == longest_prompt + 3


@pytest.mark.parametrize("context", ["none", "behavior"])
def test_held_out_rows_teach_their_target_only(context):
    histories = histories_of([3, 8, 1])
    targets = np.array([7, 0, 39])
    vocabulary = vocabulary_of(5, context, histories)
    rows = held_out_rows(Cases(histories, targets), CATALOG, vocabulary).to_list()
    for user, row in enumerate(rows):
        events = range(histories.ptr[user], histories.ptr[user + 1])
        prompt = [vocabulary.start_id]
        for event in list(events)[-5:]:
            prompt += reference_event(histories, event, vocabulary)[0]
        answer = [vocabulary.code_ids[level][code] for level, code in enumerate(CATALOG.codes[targets[user]])]
        assert row == {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def test_removed_items_stay_in_prompts_but_are_no_target():
    """The grammar does not lead to them: as targets they would teach some other code."""
    histories, vocabulary = histories_of([12, 30, 7]), PLAIN[5]
    gone = int(histories.items[4])
    catalog = CATALOG.removed([CATALOG.item_ids[gone]])
    sid = vocabulary.item_tokens(CATALOG)[gone].tolist()

    def without(labels):
        spans = [range(start, start + 3) for start in range(len(labels)) if labels[start : start + 3] == sid]
        hidden = {place for span in spans for place in span}
        return [IGNORED if place in hidden else label for place, label in enumerate(labels)], len(spans)

    removed = 0
    for row, expected in zip(
        next_item_rows(histories, catalog, vocabulary), reference_rows(histories, vocabulary), strict=True
    ):
        labels, spans = without(expected["labels"])
        assert row == {"input_ids": expected["input_ids"], "labels": labels}
        removed += spans
    assert removed == (histories.items == gone).sum()
    case = held_out_rows(Cases(histories, np.array([gone, 0, 1])), catalog, vocabulary)[0]
    assert case["input_ids"][-3:] == sid and set(case["labels"]) == {IGNORED}
