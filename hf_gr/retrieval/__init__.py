"""Dense retrieval: items by their own vectors, the whole catalog ranked."""

from ..models import BSARecConfig, BSARecModel
from .config import RETRIEVE_CONFIGS, RetrieveConfig, RetrieverConfig
from .retriever import Retrieved, Retriever, is_retriever
from .run import main, retrieve


__all__ = [
    "RETRIEVE_CONFIGS",
    "BSARecConfig",
    "BSARecModel",
    "RetrieveConfig",
    "Retrieved",
    "Retriever",
    "RetrieverConfig",
    "is_retriever",
    "main",
    "retrieve",
]
