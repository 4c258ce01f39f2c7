"""The soft index of every method that has it, against plain codes and finite differences."""

import numpy as np
import pytest
import torch

from hf_gr.errors import HfGrError
from hf_gr.quantizers import MMQ, R3VAE, MMQConfig, R3VAEConfig, SoftIndexQuantizer
from hf_gr.quantizers.soft_index import cosines, one_hot_through


SMALL = {"dim": 8, "hidden_sizes": [16], "latent_dim": 4, "batch_size": 32, "epochs": 5}
PARTS = {"modalities": ["text", "behavior"], "widths": [5, 3], "codebook_sizes": [6, 5, 4, 6, 5, 4]}
METHODS = {
    "mmq": lambda: MMQ(MMQConfig(**SMALL | PARTS, temperature=0.2)),
    "mmq-ema": lambda: MMQ(MMQConfig(**SMALL | PARTS, temperature=0.2, codebook_update="ema")),
    "r3_vae": lambda: R3VAE(R3VAEConfig(**SMALL, codebook_sizes=[6, 5], temperature=0.2)),
    "r3_vae-soft": lambda: R3VAE(R3VAEConfig(**SMALL, codebook_sizes=[6, 5], temperature=0.2, estimator="soft")),
    "r3_vae-top1": lambda: R3VAE(R3VAEConfig(**SMALL, codebook_sizes=[6, 5], temperature=0.2, rating="top1")),
}


def items() -> np.ndarray:
    random = np.random.default_rng(0)
    centres = 3 * random.normal(size=(12, 8))
    return (centres[random.integers(12, size=120)] + random.normal(size=(120, 8))).astype(np.float32)


def fitted(method: str) -> SoftIndexQuantizer:
    quantizer = METHODS[method]().fit(items(), progress=False)
    quantizer.zero_grad()  # the last step of the fit leaves its own
    return quantizer


@pytest.mark.parametrize("method", METHODS)
def test_the_argmax_is_the_code(method: str):
    quantizer, data = fitted(method), items()
    codes = quantizer.encode(data)
    for straight_through in (False, True):
        found = quantizer.soft_codes(torch.from_numpy(data), straight_through)
        assert [tuple(level.shape) for level in found] == [(120, size) for size in quantizer.config.codebook_sizes]
        assert np.array_equal(torch.stack([level.argmax(1) for level in found], 1).numpy(), codes)
        for level, soft in enumerate(found):
            assert torch.allclose(soft.sum(1), torch.ones(120), atol=1e-5)
            if straight_through:
                assert torch.allclose(soft.max(1).values, torch.ones(120), atol=1e-5)
            else:
                cosine = 1 - quantizer.distances(data, codes, level)
                powers = np.exp(cosine.astype(np.float64) / 0.2)
                assert soft.detach().numpy() == pytest.approx(powers / powers.sum(1, keepdims=True), abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_encoder_and_codebooks(method: str):
    quantizer = fitted(method)
    found = quantizer.soft_codes(torch.from_numpy(items()), straight_through=True)
    weights = [torch.randn(level.shape, generator=torch.Generator().manual_seed(0)) for level in found]
    sum((level * weight).sum() for level, weight in zip(found, weights, strict=True)).backward()
    layers = [layer for layer in quantizer.encoder.modules() if isinstance(layer, torch.nn.Linear)]
    assert all(layer.weight.grad.abs().max() > 0 for layer in layers)
    learned = [codebook for codebook in quantizer.codebooks if codebook.requires_grad]
    assert len(learned) == (0 if method == "mmq-ema" else quantizer.num_levels)
    assert all((codebook.grad.abs().max(1).values > 0).all() for codebook in learned)  # of every code, chosen or not


@pytest.mark.parametrize("method", ["mmq", "r3_vae"])
def test_the_gradient_of_the_index_is_that_of_the_softmax_by_finite_differences(method: str):
    quantizer, batch = fitted(method).double(), torch.from_numpy(items()[:20]).double()
    weights = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).double()

    def value(straight_through: bool) -> torch.Tensor:
        return (quantizer.soft_codes(batch, straight_through)[0] * weights).sum()

    codebook = quantizer.codebooks[0]
    layer = next(layer for layer in quantizer.encoder.modules() if isinstance(layer, torch.nn.Linear))
    value(True).backward()
    for parameter in (codebook, layer.weight):
        for place in ((0, 1), (3, 2), (5, 0)):
            sides = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter[place] += step
                    sides.append(value(False).item())
                    parameter[place] -= step
            assert parameter.grad[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_forward_gives_index_and_losses_beside_another_loss(method: str):
    quantizer, batch = fitted(method), torch.from_numpy(items()[:30])
    torch.manual_seed(0)
    indexes, losses = quantizer(batch)
    torch.manual_seed(0)
    assert {name: loss.item() for name, loss in losses.items()} == {
        name: loss.item() for name, loss in quantizer._losses(batch).items()
    }
    other = sum((index[:, 0]).sum() for index in indexes)
    (other + 0.5 * losses["reconstruction"]).backward()
    decoder = [layer for layer in quantizer.decoder if isinstance(layer, torch.nn.Linear)]
    assert all(layer.weight.grad.abs().max() > 0 for layer in decoder)


def test_the_index_is_one_hot_in_value_and_soft_in_gradient():
    soft = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    index = one_hot_through(soft)
    assert index.tolist() == [[0, 1, 0]]
    (index * torch.tensor([[1.0, 2, 3]])).sum().backward()
    assert soft.grad.tolist() == [[1, 2, 3]]
    assert cosines(torch.tensor([[3.0, 4], [0, 0]]), torch.tensor([[1.0, 0]])).tolist() == [
        [pytest.approx(0.6)],
        [0],
    ]


def test_a_quantizer_that_was_never_fitted_has_no_index():
    for method in METHODS.values():
        with pytest.raises(HfGrError, match="is not set"):
            method().soft_codes(torch.from_numpy(items()))
