"""What may follow: a vectorised state machine over partial answers, with filters of the request."""

from .base import DEAD, SidGrammar, Successors, check_scores
from .filters import ItemFilter, ItemMask
from .logits_process import SidLogitsProcessor, generation_config
from .trie import TrieGrammar
from .unordered import UnorderedGrammar


__all__ = [
    "DEAD",
    "ItemFilter",
    "ItemMask",
    "SidGrammar",
    "SidLogitsProcessor",
    "Successors",
    "TrieGrammar",
    "UnorderedGrammar",
    "check_scores",
    "generation_config",
]
