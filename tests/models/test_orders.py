"""The most confident order against one plain row per prefix."""

from itertools import permutations

import numpy as np
import pytest
import torch
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import LlamaConfig, Qwen3Config

from hf_gr.branches import IGNORED, Row
from hf_gr.models import confident_orders
from hf_gr.models.dropout import add_dropout
from hf_gr.packing import pack
from hf_gr.vocabulary import add_vocabulary


def world(config_class, sizes=(4, 3, 5)):
    catalog = tiny_catalog(num_items=20, sizes=sizes)
    tokenizer, model = tiny_tokenizer(), tiny_lm(config_class)
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5, form="unordered")
    return model, vocabulary, catalog


def rows_of(vocabulary, catalog, random, count=5) -> list[Row]:
    """Histories of several lengths, each with answers at several places; one row in front that is all text."""
    rows = [Row(input_ids=[1, 2, 3], attach=[2], answers=[[1, 4]], labels=[[IGNORED, 4]], weights=[1.0])]
    for _ in range(count):
        events = random.integers(len(catalog), size=random.integers(1, 5))
        history = [vocabulary.start_id, *vocabulary.item_tokens(catalog, events).ravel().tolist()]
        width, number = catalog.num_levels, random.integers(1, 4)
        answers = vocabulary.item_tokens(catalog, random.integers(len(catalog), size=number))[:, ::-1].tolist()
        attach = (1 + width * random.integers(len(events) + 1, size=number)).tolist()
        rows.append(Row(input_ids=history, attach=attach, answers=answers, labels=answers, weights=[1.0] * number))
    return rows


@torch.no_grad()
def listed_order(model, prompt: list[int], answer: list[int]) -> list[int]:
    """Greedy by the model's own forward on one row per prefix."""
    order: list[int] = []
    while len(order) < len(answer):
        written = prompt + [answer[place] for place in order]
        logits = model(torch.tensor([written])).logits[0, -1]
        left = [place for place in range(len(answer)) if place not in order]
        order.append(max(left, key=lambda place: float(logits[answer[place]])))
    return order


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("crowd", [False, True])
def test_it_is_the_greedy_order_of_one_row_a_prefix(config_class, crowd):
    model, vocabulary, catalog = world(config_class)
    random, seen = np.random.default_rng(1), set()
    for _ in range(4):
        rows = rows_of(vocabulary, catalog, random)
        packed = pack(rows, crowd=crowd)
        answers = torch.tensor([answer[0] != 1 for row in rows for answer in row["answers"]])
        found = confident_orders(model, packed, answers, vocabulary.grammar(catalog)).tolist()
        expected = [
            listed_order(model, row["input_ids"][:attach], answer)
            for row in rows[1:]
            for attach, answer in zip(row["attach"], row["answers"], strict=True)
        ]
        assert found == expected
        seen |= {tuple(order) for order in found}
    assert len(seen) > 2  # else any fixed order would pass


def test_dropout_is_off_meanwhile_and_on_again():
    model, vocabulary, catalog = world(Qwen3Config)
    rows = rows_of(vocabulary, catalog, np.random.default_rng(0))[1:]
    packed, grammar = pack(rows), vocabulary.grammar(catalog)
    answers = torch.ones(len(packed.labels), dtype=torch.bool)
    calm = confident_orders(model, packed, answers, grammar)
    add_dropout(model, 0.5)
    model.train()
    assert confident_orders(model, packed, answers, grammar).tolist() == calm.tolist()
    assert model.training


def test_reordered_answers_are_what_pack_makes_of_them():
    _, vocabulary, catalog = world(LlamaConfig)
    rows = rows_of(vocabulary, catalog, np.random.default_rng(2))
    answers = torch.tensor([answer[0] != 1 for row in rows for answer in row["answers"]])
    orders = list(permutations(range(3)))
    chosen = [orders[number % 6] for number in range(int(answers.sum()))]
    found = pack(rows).reordered(answers, torch.tensor(chosen))
    places = iter(chosen)
    for row in rows[1:]:
        row["answers"] = [[answer[place] for place in next(places)] for answer in row["answers"]]
        row["labels"] = row["answers"]
    for name, value in vars(pack(rows)).items():
        assert torch.equal(getattr(found, name), value), name
