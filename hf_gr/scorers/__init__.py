"""Scorers beside the semantic ID: item vectors, a retriever, a memory of what followed what; and those that a model
repo carries."""

from .memory import Memory, MemoryConfig
from .retriever import RetrieverScorer
from .saved import load_scorers, save_scorers
from .tails import Tails
from .vectors import VectorScorer


__all__ = [
    "Memory",
    "MemoryConfig",
    "RetrieverScorer",
    "Tails",
    "VectorScorer",
    "load_scorers",
    "save_scorers",
]
