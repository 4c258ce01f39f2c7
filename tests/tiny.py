"""Small real things for tests: a data set with a pattern to learn, a tokenizer, language models, a catalog."""

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from hf_gr.catalog import SidCatalog


NUM_ITEMS = 40


def tiny_items(num_items: int = NUM_ITEMS) -> pa.Table:
    return pa.table(
        {
            "item_id": [f"i{row:03d}" for row in range(num_items)],
            "title": [f"Title {row}" for row in range(num_items)],
            "categories": [["even" if row % 2 == 0 else "odd"] for row in range(num_items)],
        }
    )


def tiny_interactions(num_users: int = 60, num_items: int = NUM_ITEMS, seed: int = 0) -> pa.Table:
    """Users walk round the items in steps of one, with some noise: the next item can be learned."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        item = int(random.integers(num_items))
        for time in range(int(random.integers(5, 12))):
            rows.append((f"u{user:03d}", f"i{item:03d}", 1000 + time, float(random.integers(1, 6)), "view"))
            item = (item + 1) % num_items if random.random() < 0.9 else int(random.integers(num_items))
    columns = list(zip(*rows, strict=True))
    names = ["user_id", "item_id", "timestamp", "rating", "behavior"]
    return pa.table(dict(zip(names, map(list, columns), strict=True)))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer without merges: 256 bytes and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: row for row, token in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


SMALL_LM = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def tiny_lm(config_class: type = LlamaConfig, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """Two layers, width 32, random weights, float32."""
    torch.manual_seed(seed)
    settings = SMALL_LM | {"head_dim": 8, "max_position_embeddings": 512}
    model = AutoModelForCausalLM.from_config(config_class(**(settings | overrides)), attn_implementation="sdpa")
    return model.float().eval()


def tiny_catalog(num_items: int = NUM_ITEMS, sizes: tuple[int, ...] = (4, 4, 4), seed: int = 0) -> SidCatalog:
    """Random codes; with few codes some items share a SID."""
    random = np.random.default_rng(seed)
    codes = np.stack([random.integers(0, size, num_items) for size in sizes], axis=1)
    vectors = [random.normal(size=(size, 8)).astype(np.float32) for size in sizes]
    return SidCatalog.from_codes(codes, tiny_items(num_items), sizes, random.integers(0, 9, num_items), vectors)
