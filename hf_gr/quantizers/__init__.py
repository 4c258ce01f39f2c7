"""Item vector → codes: one file a method, behind one base class."""

from .base import Quantizer, QuantizerConfig
from .coba import CoBa, CoBaConfig
from .collisions import resolve_collisions
from .metrics import collision_report, print_collisions
from .rq_kmeans import RQKMeans, RQKMeansConfig
from .rq_vae import RQVAE, RQVAEConfig
from .station import METHODS, QuantizeConfig, quantize


__all__ = [
    "METHODS",
    "RQVAE",
    "CoBa",
    "CoBaConfig",
    "QuantizeConfig",
    "Quantizer",
    "QuantizerConfig",
    "RQKMeans",
    "RQKMeansConfig",
    "RQVAEConfig",
    "collision_report",
    "print_collisions",
    "quantize",
    "resolve_collisions",
]
