"""Rows of branches with continuous thoughts against one plain row per answer, made anew for every thought."""

import pytest
import torch
from tiny import tiny_lm
from torch import nn
from transformers import LlamaConfig, Qwen3Config

from hf_gr.branches import Row
from hf_gr.errors import HfGrError
from hf_gr.models import add_inner_call, feedback, read_thoughts
from hf_gr.packing import pack


THINKS = (200, 201, 202)


def stepwise(codes, thinks=THINKS):
    return [token for pair in zip(thinks, codes, strict=True) for token in pair]


def row_of(trunk, branches) -> Row:
    """Labels are the codes; `branches` are (attach, answer)."""
    return Row(
        input_ids=trunk,
        attach=[attach for attach, _ in branches],
        answers=[answer for _, answer in branches],
        labels=[[-100 if token in THINKS else token for token in answer] for _, answer in branches],
        weights=[1.0] * len(branches),
    )


ROWS = [
    row_of(
        [3, 10, 11, 12, 5, 6, 7], [(1, stepwise([10, 11, 12])), (4, stepwise([5, 6, 7])), (7, stepwise([8, 8, 8]))]
    ),
    row_of([3, 30, 31], [(3, stepwise([40, 41, 42]))]),
    row_of([3, 4, 5, 6, 7], [(2, stepwise([8, 9, 8])), (2, [50, 51, 52]), (5, [7, 8, 9, 10]), (3, [6, 7])]),
    row_of([9, 9], [(1, [60]), (2, [*THINKS, 61, 62, 63])]),
]  # answers with thoughts before each code, with all of them up front, and with none


def case(config_class, rows=ROWS, columns=0, scale=0.3):
    model = tiny_lm(config_class)
    feed = nn.Linear(32, 32, bias=False)
    torch.manual_seed(1)
    nn.init.normal_(feed.weight, std=scale)
    return model, feed, pack(rows, think_ids=THINKS, max_columns=columns)


def naive(model, feed, rows):
    """Hidden states that predict each label, and those of each thought, of every answer in order."""
    predicting, thinking = [], []
    for row in rows:
        for attach, answer, labels in zip(row["attach"], row["answers"], row["labels"], strict=True):
            embedded = model.get_input_embeddings()(torch.tensor([row["input_ids"][:attach]]))
            for token in answer[:-1]:
                own = model.get_input_embeddings()(torch.tensor([[token]]))
                if token in THINKS:
                    own = own + feed(model.base_model(inputs_embeds=embedded).last_hidden_state[:, -1:])
                embedded = torch.cat([embedded, own], dim=1)
            hidden = model.base_model(inputs_embeds=embedded).last_hidden_state[0]
            predicting.append(torch.stack([hidden[attach - 1 + i] for i, label in enumerate(labels) if label != -100]))
            if THINKS[0] in answer:
                thinking.append(torch.stack([hidden[attach + answer.index(think)] for think in THINKS]))
    return predicting, thinking


def packed_states(model, feed, packed):
    hidden = read_thoughts(model, packed, feed)
    assert hidden.shape == (*packed.input_ids.shape, 32)
    hidden = hidden.flatten(0, 1)
    predicting = [
        hidden[columns[labels != -100]] for columns, labels in zip(packed.predictors, packed.labels, strict=True)
    ]
    return predicting, [hidden[columns] for columns in packed.thoughts if columns[0] >= 0]


def gradients(model, feed, states):
    torch.manual_seed(2)
    model.zero_grad()
    feed.zero_grad()
    sum((torch.randn_like(values) * values).sum() for group in states for values in group).backward()
    return [parameter.grad.clone() for parameter in (*model.base_model.parameters(), *feed.parameters())]


@pytest.mark.parametrize("columns", [0, 40])
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
def test_values_and_gradients_are_those_of_one_row_per_answer(config_class, columns):
    model, feed, packed = case(config_class, columns=columns)
    assert (packed.trunk == -1).any() and (packed.trunk.max(1).values > packed.trunk[:, 0]).any(), "padding, sharing"
    states, expected = packed_states(model, feed, packed), naive(model, feed, ROWS)
    for group, wanted in zip(states, expected, strict=True):
        assert [len(own) for own in group] == [len(own) for own in wanted]
        for own, other in zip(group, wanted, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    found, wanted = gradients(model, feed, states), gradients(model, feed, expected)
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    assert found[-1].abs().max() > 0.1


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
def test_a_feed_of_zeros_is_the_plain_forward(config_class):
    model, feed, packed = case(config_class, scale=0.0)
    plain = model.base_model(**packed.inputs("sdpa", torch.float32)).last_hidden_state
    real = packed.trunk >= 0
    found = read_thoughts(model, packed, feed)
    torch.testing.assert_close(found[real], plain[real], rtol=1e-4, atol=1e-5)
    assert (found[~real] == 0).all() and (~real).any()


def test_rows_without_thoughts_are_the_plain_forward():
    rows = [row_of([3, 4, 5], [(3, [6, 7, 8]), (2, [9, 9])]), row_of([3, 4, 5, 6], [(1, [4, 5, 6])])]
    model, feed, packed = case(LlamaConfig, rows)
    plain = model.base_model(**packed.inputs("sdpa", torch.float32)).last_hidden_state
    real = packed.trunk >= 0
    torch.testing.assert_close(read_thoughts(model, packed, feed)[real], plain[real], rtol=1e-4, atol=1e-5)


def test_branches_do_not_see_each_other():
    model, feed, packed = case(LlamaConfig)
    found = read_thoughts(model, packed, feed).flatten(0, 1)
    other = pack([*ROWS[:3], row_of([8, 7], [(2, stepwise([1, 2, 3]))])], think_ids=THINKS)
    changed = read_thoughts(model, other, feed).flatten(0, 1)
    for mine, theirs in zip(packed.thoughts[:4], other.thoughts[:4], strict=True):
        torch.testing.assert_close(found[mine], changed[theirs], rtol=1e-4, atol=1e-5)


def test_it_runs_under_autocast_and_in_half_precision():
    model, feed, packed = case(LlamaConfig)
    exact = read_thoughts(model, packed, feed)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = read_thoughts(model, packed, feed)
    assert mixed.isfinite().all() and (mixed - exact).abs().mean() < 0.05
    half = read_thoughts(model.to(torch.bfloat16), packed, feed)
    assert half.dtype == torch.bfloat16 and (half - exact).abs().mean() < 0.05


def test_it_runs_inside_the_wrapped_forward():
    model, feed, packed = case(LlamaConfig)
    expected = read_thoughts(model, packed, feed)
    add_inner_call(model)
    assert torch.equal(model(inner=lambda: read_thoughts(model, packed, feed)), expected)


def test_gradient_checkpointing_is_refused():
    model, feed, packed = case(LlamaConfig)
    expected = read_thoughts(model, packed, feed)
    model.gradient_checkpointing_enable()
    assert torch.equal(read_thoughts(model.eval(), packed, feed), expected), "an evaluation recomputes nothing"
    model.train()
    with pytest.raises(HfGrError, match="needs a cache, which gradient checkpointing has not; turn one of them off"):
        read_thoughts(model, packed, feed)


def test_what_is_fed_back_keeps_the_hidden_states_dtype():
    feed = nn.Linear(4, 4, bias=False)
    hidden = torch.randn(2, 4)
    assert torch.equal(feedback(feed, hidden), hidden @ feed.weight.T)
    assert feedback(feed, hidden.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("columns", [0, 40])
def test_a_pass_for_the_trunks_and_one_for_every_thought(columns):
    model, feed, packed = case(LlamaConfig, columns=columns)
    fed: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].shape[1]))
    read_thoughts(model, packed, feed)
    hook.remove()
    assert len(fed) == 1 + len(THINKS) and sum(fed) < 2 * packed.input_ids.shape[1]
