"""The network by NumPy lines: cross layers, target attention and its mask, item vectors, and saving."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hf_gr.models.click import PADDING, ClickConfig, ClickModel, CrossLayer, TargetAttention


ITEMS = 12


def small_model(**settings: object) -> ClickModel:
    torch.manual_seed(0)
    given = {"hidden_size": 6, "deep_sizes": [5], "category_sizes": [4, 3], "num_numbers": 1, "initializer_range": 0.5}
    model = ClickModel(ClickConfig(ITEMS, **(given | settings)))
    return model.eval()


def some_rows(rows: int = 4, length: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "history": torch.randint(ITEMS, (rows, length), generator=generator),
        "candidates": torch.randint(ITEMS, (rows,), generator=generator),
        "categories": torch.randint(3, (rows, 2), generator=generator),
        "numbers": torch.randn(rows, 1, generator=generator),
    }


def test_a_cross_layer_is_a_line_of_numpy():
    layer = CrossLayer(5)
    torch.nn.init.normal_(layer.linear.bias)
    first, x = torch.randn(3, 5), torch.randn(3, 5)
    weight, bias = layer.linear.weight.detach().numpy(), layer.linear.bias.detach().numpy()
    expected = first.numpy() * (x.numpy() @ weight.T + bias) + x.numpy()
    assert np.allclose(layer(first, x).detach().numpy(), expected, atol=1e-6)


def test_attention_is_a_softmax_over_what_is_there():
    attention = TargetAttention(4)
    candidate, history = torch.randn(3, 4), torch.randn(3, 5, 4)
    lengths = [5, 2, 0]
    real = torch.arange(5) < torch.tensor(lengths)[:, None]
    found = attention(candidate, history, real).detach().numpy()
    query, key = (layer.weight.detach().numpy() for layer in (attention.query, attention.key))
    for row, length in enumerate(lengths):
        read = history[row, :length].numpy()
        scores = np.exp((read @ key.T) @ (query @ candidate[row].numpy()) / 2)
        expected = scores @ read / scores.sum() if length else np.zeros(4)
        assert np.allclose(found[row], expected, atol=1e-5)


@pytest.mark.parametrize("gates", [False, True])
def test_padding_changes_nothing_and_history_does(gates):
    model, rows = small_model(gates=gates), some_rows()
    plain = model(**rows).logits
    padded = torch.cat([rows["history"], torch.full((4, 2), PADDING)], 1)
    assert torch.allclose(model(**rows | {"history": padded}).logits, plain, atol=1e-6)
    other = model(**rows | {"history": (rows["history"] + 1) % ITEMS}).logits
    assert (other - plain).abs().min() > 1e-5
    empty = [torch.full((4, length), PADDING) for length in (0, 3)]
    assert torch.allclose(*(model(**rows | {"history": history}).logits for history in empty), atol=1e-6)


def test_gates_scale_by_one_where_they_say_nothing():
    """A gate of weights 0 is 2σ(0) = 1: the model is the one without gates."""
    gated, plain, rows = small_model(gates=True), small_model(), some_rows()
    plain.load_state_dict(gated.state_dict(), strict=False)
    assert not torch.allclose(gated(**rows).logits, plain(**rows).logits)
    for layer in gated.deep:
        torch.nn.init.zeros_(layer.gate[-1].weight)
    assert torch.allclose(gated(**rows).logits, plain(**rows).logits, atol=1e-6)


@pytest.mark.parametrize("codes", ["learned", "tuned", "frozen"])
def test_items_of_one_semantic_id_are_one_item(codes, tmp_path):
    features = np.arange(ITEMS)[:, None] // 2 % 3 * np.array([1, 1])
    vectors = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    model = small_model(item_as="sid", sid_sizes=[3, 3], sid_widths=[4, 4], codes=codes, num_levels=2)
    model.start(features, vectors if codes != "learned" else ())
    rows = some_rows()
    even, odd = (rows | {"candidates": rows["candidates"] // 2 * 2 + place} for place in (0, 1))
    assert torch.allclose(model(**even).logits, model(**odd).logits, atol=1e-6)
    assert not torch.allclose(
        model(**even).logits, model(**rows | {"candidates": (even["candidates"] + 2) % ITEMS}).logits
    )
    assert model.items.tables[0].weight.requires_grad == (codes != "frozen")
    if codes != "learned":
        assert np.array_equal(model.items.tables[1].weight.detach().numpy(), vectors[1])
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**rows).logits, model(**rows).logits)


def test_the_loss_is_binary_cross_entropy():
    model, rows, labels = small_model(), some_rows(), torch.tensor([1.0, 0.0, 1.0, 1.0])
    logits = model(**rows).logits.detach().double().numpy()
    p = 1 / (1 + np.exp(-logits))
    expected = -np.mean(np.where(labels.numpy() > 0, np.log(p), np.log(1 - p)))
    assert float(model(**rows, labels=labels).loss.detach()) == pytest.approx(expected, abs=1e-6)
