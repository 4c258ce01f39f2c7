"""Dense retrieval: items by their own vectors, the whole catalogue ranked."""

from ..models import BSARecConfig, BSARecModel
from .config import RetrieveConfig
from .retriever import Retrieved, Retriever, is_retriever
from .run import main, retrieve


__all__ = [
    "BSARecConfig",
    "BSARecModel",
    "RetrieveConfig",
    "Retrieved",
    "Retriever",
    "is_retriever",
    "main",
    "retrieve",
]
