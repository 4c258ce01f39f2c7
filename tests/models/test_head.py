import inspect

import pytest
import torch
from accelerate import cpu_offload
from tiny import tiny_lm
from transformers import LlamaConfig, Qwen3Config

from hf_gr.decoding import check_model
from hf_gr.errors import HfGrError
from hf_gr.models import add_inner_call, code_logits, last_hidden


TOKENS = torch.tensor([258, 3, 77, 3])


class Wrapped(torch.nn.Module):
    """Stands in the head's place as an adapter does: the old head plus something of its own."""

    def __init__(self, head: torch.nn.Linear):
        super().__init__()
        self.head = head
        self.low = torch.nn.Linear(head.in_features, head.out_features, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden) + self.low(hidden)


def with_bias(model):
    head = torch.nn.Linear(32, 259, bias=True)
    torch.nn.init.normal_(head.bias)
    model.set_output_embeddings(head)
    return model


def wrapped(model):
    model.set_output_embeddings(Wrapped(model.get_output_embeddings()))
    return model


@pytest.mark.parametrize("change", [lambda model: model, with_bias, wrapped], ids=["plain", "bias", "wrapped"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_some_tokens_are_columns_of_all(change, tied):
    model = change(tiny_lm(tie_word_embeddings=tied))
    output = model(torch.randint(3, 259, (2, 7)), output_hidden_states=True)
    hidden = output.hidden_states[-1].flatten(0, 1)
    found = code_logits(model, hidden, TOKENS)
    assert found.shape == (14, 4) and found.dtype == torch.float32
    assert torch.allclose(found, output.logits.flatten(0, 1)[:, TOKENS], atol=1e-6)


def test_gradients_reach_the_rows_of_the_head_and_no_other():
    model = tiny_lm()
    hidden = torch.randn(5, 32, requires_grad=True)
    code_logits(model, hidden, TOKENS).square().sum().backward()
    one = hidden.grad.clone(), model.get_output_embeddings().weight.grad.clone()
    hidden.grad, model.get_output_embeddings().weight.grad = None, None
    model.get_output_embeddings()(hidden)[:, TOKENS].square().sum().backward()
    other = hidden.grad, model.get_output_embeddings().weight.grad
    for found, expected in zip(one, other, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    assert (one[1].abs().sum(1) > 0).nonzero()[:, 0].tolist() == [3, 77, 258]


def test_half_precision_hidden_states_give_float32():
    model = tiny_lm().to(torch.bfloat16)
    assert code_logits(model, torch.randn(2, 32, dtype=torch.bfloat16), TOKENS).dtype == torch.float32


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
def test_the_plain_forward_stays_as_it_was(config_class):
    model = tiny_lm(config_class)
    ids = torch.randint(3, 259, (2, 6))
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "output_hidden_states": True}
    signature, before = inspect.signature(model.forward), model(**arguments)
    names = list(model.state_dict())
    add_inner_call(model)
    after = model(**arguments)
    assert inspect.signature(model.forward) == signature
    assert list(model.state_dict()) == names
    assert torch.equal(before.logits, after.logits) and torch.equal(before.loss, after.loss)
    assert all(torch.equal(*pair) for pair in zip(before.hidden_states, after.hidden_states, strict=True))
    assert torch.equal(model(ids).logits, before.logits) and torch.equal(model(ids, inner=None).logits, before.logits)
    generated = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert generated.shape == (2, 9) or (generated[:, 6:] == 1).any()


def test_inner_is_called_in_the_forward_and_its_answer_is_returned():
    model = tiny_lm()
    ids = torch.randint(3, 259, (2, 6))
    expected = model(ids, output_hidden_states=True).hidden_states[-1]
    add_inner_call(model)
    add_inner_call(model)  # a second stage may do it again
    found = model(inner=lambda: {"hidden": last_hidden(model, input_ids=ids, attention_mask=torch.ones_like(ids))})
    assert found.keys() == {"hidden"} and torch.equal(found["hidden"], expected)
    total = model(inner=lambda: code_logits(model, last_hidden(model, input_ids=ids)[:, -1], TOKENS).sum())
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_offloaded_head_is_asked_as_a_module():
    model = tiny_lm(tie_word_embeddings=False)
    hidden = torch.randn(5, 32)
    expected = code_logits(model, hidden, TOKENS)
    cpu_offload(model.lm_head, execution_device=torch.device("cpu"))
    assert model.lm_head.weight.device.type == "meta"
    assert torch.allclose(code_logits(model, hidden, TOKENS), expected, atol=1e-6)
    cpu_offload(model.model.embed_tokens, execution_device=torch.device("cpu"))
    with pytest.raises(HfGrError, match="first weights are offloaded"):
        check_model(model, TOKENS.tolist())


def test_the_twin_leaves_the_model_as_it_was():
    model = tiny_lm()
    before = {name: id(part) for name, part in model.named_modules()}
    code_logits(model, torch.randn(5, 32), TOKENS)
    assert {name: id(part) for name, part in model.named_modules()} == before
    assert "forward" not in vars(model)
