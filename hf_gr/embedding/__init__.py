"""Item → vector: what an item says (text) and how it is used (behaviour), fused into one artefact."""

from .behavior import behavior_vectors
from .fusion import fuse
from .station import EmbedConfig, embed
from .store import ItemVectors
from .text import encode_text, item_texts


__all__ = ["EmbedConfig", "ItemVectors", "behavior_vectors", "embed", "encode_text", "fuse", "item_texts"]
