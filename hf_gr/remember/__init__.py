"""The memory of a model: made of training events, its share chosen on validation, kept up to date with new events."""

from .fit import FittedMemory, fit_memory
from .run import remember, write_memory


__all__ = ["FittedMemory", "fit_memory", "remember", "write_memory"]
