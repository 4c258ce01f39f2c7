"""What the base checks and does for every method, on a quantizer that rounds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import initialization

from hf_gr.errors import HfGrError
from hf_gr.quantizers import Quantizer, QuantizerConfig, RQKMeans, RQKMeansConfig


class RoundingConfig(QuantizerConfig):
    model_type = "test_rounding"


class Rounding(Quantizer):
    """Code l of x is ⌊x_l + offset⌉; what is rounded off is the side information."""

    config_class = RoundingConfig

    def __init__(self, config: RoundingConfig) -> None:
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(1))  # tells the device
        self.register_buffer("offset", torch.empty(1))
        self.register_buffer("rows", torch.zeros(1, dtype=torch.int64))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if module is self:
            initialization.constant_(self.offset, float("nan"))

    @property
    def side_width(self) -> int:
        return self.config.dim

    def _fit(self, vectors: np.ndarray, seed: int, progress: bool, checkpoint: Path | None) -> None:
        self.given = seed, progress, checkpoint
        self.offset.zero_()

    def _encode(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._distances(batch, batch, level).argmin(1) for level in range(self.num_levels)], 1)

    def _distances(self, batch: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        steps = torch.arange(self.config.codebook_sizes[level])
        return (batch[:, level, None] + self.offset - steps).square()

    def _side(self, batch: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return batch - codes

    def _decode(self, codes: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        rounded = torch.zeros(len(codes), self.config.dim)
        rounded[:, : codes.shape[1]] = codes.float()
        return rounded if side is None else rounded + side


VECTORS = (np.random.default_rng(0).random((30, 3)) * 3).astype(np.float32)
SIZES = [4, 5, 6]


@pytest.fixture
def quantizer() -> Rounding:
    return Rounding(RoundingConfig(dim=3, codebook_sizes=SIZES)).fit(VECTORS, progress=False)


def test_batches_of_any_size_give_the_same(quantizer: Rounding):
    codes = quantizer.encode(VECTORS)
    assert codes.dtype == np.int32 and np.array_equal(codes, np.round(VECTORS).astype(int))
    side = quantizer.side(VECTORS, codes)
    decoded = quantizer.decode(codes, side)
    assert side.dtype == decoded.dtype == np.float32
    assert np.allclose(decoded, VECTORS)
    for size in (1, 7, 30, 31):
        assert np.array_equal(quantizer.encode(VECTORS, size), codes)
        assert np.array_equal(quantizer.side(VECTORS, codes, size), side)
        assert np.array_equal(quantizer.decode(codes, side, size), decoded)


def test_no_rows_give_no_rows(quantizer: Rounding):
    codes = quantizer.encode(VECTORS[:0])
    assert codes.shape == (0, 3) and quantizer.decode(codes).shape == (0, 3)


def test_a_prefix_decodes(quantizer: Rounding):
    codes = quantizer.encode(VECTORS)
    for levels in (1, 2, 3):
        expected = np.where(np.arange(3) < levels, codes, 0)
        assert np.array_equal(quantizer.decode(codes[:, :levels]), expected)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 4), np.int32), r"shape \[2, 4\]"),
        (np.zeros((2, 0), np.int32), r"shape \[2, 0\]"),
        (np.zeros(3, np.int32), r"shape \[3\]"),
        (np.array([[0], [4]], np.int32), r"item row 1 has codes \[4\]"),
        (np.array([[0, 0, 6]], np.int32), r"item row 0 has codes \[0, 0, 6\], outside the codebook sizes \[4, 5, 6\]"),
        (np.array([[0, -1, 0]], np.int32), r"item row 0 has codes \[0, -1, 0\]"),
    ],
)
def test_codes_that_are_none_are_not_decoded(quantizer: Rounding, codes: np.ndarray, message: str):
    with pytest.raises(HfGrError, match=message):
        quantizer.decode(codes)


def test_masks_are_obeyed(quantizer: Rounding):
    allowed = [np.arange(size) == size - 1 for size in SIZES]
    assert np.array_equal(quantizer.encode(VECTORS, allowed=allowed), np.tile([3, 4, 5], (30, 1)))
    assert [mask.sum() for mask in allowed] == [1, 1, 1]  # left as they were


@pytest.mark.parametrize(
    "allowed",
    [
        [np.ones(4, bool), np.ones(5, bool)],
        [np.ones(4, bool), np.ones(4, bool), np.ones(6, bool)],
        [np.ones(4, bool), np.zeros(5, bool), np.ones(6, bool)],
    ],
)
def test_masks_of_other_shapes_or_with_nothing_allowed_are_refused(quantizer: Rounding, allowed: list[np.ndarray]):
    with pytest.raises(HfGrError, match=r"codebooks of \[4, 5, 6\]; give one bool mask a level with at least one"):
        quantizer.encode(VECTORS, allowed=allowed)


def test_buffers_count_as_weights_that_only_a_fit_sets(quantizer: Rounding):
    fresh, codes = Rounding(quantizer.config), np.zeros((1, 3), np.int32)
    for call in (
        lambda: fresh.encode(VECTORS),
        lambda: fresh.decode(codes),
        lambda: fresh.side(VECTORS[:1], codes),
        lambda: fresh.distances(VECTORS[:1], codes, 0),
    ):
        with pytest.raises(HfGrError, match=r"offset of the test_rounding quantizer \(new\) is not set; call fit"):
            call()
    quantizer.check_fitted()


def test_vectors_are_checked_before_anything_is_learned(quantizer: Rounding):
    broken = VECTORS.copy()
    broken[4, 1] = np.nan
    fresh = Rounding(quantizer.config)
    for vectors, message in (
        (broken, "item 'n4' hold"),
        (VECTORS[:, :2], "width 3"),
        (VECTORS[:5], "fewer than the 6"),
    ):
        with pytest.raises(HfGrError, match=message):
            fresh.fit(vectors, item_ids=[f"n{row}" for row in range(30)], progress=False)
    with pytest.raises(HfGrError, match="not set"):
        fresh.check_fitted()
    for call in (
        quantizer.encode,
        lambda v: quantizer.side(v, np.zeros((30, 3), int)),
        lambda v: quantizer.distances(v, v, 0),
    ):
        with pytest.raises(HfGrError, match="item row 4 hold"):
            call(broken)


def test_a_fit_is_told_seed_progress_and_checkpoint(quantizer: Rounding, tmp_path: Path):
    assert quantizer.given == (0, False, None)
    assert quantizer.fit(VECTORS, seed=3, checkpoint=str(tmp_path / "state")) is quantizer
    assert quantizer.given == (3, True, tmp_path / "state")
    assert quantizer.align(VECTORS, None) is VECTORS


def test_encode_names_the_items_of_bad_vectors():
    quantizer = RQKMeans(RQKMeansConfig(dim=3, codebook_sizes=[2])).fit(np.eye(3, dtype=np.float32), progress=False)
    ids = ["a1", "b2", "c3", "d4", "e5"]
    with pytest.raises(HfGrError, match=r"width 3, not shape \[5, 4\] \(of items 'a1', 'b2', 'c3' and 2 more\)"):
        quantizer.encode(np.ones((5, 4), np.float32), item_ids=ids)
    broken = np.ones((5, 3), np.float32)
    broken[3, 1] = np.nan
    with pytest.raises(HfGrError, match="vectors of item 'd4' hold NaN"):
        quantizer.encode(broken, item_ids=ids)
