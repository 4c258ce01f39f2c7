"""Item vector → codes: one file a method, behind one base class."""

from .base import Quantizer, QuantizerConfig
from .collisions import collision_report, print_collisions, resolve_collisions
from .rq_kmeans import RQKMeans, RQKMeansConfig
from .station import METHODS, QuantizeConfig, quantize


__all__ = [
    "METHODS",
    "QuantizeConfig",
    "Quantizer",
    "QuantizerConfig",
    "RQKMeans",
    "RQKMeansConfig",
    "collision_report",
    "print_collisions",
    "quantize",
    "resolve_collisions",
]
