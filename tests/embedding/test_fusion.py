import numpy as np
import pytest

from hf_gr.embedding.fusion import fuse
from hf_gr.errors import HfGrError


random = np.random.default_rng(0)
TEXT = random.normal(size=(6, 5)).astype(np.float32) * 100
BEHAVIOR = random.normal(size=(6, 3)).astype(np.float32)


def cosines(vectors: np.ndarray) -> np.ndarray:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units @ units.T


def test_inner_products_are_the_weighted_sum_of_cosines():
    fused = fuse({"text": TEXT, "behavior": BEHAVIOR}, {"behavior": 0.5, "text": 2.0})
    assert fused.dtype == np.float32
    assert fused.shape == (6, 8)
    assert np.allclose(fused @ fused.T, 2.0 * cosines(TEXT) + 0.5 * cosines(BEHAVIOR), atol=1e-5)


def test_rows_of_zeros_stay_zero():
    unknown = BEHAVIOR.copy()
    unknown[2] = 0
    fused = fuse({"text": TEXT, "behavior": unknown}, {"text": 1, "behavior": 1})
    assert (fused[2, 5:] == 0).all()
    assert np.isclose(np.linalg.norm(fused[2]), 1)


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({"text": TEXT}, {"text": 1, "image": 1}, "image"),
        ({}, {}, "weights"),
        ({"text": TEXT, "behavior": BEHAVIOR[:5]}, {"text": 1, "behavior": 1}, "rows are"),
        ({"text": TEXT}, {"text": 0}, "weight of 'text' is 0"),
        ({"text": TEXT}, {"text": float("nan")}, "weight of 'text' is nan"),
    ],
)
def test_parts_and_weights_must_agree(parts: dict, weights: dict, message: str):
    with pytest.raises(HfGrError, match=message):
        fuse(parts, weights)
