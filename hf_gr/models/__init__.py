"""What is more than a plain pretrained LM: models from scratch, dropout, and heads over SID tokens only."""

from .architectures import TREE_MODEL_TYPES
from .bsarec import BSARecConfig, BSARecModel
from .decoder import decoder_of
from .dense import ItemVectors, dense_logits, dense_loss
from .dropout import add_dropout
from .feedback import feedback, read
from .head import add_inner_call, answer_logits, code_logits, is_tied, last_hidden, token_logits
from .intrr import IntRRForCausalLM, IntRRModel, recursion_of, with_recursion
from .intrr_config import IntRRConfig, RecursionConfig
from .newcomers import grown
from .orders import confident_orders
from .scratch import ScratchConfig, byte_tokenizer, from_scratch, sid_tokenizer
from .thinking import ThinkingConfig, ThinkingHeads
from .window import check_window, window_of


__all__ = [
    "TREE_MODEL_TYPES",
    "BSARecConfig",
    "BSARecModel",
    "IntRRConfig",
    "IntRRForCausalLM",
    "IntRRModel",
    "ItemVectors",
    "RecursionConfig",
    "ScratchConfig",
    "ThinkingConfig",
    "ThinkingHeads",
    "add_dropout",
    "add_inner_call",
    "answer_logits",
    "byte_tokenizer",
    "check_window",
    "code_logits",
    "confident_orders",
    "decoder_of",
    "dense_logits",
    "dense_loss",
    "feedback",
    "from_scratch",
    "grown",
    "is_tied",
    "last_hidden",
    "read",
    "recursion_of",
    "sid_tokenizer",
    "token_logits",
    "window_of",
    "with_recursion",
]
