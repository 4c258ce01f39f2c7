import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog
from transformers import AutoTokenizer

from hf_gr.decoding import tree_support
from hf_gr.errors import HfGrError
from hf_gr.models import TREE_MODEL_TYPES, byte_tokenizer, from_scratch, sid_tokenizer
from hf_gr.vocabulary import add_vocabulary, text_ids


def scratch(seed=0, **settings):
    return from_scratch({"layers": 1, "width": 32} | settings, seed)


@pytest.mark.parametrize("architecture", TREE_MODEL_TYPES)
@pytest.mark.parametrize(
    ("width", "asked", "heads", "head_dim"),
    [(16, 0, 1, 32), (32, 0, 1, 32), (96, 0, 3, 32), (128, 0, 2, 64), (192, 0, 3, 64), (64, 8, 8, 8)],
)
def test_the_size_is_the_one_asked_for(architecture, width, asked, heads, head_dim):
    model, tokenizer = scratch(architecture=architecture, layers=2, width=width, heads=asked)
    config, attention = model.config, model.base_model.layers[1].self_attn
    assert config.model_type == architecture and len(model.base_model.layers) == config.num_hidden_layers == 2
    assert (config.hidden_size, config.intermediate_size) == (width, 4 * width)
    assert (config.num_attention_heads, config.num_key_value_heads, attention.head_dim) == (heads, heads, head_dim)
    assert attention.q_proj.weight.shape == attention.k_proj.weight.shape == (heads * head_dim, width)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), width) == (3, width)
    assert model(torch.tensor([[0, 1, 2]])).logits.isfinite().all()
    assert config.max_position_embeddings == 4096 and tree_support(model, 4096)[0]


def test_text_is_a_choice():
    model, tokenizer = scratch(text=True)
    assert len(tokenizer) == len(model.get_input_embeddings().weight) == 259
    assert len(scratch()[1]) == len(scratch(text=False)[1]) == 3


@pytest.mark.parametrize("text", ["", "words", "<pad>", "é <s0_1>"])
def test_a_tokenizer_of_sids_has_no_words(text):
    assert text_ids(sid_tokenizer(), text) == [2] * len(text.encode())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 3}, "no key 'depth'; it may have architecture, layers, width, heads, text"),
        ({"architecture": "gpt2"}, "architecture is 'gpt2'; from scratch there are llama, qwen2, qwen3, mistral"),
        ({"layers": 0}, "layers is 0; give a whole number of at least 1"),
        ({"layers": True}, "layers is True; give a whole number"),
        ({"width": "64"}, "width is '64'; give a whole number"),
        ({"heads": -1}, "heads is -1; give a whole number of at least 0"),
        ({"text": "no"}, "text is 'no'; give true or false"),
        ({"width": 200}, "a width of 200 is no whole number of dimensions for 3 heads"),
        ({"width": 64, "heads": 5}, "a width of 64 is no whole number of dimensions for 5 heads"),
        (
            {"width": 12, "heads": 4},
            "for 4 heads, or an odd one; give a width that is a multiple of 64, or other heads",
        ),
    ],
)
def test_what_cannot_be_made_is_named(settings, message):
    with pytest.raises(HfGrError, match=f"^model.*{message}") as error:
        from_scratch(settings)
    assert "\n" not in str(error.value)


def test_the_seed_decides_the_weights():
    one, same, other = (scratch(seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("architecture", TREE_MODEL_TYPES)
def test_special_tokens_of_model_and_tokenizer_agree(architecture, text):
    model, tokenizer = scratch(architecture=architecture, text=text)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<eos>", "<unk>"]
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


TOKENIZER = byte_tokenizer()


@settings(max_examples=80, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_can_be_written_byte_by_byte(text):
    ids = text_ids(TOKENIZER, text)
    assert len(ids) == len(text.encode()) and all(3 <= token < 259 for token in ids)
    other = text_ids(TOKENIZER, text + "é")
    assert other[:-2] == ids, "a byte must have the same token wherever it stands"


def test_all_bytes_have_a_token_of_their_own():
    text = "".join(map(chr, range(0x80))) + "".join(map(chr, range(0x80, 0x800)))
    text += "".join(chr(code) for code in range(0x800, 0x110000, 0x400) if not 0xD800 <= code < 0xE000)
    tokens = {}
    for byte, token in zip(text.encode(), text_ids(TOKENIZER, text), strict=True):
        assert tokens.setdefault(byte, token) == token
    assert len(set(tokens.values())) == len(tokens) == 256 - 13  # 13 bytes never occur in UTF-8


@pytest.mark.parametrize("text", [True, False])
def test_it_takes_a_vocabulary_and_comes_back_from_disk(text, tmp_path):
    model, tokenizer = scratch(text=text)
    vocabulary = add_vocabulary(tokenizer, model, tiny_catalog(), max_history=4)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ids = torch.tensor([[vocabulary.start_id, *vocabulary.code_ids[0]]])
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert len(loaded) == len(tokenizer) and text_ids(loaded, "a <s0_1>") == text_ids(tokenizer, "a <s0_1>")


@pytest.mark.parametrize("make", [sid_tokenizer, byte_tokenizer])
def test_what_the_tokenizer_decodes_it_reads_back(make, tmp_path):
    tokenizer, catalog = make(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, scratch(text=make is byte_tokenizer)[0], catalog, max_history=5)
    tokenizer.save_pretrained(tmp_path)
    for own in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = [vocabulary.start_id, *vocabulary.item_tokens(catalog)[:3].ravel().tolist()]
        assert own.decode(ids).startswith("<items><s0_") and own(own.decode(ids))["input_ids"] == ids
        if make is byte_tokenizer:
            text = "Größe 7, <s0_1> and  two blanks"
            assert own.decode(text_ids(own, text)) == text
