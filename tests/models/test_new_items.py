"""Rows of new items against a listing of the old ones, and what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from searching import Case, recursive
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import AutoModelForCausalLM, Qwen3Config

from hf_gr.models import dense_logits, grow_items
from hf_gr.vocabulary import add_vocabulary


OLD, NEW = 34, 6


def case_of(**settings: object) -> tuple[Case, torch.Tensor]:
    """A disturbed model of 34 items, and the SID tokens of six new ones, two of which share no prefix with those."""
    lm, everyone = tiny_lm(Qwen3Config), tiny_catalog()
    codes = everyone.codes.copy()
    codes[:OLD][codes[:OLD, 0] == 3, 0] = 2  # no old item has code 3 first
    codes[OLD:] = [[3, 0, 0], [3, 1, 2], codes[0], codes[5], [*codes[7, :2], (codes[7, 2] + 1) % 4], codes[9]]
    catalog = replace(everyone, codes=codes[:OLD], items=everyone.items[:OLD], live=everyone.live[:OLD])
    vocabulary = add_vocabulary(tiny_tokenizer(), lm, catalog, max_history=10)
    model, vocabulary = recursive(lm, vocabulary, catalog, **settings)
    tokens = torch.from_numpy(vocabulary.item_tokens(replace(catalog, codes=codes)))
    return Case(model, vocabulary.grammar(catalog), vocabulary, catalog), tokens[OLD:]


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def listed_start(rows: np.ndarray, sids: list[list[int]], sid: list[int]) -> np.ndarray:
    for length in range(len(sid), 0, -1):
        sharing = [row for row, own in enumerate(sids) if own[:length] == sid[:length]]
        if sharing:
            return rows[sharing].mean(0)
    return rows.mean(0)


def learned(model: torch.nn.Module, items: torch.Tensor) -> torch.Tensor:
    """Tokens of the learned codes."""
    first = torch.tensor([begin for begin, _ in model.config.codebooks])
    return model.model.assigned(items)[0] + first


@pytest.mark.parametrize("settings", [{}, {"item_width": 8}])
def test_rows_start_as_the_mean_of_the_longest_prefix(settings):
    case, codes = case_of(**settings)
    before = weights_of(case.model)
    sids = case.model.model.sids.tolist()
    table = before["model.items.embedding.weight"].numpy()
    rows = grow_items(case.model, codes, steps=0).model.items.embedding.weight.detach().numpy()
    for row, sid in zip(rows[OLD:], codes.tolist(), strict=True):
        np.testing.assert_allclose(row, listed_start(table, sids, sid), atol=1e-6)
    assert np.ptp(rows[OLD : OLD + 2], axis=0).max() == 0  # both have no prefix: the mean of all
    assert np.abs(rows[OLD + 2] - table.mean(0)).max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_items_are_read_as_their_sids_and_nothing_else_changes(dtype):
    case, codes = case_of()
    model = case.model.to(dtype)
    before = weights_of(model)
    assert grow_items(model, codes, steps=200) is model
    assert model.config.num_items == OLD + NEW == len(model.model.sids)
    assert torch.equal(learned(model, torch.arange(OLD, OLD + NEW)), codes)
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value[: len(before[name])], before[name]), name
        assert len(value) == len(before[name]) + NEW * (name in ("model.items.embedding.weight", "model.sids"))
    assert torch.equal(model.model.sids[OLD:], codes)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_steps_lead_down():
    losses = []
    for steps in (0, 5, 50):
        case, codes = case_of()
        model = grow_items(case.model, codes, steps=steps).model
        losses.append(model.input_loss(torch.arange(OLD, OLD + NEW)).sum().item())
    assert losses[0] > losses[1] > losses[2]


def test_every_item_is_fitted_by_itself(monkeypatch):
    """However many are trained together, and wherever gradients are off."""
    (case, codes), (other, _) = case_of(), case_of()
    together = grow_items(case.model, codes).model.items.embedding.weight
    monkeypatch.setattr("hf_gr.models.new_items._TOGETHER", 4)
    with torch.no_grad():
        apart = grow_items(other.model, codes).model.items.embedding.weight
    assert torch.allclose(together, apart, atol=1e-5)


def test_hashed_rows_are_left_as_they_are():
    case, codes = case_of(item_rows=16)
    before = weights_of(case.model)
    grow_items(case.model, codes)
    now = weights_of(case.model)
    assert torch.equal(now.pop("model.sids")[OLD:], codes) and case.model.config.num_items == OLD + NEW
    assert all(torch.equal(value, before[name]) for name, value in now.items())
    assert case.model.model.item_tokens(torch.arange(OLD, OLD + NEW)).shape == (NEW, 32)


def test_a_grown_model_is_loaded_again(tmp_path):
    case, codes = case_of()
    grow_items(grow_items(case.model, codes[:2]), codes[2:]).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[case.vocabulary.start_id, *(case.vocabulary.first_item_id + item for item in (3, 39, 35))]])
    assert torch.equal(again(ids).logits, case.model.eval()(ids).logits)


def test_of_items_read_as_sums_nothing_is_pulled():
    case, codes = case_of(read="sum", dense=1.0)
    before = weights_of(case.model)
    sids, table = case.model.model.sids.tolist(), before["model.items.embedding.weight"].numpy()
    model = grow_items(case.model, codes)
    rows = model.model.items.embedding.weight.detach().numpy()
    for row, sid in zip(rows[OLD:], codes.tolist(), strict=True):
        np.testing.assert_allclose(row, listed_start(table, sids, sid), atol=1e-6)
    hidden = torch.randn(2, model.config.width)
    assert dense_logits(model, hidden, torch.arange(OLD + NEW)).shape == (2, OLD + NEW)
    read = model.model.embed(torch.tensor([[model.config.first_item_id + OLD]]))[0]
    assert torch.equal(read, model.model.vectors(torch.tensor([OLD])))
