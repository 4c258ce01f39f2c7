"""Item vector → codes: one file a method, behind one base class."""

from .base import Quantizer, QuantizerConfig
from .coba import CoBa, CoBaConfig
from .collisions import resolve_collisions
from .loading import load_quantizer
from .metrics import codebook_report, collision_report, print_collisions
from .mmq import MMQ, MMQConfig
from .mpq import MPQ, MPQConfig
from .opq import OPQ, OPQConfig
from .r3_vae import R3VAE, R3VAEConfig
from .rq_kmeans import RQKMeans, RQKMeansConfig
from .rq_vae import RQVAE, RQVAEConfig
from .soft_index import SoftIndexOutput, SoftIndexQuantizer
from .stage import METHODS, QuantizeConfig, quantize


__all__ = [
    "METHODS",
    "MMQ",
    "MPQ",
    "OPQ",
    "R3VAE",
    "RQVAE",
    "CoBa",
    "CoBaConfig",
    "MMQConfig",
    "MPQConfig",
    "OPQConfig",
    "QuantizeConfig",
    "Quantizer",
    "QuantizerConfig",
    "R3VAEConfig",
    "RQKMeans",
    "RQKMeansConfig",
    "RQVAEConfig",
    "SoftIndexOutput",
    "SoftIndexQuantizer",
    "codebook_report",
    "collision_report",
    "load_quantizer",
    "print_collisions",
    "quantize",
    "resolve_collisions",
]
