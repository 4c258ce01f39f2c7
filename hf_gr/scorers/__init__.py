"""Scorers beside the semantic ID: the item vectors of a model, a retriever."""

from .retriever import RetrieverScorer
from .vectors import VectorScorer


__all__ = ["RetrieverScorer", "VectorScorer"]
