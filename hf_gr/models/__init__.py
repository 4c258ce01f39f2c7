"""What is more than a plain pretrained LM: models from scratch, dropout, and heads over SID tokens only."""

from .architectures import TREE_MODEL_TYPES
from .bsarec import BSARecConfig, BSARecModel
from .click import ClickConfig, ClickModel
from .decoder import decoder_of
from .dense import ItemVectors, dense_logits, dense_loss, histories_in, inner_outputs, shares_of
from .dropout import add_dropout
from .feedback import feedback, read_thoughts
from .head import add_inner_call, answer_logits, code_logits, is_tied, last_hidden, token_logits
from .intrr import IntRRForCausalLM, IntRRModel, with_recursion
from .intrr_config import IntRRConfig, RecursionConfig
from .new_items import grow_items, grow_retriever
from .orders import confident_orders
from .parts import (
    fixed_parts,
    learned_codes,
    new_parts,
    reads_learned_codes,
    recursion_settings,
    side_losses,
    without_retriever,
)
from .reader import Reader, reader_of
from .retrievers import RETRIEVERS, RetrieverModel
from .scratch import ScratchConfig, byte_tokenizer, from_scratch, sid_tokenizer
from .thinking import ThinkingConfig, ThinkingHeads
from .towers import TowersConfig, TowersModel
from .window import check_window, window_of


__all__ = [
    "RETRIEVERS",
    "TREE_MODEL_TYPES",
    "BSARecConfig",
    "BSARecModel",
    "ClickConfig",
    "ClickModel",
    "IntRRConfig",
    "IntRRForCausalLM",
    "IntRRModel",
    "ItemVectors",
    "Reader",
    "RecursionConfig",
    "RetrieverModel",
    "ScratchConfig",
    "ThinkingConfig",
    "ThinkingHeads",
    "TowersConfig",
    "TowersModel",
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
    "fixed_parts",
    "from_scratch",
    "grow_items",
    "grow_retriever",
    "histories_in",
    "inner_outputs",
    "is_tied",
    "last_hidden",
    "learned_codes",
    "new_parts",
    "read_thoughts",
    "reader_of",
    "reads_learned_codes",
    "recursion_settings",
    "shares_of",
    "sid_tokenizer",
    "side_losses",
    "token_logits",
    "window_of",
    "with_recursion",
    "without_retriever",
]
