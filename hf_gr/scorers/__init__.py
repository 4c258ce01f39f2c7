"""Scorers beside the semantic ID: the item vectors of a model, a retriever; those that a model repo carries."""

from .retriever import RetrieverScorer
from .saved import load_scorers, save_scorers
from .vectors import VectorScorer


__all__ = ["RetrieverScorer", "VectorScorer", "load_scorers", "save_scorers"]
