"""Item vector → codes: one file a method, behind one base class."""

from .base import Quantizer, QuantizerConfig
from .coba import CoBa, CoBaConfig
from .collisions import resolve_collisions
from .metrics import collision_report, print_collisions
from .r3_vae import R3VAE, R3VAEConfig
from .rq_kmeans import RQKMeans, RQKMeansConfig
from .rq_vae import RQVAE, RQVAEConfig
from .station import METHODS, QuantizeConfig, quantize


__all__ = [
    "METHODS",
    "R3VAE",
    "RQVAE",
    "CoBa",
    "CoBaConfig",
    "QuantizeConfig",
    "Quantizer",
    "QuantizerConfig",
    "R3VAEConfig",
    "RQKMeans",
    "RQKMeansConfig",
    "RQVAEConfig",
    "collision_report",
    "print_collisions",
    "quantize",
    "resolve_collisions",
]
