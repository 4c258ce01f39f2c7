"""Tiny models of many families, made on the spot."""

import torch
from tiny import SMALL_LM
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


COMMON = SMALL_LM | {"max_position_embeddings": 128}
HEADS = {"head_dim": 8}
EXPERTS = HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA = HEADS | {"query_pre_attn_scalar": 8, "sliding_window": 16}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}

# model type: what its config needs beside COMMON
SERVED = {
    "llama": {},
    "qwen2": {},
    "qwen3": HEADS,
    "mistral": HEADS | {"sliding_window": 4},
    "gemma": HEADS,
    "gemma2": GEMMA | {"final_logit_softcapping": 2.0},
    "gemma3_text": GEMMA | {"final_logit_softcapping": 2.0},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "phi": {},
    "falcon": {"num_kv_heads": 2},
    "bloom": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mpt": {"max_seq_len": 128},
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.3},
    "cohere": {"logit_scale": 0.2},
    "olmo2": {},
    "modernbert-decoder": {"local_attention": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": EXPERTS,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_next": EXPERTS | LINEAR | {"shared_expert_intermediate_size": 32},
    "mamba": {"state_size": 8},
}
REFUSED = {
    "bert": ({}, "it reads what comes after a token"),
    "roberta": ({"is_decoder": True}, "its cache or its padding changes what it answers"),
    "bart": ({"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4}, "its cache or its padding changes"),
    "rwkv": ({"attention_hidden_size": 32}, "it cannot search with generate"),
}


def family(model_type: str, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """Two layers, width 32, float32; weights so large that a mistake in a mask or a scale shows."""
    special = SERVED[model_type] if model_type in SERVED else REFUSED[model_type][0]
    config = AutoConfig.for_model(model_type, **(COMMON | special | overrides))
    return _made(config, seed)


def multimodal(seed: int = 0) -> PreTrainedModel:
    """A Gemma 3 that could read images."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = COMMON | SERVED["gemma3_text"] | {"model_type": "gemma3_text"}
    return _made(AutoConfig.for_model("gemma3", text_config=text, vision_config=vision), seed)


def _made(config: object, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    return model
