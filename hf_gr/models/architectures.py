"""The decoders that hf_gr knows from the inside: full attention that takes a mask of ours."""

TREE_MODEL_TYPES = ("llama", "qwen2", "qwen3", "mistral", "gemma")
