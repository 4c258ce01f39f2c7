"""Scorers beside the semantic ID: the item vectors of a model, a retriever, a memory of what followed what."""

from .memory import Memory, MemoryConfig
from .retriever import RetrieverScorer
from .saved import SAVED, SavedScorer, load_scorers, save_scorers
from .vectors import VectorScorer


__all__ = [
    "SAVED",
    "Memory",
    "MemoryConfig",
    "RetrieverScorer",
    "SavedScorer",
    "VectorScorer",
    "load_scorers",
    "save_scorers",
]
