"""What every quantizer is: a `PreTrainedModel` that turns vectors into codes and back."""

from typing import Any, Self

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..embedding.store import check_finite
from ..errors import HfGrError


BATCH_SIZE = 8192  # rows in memory at a time: vectors may be a memory-mapped file larger than memory


class QuantizerConfig(PreTrainedConfig):
    """What every quantizer's config holds.

    Args:
        dim: d, width of the vectors.
        codebook_sizes: K_l, the number of codes of each of the L levels.
    """

    model_type = "hf_gr_quantizer"

    dim: int = 384
    codebook_sizes: list[int] | tuple[int, ...] = (256, 256, 256)

    def __post_init__(self, **kwargs: Any) -> None:
        self.codebook_sizes = list(self.codebook_sizes)
        super().__post_init__(**kwargs)


class Quantizer(PreTrainedModel):
    """Common base. Vectors are float32 [N, d], codes int32 [N, L], both NumPy; batches go to the model's device.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of any transformers model. A method implements
    [`fit`], [`code_vectors`], [`distances`], `_encode` and `_decode` for one batch, and starts weights that only
    [`fit`] can set at NaN.
    """

    config_class = QuantizerConfig
    config: QuantizerConfig
    base_model_prefix = "quantizer"
    main_input_name = "vectors"

    @property
    def num_levels(self) -> int:
        return len(self.config.codebook_sizes)

    def fit(self, vectors: np.ndarray, *, seed: int = 0, progress: bool = True) -> Self:
        """Learns the codebooks from float32 [N, d] and returns itself. The same seed gives the same codebooks."""
        raise NotImplementedError

    def code_vectors(self, level: int) -> np.ndarray:
        """float32 [K_level, d]: what each code of a level stands for."""
        raise NotImplementedError

    def distances(self, vectors: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        """What it would cost to give a vector each code of one level, given its codes on the levels before.

        Args:
            vectors: float32 [n, d].
            codes: int32 [n, L]; only the columns before `level` are read.
            level: Level whose codes are compared.

        Returns:
            float32 [n, K_level], squared distances.
        """
        raise NotImplementedError

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        """float32 [n, d] → int64 [n, L]."""
        raise NotImplementedError

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [n, L] → float32 [n, d]."""
        raise NotImplementedError

    @torch.inference_mode()
    def encode(self, vectors: np.ndarray, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Codes int32 [N, L] of float32 vectors [N, d]. Raises [`HfGrError`] on NaN, another width, or no fit."""
        self.check_vectors(vectors)
        self.check_fitted()
        codes = np.empty((len(vectors), self.num_levels), np.int32)
        for start in range(0, len(vectors), batch_size):
            batch = self._tensor(vectors[start : start + batch_size])
            codes[start : start + batch_size] = self._encode(batch).cpu().numpy()
        return codes

    @torch.inference_mode()
    def decode(self, codes: np.ndarray, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Vectors float32 [N, d] that the codes int32 [N, L] stand for. Raises [`HfGrError`] on codes out of range."""
        self.check_codes(codes)
        self.check_fitted()
        vectors = np.empty((len(codes), self.config.dim), np.float32)
        for start in range(0, len(codes), batch_size):
            batch = torch.from_numpy(codes[start : start + batch_size].astype(np.int64)).to(self.device)
            vectors[start : start + batch_size] = self._decode(batch).cpu().numpy()
        return vectors

    def check_fitted(self) -> None:
        """Raises [`HfGrError`] if a weight is NaN: set neither by [`fit`] nor by the checkpoint."""
        for name, weight in self.named_parameters():
            if weight.isnan().any():
                raise HfGrError(
                    f"{name} of the {self.config.model_type} quantizer {self.name_or_path or '(new)'} is not set; "
                    "call fit(), or load a complete checkpoint."
                )

    def check_vectors(self, vectors: np.ndarray) -> None:
        """Raises [`HfGrError`] unless the vectors are finite, [N, d]."""
        if vectors.ndim != 2 or vectors.shape[1] != self.config.dim:
            raise HfGrError(
                f"this quantizer takes vectors of width {self.config.dim}, not shape {list(vectors.shape)}; "
                "embed with the settings it was fitted with, or fit it again."
            )
        check_finite(vectors, "vectors to quantize")

    def check_codes(self, codes: np.ndarray) -> None:
        """Raises [`HfGrError`] unless the codes are [N, L] and within the codebooks."""
        check_codes(codes, self.config.codebook_sizes)

    def _tensor(self, vectors: np.ndarray) -> torch.Tensor:
        # a copy: a slice of a memory-mapped file is read-only, and torch wants to own its memory
        return torch.from_numpy(np.array(vectors, dtype=np.float32)).to(self.device)


def check_codes(codes: np.ndarray, codebook_sizes: list[int] | tuple[int, ...]) -> None:
    """Raises [`HfGrError`] unless `codes` is [N, L] with `0 ≤ codes[:, l] < codebook_sizes[l]`."""
    sizes = np.array(codebook_sizes)
    if codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise HfGrError(
            f"codes have shape {list(codes.shape)}, but there are {len(sizes)} codebooks; use [N, levels]."
        )
    outside = ((codes < 0) | (codes >= sizes)).any(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise HfGrError(
            f"item row {row} has codes {codes[row].tolist()}, outside the codebook sizes {sizes.tolist()}; "
            "encode again with the quantizer of these codebooks."
        )
