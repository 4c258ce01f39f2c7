"""Decoding: beam search on a tree, the logits processor for `generate`, and the recommender on top of both."""

from .beam import Beams, tree_search
from .generate import generate_search
from .logits_process import SidLogitsProcessor
from .recommender import Recommender
from .search import search
from .support import tree_support


__all__ = ["Beams", "Recommender", "SidLogitsProcessor", "generate_search", "search", "tree_search", "tree_support"]
