import pytest
import torch
import torch.nn.functional as F

from hf_gr.models import TREE_MODEL_TYPES, add_dropout, from_scratch


P = 0.25
IDS = torch.tensor([[0, 1, 2, 2, 1]])


def model_of(architecture="qwen3"):
    return from_scratch({"architecture": architecture, "layers": 2, "width": 32})[0].float()


@pytest.mark.parametrize("architecture", TREE_MODEL_TYPES)
def test_elements_are_dropped_at_five_places_of_two_layers_while_training(architecture, monkeypatch):
    model, shapes = model_of(architecture), []

    def counted(hidden, p, training):
        assert p == P
        if training:
            shapes.append(hidden.shape)
        return hidden

    add_dropout(model, P)
    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", counted)
        model.eval()(IDS)
        assert not shapes
        model.train()(IDS)
        assert shapes == [(1, 5, 32)] * 5
    ones, twos = (model(IDS).logits for _ in range(2))
    assert not torch.equal(ones, twos)


def test_the_share_dropped_is_p_and_the_mean_stays():
    model = model_of()
    add_dropout(model, P)
    torch.nn.init.ones_(model.get_input_embeddings().weight)
    found = model.train().get_input_embeddings()(torch.ones(1, 2000, dtype=torch.int64))
    assert abs((found == 0).float().mean() - P) < 0.01
    assert torch.equal(found[found != 0].unique(), torch.tensor([1 / (1 - P)]))


def test_the_model_stays_a_plain_one(tmp_path):
    model = model_of().eval()
    before, names = model(IDS).logits, list(model.state_dict())
    add_dropout(model, P)
    assert list(model.state_dict()) == names and torch.equal(model.eval()(IDS).logits, before)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.train()(IDS).logits, again.eval()(IDS).logits)
    assert torch.equal(again(IDS).logits, before)


def test_gradients_under_checkpointing_see_the_same_draw():
    model = model_of()
    add_dropout(model, P)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model.train()(IDS).logits.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(*gradients, strict=True))
