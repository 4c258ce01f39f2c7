import pytest
import torch
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import (
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from hf_gr.branches import IGNORED, Packed, Row
from hf_gr.decoding import tree_search, tree_support
from hf_gr.errors import HfGrError
from hf_gr.models import last_hidden
from hf_gr.packing import pack
from hf_gr.vocabulary import add_vocabulary


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config, Qwen3Config, GemmaConfig])
def test_full_attention_is_taken(config_class):
    supported, reason = tree_support(tiny_lm(config_class), 10_000)
    assert supported and reason == f"{config_class.model_type} with full attention under sdpa"


@pytest.mark.parametrize("config_class", [MistralConfig, Qwen2Config, Qwen3Config])
def test_a_window_must_hold_the_longest_row(config_class):
    options = {} if config_class is MistralConfig else {"use_sliding_window": True, "max_window_layers": 0}
    model = tiny_lm(config_class, sliding_window=16, **options)
    assert tree_support(model, 15)[0] and tree_support(model, 16)[0]
    supported, reason = tree_support(model, 17)
    assert not supported and reason == "its sliding window of 16 is shorter than a row of 17 tokens"


def test_a_window_that_is_not_used_is_none():
    model = tiny_lm(Qwen2Config)
    model.config.sliding_window, model.config.use_sliding_window = 16, False
    assert tree_support(model, 1000)[0]
    model.config.use_sliding_window = True
    assert not tree_support(model, 1000)[0]
    assert tree_support(tiny_lm(MistralConfig, sliding_window=None), 1000)[0]


@pytest.mark.parametrize("config_class", [GPT2Config, GPTNeoXConfig])
def test_other_architectures_take_generate(config_class):
    names = {"n_layer": 1, "n_embd": 32, "n_head": 4} if config_class is GPT2Config else {}
    supported, reason = tree_support(tiny_lm(config_class, **names), 5)
    assert not supported and f"architecture {config_class.model_type!r} is not among llama, qwen2" in reason


@pytest.mark.parametrize(("attention", "expected"), [("sdpa", True), ("eager", True), ("flash_attention_2", False)])
def test_the_attention_must_take_a_mask(attention, expected):
    model = tiny_lm()
    model.config._attn_implementation_internal = attention  # as if loaded so: the kernel itself is not needed to ask
    supported, reason = tree_support(model, 5)
    assert supported == expected and attention in reason


def test_training_takes_flex_attention_too():
    model = tiny_lm()
    model.config._attn_implementation_internal = "flex_attention"
    assert not tree_support(model, 5)[0]
    assert tree_support(model, 5, training=True) == (True, "llama with full attention under flex_attention")
    model.config._attn_implementation_internal = "flash_attention_2"
    assert not tree_support(model, 5, training=True)[0]


def packed_rows() -> Packed:
    """Two trunks with branches in one row, and a third in another."""
    rows = [
        Row(
            input_ids=trunk,
            attach=[1, len(trunk)],
            answers=[[200, 5, 201, 6]] * 2,
            labels=[[IGNORED, 5, IGNORED, 6]] * 2,
            weights=[1.0] * 2,
        )
        for trunk in ([3, 10, 11, 12, 13, 14, 15], [3, 20, 21], [3])
    ]
    packed = pack(rows, think_ids=(200, 201), max_columns=22)
    assert len(packed.trunk) == 2 and not packed.simple
    return packed


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config, Qwen3Config, MistralConfig, GemmaConfig])
@torch.no_grad()
def test_branches_under_flex_attention_are_those_under_sdpa(config_class):
    window = {"sliding_window": None} if config_class is MistralConfig else {}
    model, packed = tiny_lm(config_class, **window), packed_rows()
    expected = last_hidden(model, **packed.inputs("sdpa", torch.float32))
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):  # compiling for a CPU takes a minute and more
        found = last_hidden(model, **packed.inputs("flex_attention", torch.float32))
    real = packed.trunk >= 0
    assert torch.allclose(found[real], expected[real], atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has gradients on a GPU only")
def test_gradients_under_flex_attention_are_those_under_sdpa():
    packed, gradients = packed_rows().to("cuda"), []
    for attention in ("sdpa", "flex_attention"):
        model = tiny_lm(head_dim=16).cuda()
        model.set_attn_implementation(attention)
        hidden = last_hidden(model, **packed.inputs(attention, torch.float32))
        hidden[packed.trunk >= 0].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.base_model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_the_search_refuses_what_is_not_supported():
    catalog = tiny_catalog()
    model = tiny_lm(MistralConfig, sliding_window=8)
    vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=10)
    rows = [[vocabulary.start_id] * 6]  # with the answer's three tokens one more than the window
    message = r"tree search is not for this model: its sliding window of 8 is shorter .* 9 tokens; use generate_search"
    with pytest.raises(HfGrError, match=message):
        tree_search(model, rows, vocabulary.grammar(catalog), num_beams=2)
    tree_search(model, [rows[0][1:]], vocabulary.grammar(catalog), num_beams=2)
