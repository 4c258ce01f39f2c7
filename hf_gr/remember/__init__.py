"""The memory of a model: made of training events, its share chosen on validation, kept up to date with new events."""

from .make import Made, made
from .run import remember, write_memory


__all__ = ["Made", "made", "remember", "write_memory"]
