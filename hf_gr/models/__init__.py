"""What is more than a plain pretrained LM: models from scratch, dropout, and heads over SID tokens only."""

from .architectures import TREE_MODEL_TYPES
from .bsarec import BSARecConfig, BSARecModel
from .dense import dense_logits, dense_loss
from .dropout import add_dropout
from .feedback import feedback, read
from .head import add_inner_call, answer_logits, code_logits, last_hidden
from .intrr import IntRRForCausalLM, IntRRModel, recursion_of, with_recursion
from .intrr_config import IntRRConfig, RecursionConfig
from .newcomers import grown
from .orders import confident_orders
from .scratch import ScratchConfig, byte_tokenizer, from_scratch, sid_tokenizer
from .thinking import ThinkingConfig, ThinkingHeads


__all__ = [
    "TREE_MODEL_TYPES",
    "BSARecConfig",
    "BSARecModel",
    "IntRRConfig",
    "IntRRForCausalLM",
    "IntRRModel",
    "RecursionConfig",
    "ScratchConfig",
    "ThinkingConfig",
    "ThinkingHeads",
    "add_dropout",
    "add_inner_call",
    "answer_logits",
    "byte_tokenizer",
    "code_logits",
    "confident_orders",
    "dense_logits",
    "dense_loss",
    "feedback",
    "from_scratch",
    "grown",
    "last_hidden",
    "read",
    "recursion_of",
    "sid_tokenizer",
    "with_recursion",
]
