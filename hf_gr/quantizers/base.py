"""What every quantizer is: a `PreTrainedModel` that turns vectors into codes and back."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import HfGrError
from .vectors import check_distinct, check_vectors


POSITIVE = (math.nextafter(0, 1), math.inf)  # limits of a number above 0
BATCH_SIZE = 8192  # rows in memory at a time: vectors may be a memory-mapped file larger than memory


class QuantizerConfig(PreTrainedConfig):
    """What every quantizer's config holds.

    Args:
        dim: d, width of the vectors.
        codebook_sizes: K_l, the number of codes of each of the L levels.

    Attributes:
        limits: Lowest and highest value of numbers (of a list: of each of them); a subclass adds those of its own.

    Raises:
        HfGrError: On a number outside its limits.
    """

    model_type = "hf_gr_quantizer"
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {"dim": (1, math.inf), "codebook_sizes": (1, math.inf)}

    dim: int = 384
    codebook_sizes: list[int] | tuple[int, ...] = (256, 256, 256)

    def __post_init__(self, **kwargs: Any) -> None:
        self.codebook_sizes = list(self.codebook_sizes)
        for kind in type(self).__mro__:
            for name, (low, high) in vars(kind).get("limits", {}).items():
                self._check_limits(name, low, high)
        super().__post_init__(**kwargs)

    def _check_limits(self, name: str, low: float, high: float) -> None:
        value = vars(self)[name]
        if not all(low <= number <= high for number in (value if isinstance(value, list) else [value])):
            if high < math.inf:
                told = f"numbers from {low} to {high}" if isinstance(value, list) else f"a number from {low} to {high}"
            else:
                told = "above 0" if (low, high) == POSITIVE else f"at least {low}"
            raise HfGrError(f"{name} is {value}; it must be {told}.")


class Quantizer(PreTrainedModel):
    """Common base. Vectors are float32 [N, d], codes int32 [N, L], both NumPy; batches go to the model's device.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of any transformers model. A method implements
    `_fit`, [`code_vectors`] and, for one batch of tensors, `_encode`, `_decode` and `_distances`; it starts weights
    that only a fit can set at NaN.

    Attributes:
        uses_graph: Whether [`align`] wants the co-occurrence graph of the items.
        uses_parts: Whether the config names the parts of a vector, `modalities` and their `widths`.
        side_width: S, numbers that the codes of an item do not hold and [`side`] gives; 0 for most methods.
    """

    config_class = QuantizerConfig
    config: QuantizerConfig
    base_model_prefix = "quantizer"
    main_input_name = "vectors"
    uses_graph = False
    uses_parts = False
    side_width = 0

    @property
    def num_levels(self) -> int:
        return len(self.config.codebook_sizes)

    @property
    def groups(self) -> list[str]:
        """By codebook, the name of the group it belongs to; empty where codebooks are levels of one hierarchy."""
        return []

    def align(self, vectors: np.ndarray, graph: sp.csr_array | None) -> np.ndarray:
        """What is to be quantized in place of the vectors, float32 [N, d], given the items' co-occurrence [N, N].

        Most methods take the vectors as they are. New items have no co-occurrence, so they are their own alignment.
        """
        return vectors

    def fit(
        self,
        vectors: np.ndarray,
        *,
        item_ids: Sequence[str] | None = None,
        seed: int = 0,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Learns the codebooks and returns itself. The same seed gives the same codebooks.

        Args:
            vectors: float32 [N, d], in memory or memory-mapped.
            item_ids: Names of the rows, for error messages.
            seed: Of everything random.
            progress: Whether to show a progress bar.
            checkpoint: File for what a killed fit needs to go on where it was; removed by the caller. Methods that
                are done in minutes ignore it.

        Raises:
            HfGrError: On NaN or infinite values, another width, or fewer distinct vectors than a codebook has codes.
        """
        check_vectors(vectors, self.config.dim, item_ids)
        check_distinct(vectors, self.config.codebook_sizes, item_ids)
        self._fit(vectors, seed, progress, None if checkpoint is None else Path(checkpoint))
        return self

    def _fit(self, vectors: np.ndarray, seed: int, progress: bool, checkpoint: Path | None) -> None:
        raise NotImplementedError

    def code_vectors(self, level: int) -> np.ndarray:
        """float32 [K_level, width]: what each code of a level stands for, in the space where codes are compared."""
        raise NotImplementedError

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        """float32 [n, d] → int64 [n, L]."""
        raise NotImplementedError

    def _side(self, batch: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """float32 [n, d], int64 [n, L] → float32 [n, S]."""
        return batch.new_zeros(len(batch), 0)

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        """int64 [n, l ≤ L], float32 [n, S] or `None` (its mean) → float32 [n, d]."""
        raise NotImplementedError

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        """float32 [n, d], int64 [n, ≥ level] → float32 [n, K_level]."""
        raise NotImplementedError

    @torch.inference_mode()
    def encode(
        self,
        vectors: np.ndarray,
        batch_size: int = BATCH_SIZE,
        allowed: Sequence[np.ndarray] | None = None,
        item_ids: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Codes int32 [N, L] of vectors.

        Args:
            vectors: float32 [N, d].
            batch_size: Rows at a time.
            allowed: For every level, bool [K_l]: which codes may be given. All may, if left out.
            item_ids: Names of the rows, for error messages.

        Raises:
            HfGrError: On NaN, another width, a level where nothing is allowed, or a quantizer that was never fitted.
        """
        check_vectors(vectors, self.config.dim, item_ids)
        self.check_fitted()
        masks = None if allowed is None else self._masks(allowed)
        codes = np.empty((len(vectors), self.num_levels), np.int32)
        for start in range(0, len(vectors), batch_size):
            batch = self._tensor(vectors[start : start + batch_size])
            found = self._encode(batch) if masks is None else self._encode_among(batch, masks)
            codes[start : start + batch_size] = found.cpu().numpy()
        return codes

    def _masks(self, allowed: Sequence[np.ndarray]) -> list[torch.Tensor]:
        shapes = [mask.shape for mask in allowed]
        if shapes != [(size,) for size in self.config.codebook_sizes] or not all(mask.any() for mask in allowed):
            raise HfGrError(
                f"allowed has shapes {shapes} for codebooks of {self.config.codebook_sizes}; give one bool mask a "
                "level with at least one code allowed."
            )
        return [torch.from_numpy(~mask).to(self.device) for mask in allowed]

    def _encode_among(self, batch: torch.Tensor, forbidden: list[torch.Tensor]) -> torch.Tensor:
        codes = torch.zeros(len(batch), self.num_levels, dtype=torch.int64, device=batch.device)
        for level, mask in enumerate(forbidden):
            distances = self._distances(batch, codes, level)
            codes[:, level] = distances.masked_fill(mask, float("inf")).argmin(1)
        return codes

    @torch.inference_mode()
    def decode(self, codes: np.ndarray, side: np.ndarray | None = None, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Vectors that codes stand for.

        Args:
            codes: int32 [N, l] with l ≤ L: the first l levels alone give the coarser vector of a prefix.
            side: float32 [N, S] of [`side`]; its mean over the fitted vectors if left out.
            batch_size: Rows at a time.

        Returns:
            float32 [N, d].

        Raises:
            HfGrError: On codes outside the codebooks.
        """
        levels = codes.shape[1] if codes.ndim == 2 else 0
        check_codes(codes, self.config.codebook_sizes[: max(levels, 1)])
        self.check_fitted()
        vectors = np.empty((len(codes), self.config.dim), np.float32)
        for start in range(0, len(codes), batch_size):
            rows = slice(start, start + batch_size)
            given = None if side is None else self._tensor(side[rows])
            vectors[rows] = self._decode(self._tensor(codes[rows], np.int64), given).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def side(self, vectors: np.ndarray, codes: np.ndarray, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """What the codes int32 [N, L] of vectors [N, d] leave out and [`decode`] can use, float32 [N, S]."""
        check_vectors(vectors, self.config.dim)
        self.check_codes(codes)
        self.check_fitted()
        side = np.empty((len(vectors), self.side_width), np.float32)
        for start in range(0, len(vectors), batch_size):
            rows = slice(start, start + batch_size)
            side[rows] = self._side(self._tensor(vectors[rows]), self._tensor(codes[rows], np.int64)).cpu().numpy()
        return side

    @torch.inference_mode()
    def distances(self, vectors: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        """What it would cost to give a vector each code of one level, given its codes on the levels before.

        Args:
            vectors: float32 [n, d].
            codes: int32 [n, L]; only the columns before `level` are read.
            level: Level whose codes are compared.

        Returns:
            float32 [n, K_level], what the method compares codes by (squared distances, for most); the least is what
            [`encode`] chooses.
        """
        check_vectors(vectors, self.config.dim)
        self.check_fitted()
        found = self._distances(self._tensor(vectors), self._tensor(codes, np.int64), level)
        return found.cpu().numpy()

    def check_fitted(self) -> None:
        """Raises [`HfGrError`] if a weight is NaN: set neither by [`fit`] nor by the checkpoint."""
        for name, weight in self.state_dict().items():
            if weight.is_floating_point() and weight.isnan().any():
                raise HfGrError(
                    f"{name} of the {self.config.model_type} quantizer {self.name_or_path or '(new)'} is not set; "
                    "call fit(), or load a complete checkpoint."
                )

    def check_codes(self, codes: np.ndarray) -> None:
        """Raises [`HfGrError`] unless the codes are [N, L] and within the codebooks."""
        check_codes(codes, self.config.codebook_sizes)

    def _tensor(self, values: np.ndarray, dtype: type = np.float32) -> torch.Tensor:
        # a copy: a slice of a memory-mapped file is read-only, and torch wants to own its memory
        return torch.from_numpy(np.array(values, dtype=dtype)).to(self.device)


def check_codes(codes: np.ndarray, codebook_sizes: Sequence[int]) -> None:
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
