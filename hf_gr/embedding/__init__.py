"""Item → vector: what an item says and shows (text, image, file) and how it is used, fused into one artifact."""

from .behavior import behavior_vectors, cooccurrence
from .fusion import fuse
from .image import encode_images, item_images
from .new_items import RECIPE_FILES, embed_new_items
from .precomputed import read_vectors
from .propagation import propagate
from .stage import EmbedConfig, embed
from .store import ItemVectors
from .text import encode_text, item_texts


__all__ = [
    "RECIPE_FILES",
    "EmbedConfig",
    "ItemVectors",
    "behavior_vectors",
    "cooccurrence",
    "embed",
    "embed_new_items",
    "encode_images",
    "encode_text",
    "fuse",
    "item_images",
    "item_texts",
    "propagate",
    "read_vectors",
]
