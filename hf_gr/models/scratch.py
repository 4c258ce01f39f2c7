"""Small language models from scratch, for the papers' sizes and for quick trials."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


def from_scratch(layers: int, width: int, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A Qwen3 decoder with random weights and a byte tokenizer, so that free text can still be written.

    Args:
        layers: Decoder layers.
        width: Hidden size d; heads of 64 dimensions (32 below d = 128), an MLP of 4 d.
        seed: Of the weights.
    """
    head_dim = 64 if width >= 128 else 32
    tokenizer = byte_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // head_dim,
        num_key_value_heads=width // head_dim,
        head_dim=head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config), tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer without merges: 256 bytes, `<pad>`, `<eos>`, `<unk>`."""
    tokens = ["<pad>", "<eos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: row for row, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
