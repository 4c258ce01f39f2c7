import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog

from hf_gr.models import byte_tokenizer, from_scratch
from hf_gr.vocabulary import add_vocabulary, encode_text


@pytest.mark.parametrize(
    ("width", "heads", "head_dim"), [(32, 1, 32), (64, 2, 32), (96, 3, 32), (128, 2, 64), (192, 3, 64)]
)
def test_the_size_is_the_one_asked_for(width, heads, head_dim):
    model, tokenizer = from_scratch(layers=2, width=width)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, width, 4 * width)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (heads, heads, head_dim)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), width) == (259, width)
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_the_seed_decides_the_weights():
    one, same, other = (from_scratch(1, 32, seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_special_tokens_of_model_and_tokenizer_agree():
    model, tokenizer = from_scratch(1, 32)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<eos>", "<unk>"]
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


TOKENIZER = byte_tokenizer()


@settings(max_examples=80, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_can_be_written_byte_by_byte(text):
    ids = encode_text(TOKENIZER, text)
    assert len(ids) == len(text.encode()) and all(3 <= token < 259 for token in ids)
    other = encode_text(TOKENIZER, text + "é")
    assert other[:-2] == ids, "a byte must have the same token wherever it stands"


def test_all_bytes_have_a_token_of_their_own():
    text = "".join(map(chr, range(0x80))) + "".join(map(chr, range(0x80, 0x800)))
    text += "".join(chr(code) for code in range(0x800, 0x110000, 0x400) if not 0xD800 <= code < 0xE000)
    tokens = {}
    for byte, token in zip(text.encode(), encode_text(TOKENIZER, text), strict=True):
        assert tokens.setdefault(byte, token) == token
    assert len(set(tokens.values())) == len(tokens) == 256 - 13  # 13 bytes never occur in UTF-8


def test_it_takes_a_vocabulary_and_comes_back_from_disk(tmp_path):
    model, tokenizer = from_scratch(1, 32)
    vocabulary = add_vocabulary(tokenizer, model, tiny_catalog(), max_history=4)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ids = torch.tensor([[vocabulary.start_id, *vocabulary.code_ids[0]]])
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    assert len(type(tokenizer).from_pretrained(tmp_path)) == len(tokenizer)
