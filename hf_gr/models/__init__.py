"""What is more than a plain pretrained LM: models from scratch, and heads over SID tokens only."""

from .head import add_inner_call, answer_logits, code_logits
from .scratch import byte_tokenizer, from_scratch


__all__ = ["add_inner_call", "answer_logits", "byte_tokenizer", "code_logits", "from_scratch"]
