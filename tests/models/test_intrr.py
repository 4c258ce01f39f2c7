"""The recursion of IntRR against NumPy, its gradients, and its way through files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from searching import RECURSIVE, build, recursive
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from hf_gr.errors import HfGrError
from hf_gr.models import IntRRConfig, IntRRForCausalLM, IntRRModel, RecursionConfig, reader_of, with_recursion
from hf_gr.vocabulary import add_vocabulary


def weights_of(model):
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def silu(values):
    return values / (1 + np.exp(-values))


def softmax(values):
    weight = np.exp(values - values.max())
    return weight / weight.sum()


def query(weights, step, context, x):
    """q of a level in NumPy, for one item."""
    if step == 0:
        return x
    name = f"model.recursion.mlps.{step - 1}"
    inner = weights[f"{name}.0.weight"] @ np.concatenate([context, x]) + weights[f"{name}.0.bias"]
    return x + weights[f"{name}.2.weight"] @ silu(inner) + weights[f"{name}.2.bias"]


def codebooks(case, weights):
    rows = next(value for name, value in weights.items() if name.endswith(("embed_tokens.weight", "wte.weight")))
    return [rows[list(ids)] for ids in case.vocabulary.code_ids]


def assigned(case, weights, item):
    """What is read of an item, its learned codes, and the loss toward its SID."""
    x = weights["model.items.project.weight"] @ weights["model.items.embedding.weight"][item]
    total, context, codes, loss = 0.0, None, [], 0.0
    for level, codebook in enumerate(codebooks(case, weights)):
        sims = codebook @ query(weights, level, context, x)
        code = int(sims.argmax())
        context = codebook[code]
        total, loss = total + context, loss - np.log(softmax(sims)[case.catalog.codes[item, level]])
        codes.append(code)
    return total, codes, loss


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
def test_what_is_read_of_items_is_numpys(config_class):
    case = build(config_class, RECURSIVE)
    weights, items = weights_of(case.model), torch.tensor([3, 0, 39, 3])
    read = case.model.model.item_tokens(items).detach().numpy()
    codes, probability = case.model.model.assigned(items)
    losses = case.model.model.input_loss(items).detach().numpy()
    for row, item in enumerate(items.tolist()):
        expected, expected_codes, loss = assigned(case, weights, item)
        np.testing.assert_allclose(read[row], expected, atol=1e-4)
        assert codes[row].tolist() == expected_codes
        assert losses[row] == pytest.approx(loss, rel=1e-4)
    assert ((probability > 0) & (probability <= 1)).all()
    assert any(assigned(case, weights, item)[1] != case.catalog.codes[item].tolist() for item in range(40))


def test_the_queries_of_answers_are_numpys():
    case = build(Qwen3Config, RECURSIVE)
    weights, x = weights_of(case.model), torch.randn(5, 32)
    codes = torch.from_numpy(case.vocabulary.item_tokens(case.catalog, np.arange(5)))
    found = reader_of(case.model).all(x, codes).detach().numpy()
    books = codebooks(case, weights)
    for row in range(5):
        for step in range(3):
            before = None if step == 0 else books[step - 1][case.catalog.codes[row, step - 1]]
            np.testing.assert_allclose(
                found[row, step], query(weights, step, before, x[row].double().numpy()), atol=1e-4
            )


def test_a_prompt_mixes_tokens_and_items():
    case = build(LlamaConfig, RECURSIVE)
    model, first = case.model, case.vocabulary.first_item_id
    ids = torch.tensor([[case.vocabulary.start_id, first + 7, 5, first + 7]])
    embedded = model.model.embed(ids)[0]
    assert torch.equal(embedded[0], model.get_input_embeddings().weight[case.vocabulary.start_id])
    assert torch.allclose(embedded[1], model.model.item_tokens(torch.tensor([7]))[0])
    assert torch.equal(embedded[1], embedded[3]) and not torch.equal(embedded[1], embedded[2])
    hidden = model.model(ids).last_hidden_state
    expected = model.model.backbone(inputs_embeds=embedded[None]).last_hidden_state
    assert torch.allclose(hidden, expected, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"item_width": 8}, {"item_rows": 16}])
def test_at_the_start_learned_codes(settings):
    """Rows of the items' own start at their SIDs (as far as few dimensions tell sums apart), hashed ones by chance."""
    catalog, lm = tiny_catalog(), tiny_lm(Qwen3Config)
    vocabulary = add_vocabulary(tiny_tokenizer(), lm, catalog, max_history=10)
    codes = torch.from_numpy(vocabulary.item_tokens(catalog))
    books = [[ids[0], len(ids)] for ids in vocabulary.code_ids]
    model = with_recursion(lm, codes, books, RecursionConfig(**settings))
    kept = (model.model.assigned(torch.arange(40))[0].numpy() == catalog.codes).mean()
    low, high = {"item_rows": (0.1, 0.45), "item_width": (0.5, 0.99)}.get(next(iter(settings), ""), (0.85, 1.0))
    assert low <= kept <= high


def test_gradients_reach_every_part_straight_through():
    case = build(Qwen3Config, RECURSIVE)
    case.model.train()
    case.model.model.item_tokens(torch.tensor([1, 2])).pow(2).sum().backward()
    gradient = case.model.model.items.embedding.weight.grad
    assert gradient[1].abs().sum() > 0 and gradient[3].abs().sum() == 0
    assert case.model.model.recursion.mlps[0][0].weight.grad.abs().sum() > 0
    assert case.model.model.token_rows.grad[list(case.vocabulary.code_ids[0])].abs().sum() > 0


@pytest.mark.parametrize("settings", [{}, {"item_rows": 16, "item_width": 8, "hidden": 2}])
def test_it_is_loaded_by_the_auto_classes(tmp_path, settings):
    case = build(Qwen3Config, RECURSIVE)
    if settings:
        lm = tiny_lm(Qwen3Config)
        vocabulary = add_vocabulary(tiny_tokenizer(), lm, case.catalog, max_history=10)
        case = replace(case, model=recursive(lm, vocabulary, case.catalog, **settings)[0])
    case.model.save_pretrained(tmp_path)
    ids = torch.tensor([case.prompts((5,))[0]])
    expected = case.model(ids).logits
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, IntRRForCausalLM) and again.dtype == case.model.dtype
    assert torch.allclose(again(ids).logits, expected, atol=1e-5)
    assert torch.equal(again.model.sids, case.model.model.sids)
    assert again.lm_head.weight is again.model.token_rows
    assert isinstance(AutoModel.from_pretrained(tmp_path), IntRRModel)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, IntRRConfig) and isinstance(config.get_text_config(), Qwen3Config)
    assert config.item_rows == settings.get("item_rows", 0)


def test_any_decoder_is_a_backbone(tmp_path):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4)).eval()
    catalog = tiny_catalog()
    vocabulary = add_vocabulary(tiny_tokenizer(), lm, catalog, max_history=10)
    model, _ = recursive(lm, vocabulary, catalog)
    ids = torch.tensor([[vocabulary.start_id, model.config.first_item_id + 3]])
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    assert torch.allclose(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, expected, atol=1e-5)


def test_hashed_rows_are_spread():
    from hf_gr.models.intrr import _hashed

    rows = _hashed(torch.arange(100_000), 1000)
    counts = torch.bincount(rows.flatten(), minlength=1000)
    assert rows.min() >= 0 and rows.max() < 1000
    assert counts.min() > 120 and counts.max() < 290  # 200 each
    pairs = rows[:, 0] * 1000 + rows[:, 1]
    assert len(pairs.unique()) > 94_000  # of 100,000 draws from a million 95,163 are distinct


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 3}, "no key 'width'"),
        ({"item_rows": -1}, "item_rows is -1"),
        ({"input_weight": "much"}, "input_weight is 'much'"),
        ({"input_weight": -0.5}, "input_weight is -0.5"),
        ({"hidden": 0}, "hidden is 0"),
    ],
)
def test_settings_that_it_does_not_have(settings, message):
    with pytest.raises(HfGrError, match=message):
        RecursionConfig.of_dict(settings)


def test_generate_is_refused():
    case = build(form=RECURSIVE)
    with pytest.raises(HfGrError, match="generate\\(\\) cannot write items of a model of form recursive"):
        case.model.generate(torch.tensor(case.prompts((2,))), max_new_tokens=3)
