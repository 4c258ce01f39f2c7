"""Decoding: beam search on a tree, `generate` for models that do not take it, and the recommender on top of both."""

from ..search_config import Merge, Method, Score, SearchConfig
from .beam import beam_search, search
from .beams import Beams
from .call import Call
from .choose import Draws
from .exhaustive import exhaustive_search
from .generate import generate_search
from .graphs import SearchGraphs
from .prefix_cache import PrefixCache
from .ranking import Ranking
from .recommender import Recommender, load_thinking
from .reflection import Reflection
from .session import Session, recommend_many
from .sessions import Sessions
from .support import check_model, tree_support
from .tree import tree_search


__all__ = [
    "Beams",
    "Call",
    "Draws",
    "Merge",
    "Method",
    "PrefixCache",
    "Ranking",
    "Recommender",
    "Reflection",
    "Score",
    "SearchConfig",
    "SearchGraphs",
    "Session",
    "Sessions",
    "beam_search",
    "check_model",
    "exhaustive_search",
    "generate_search",
    "load_thinking",
    "recommend_many",
    "search",
    "tree_search",
    "tree_support",
]
