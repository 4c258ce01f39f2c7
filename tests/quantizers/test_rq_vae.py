import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_gr.errors import HfGrError
from hf_gr.quantizers.rq_vae import RQVAE, RQVAEConfig, _rotated


SMALL = {"hidden_sizes": [16], "latent_dim": 4, "codebook_sizes": [8, 6, 5], "batch_size": 64, "epochs": 3}


def blobs(rows: int = 300, dim: int = 10, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(12, dim)) * 3
    return (centres[random.integers(12, size=rows)] + random.normal(size=(rows, dim))).astype(np.float32)


def fitted(data: np.ndarray, seed: int = 0, **options) -> RQVAE:
    quantizer = RQVAE(RQVAEConfig(dim=data.shape[1], **(SMALL | options)))
    return quantizer.fit(data, seed=seed, progress=False)


def mlp(values: np.ndarray, layers: torch.nn.Sequential) -> np.ndarray:
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
            values = values @ weight.T + bias
        else:
            values = np.maximum(values, 0)
    return values


def latents_of(quantizer: RQVAE, data: np.ndarray) -> np.ndarray:
    return mlp((data.astype(np.float64) - quantizer.mean.numpy()) / quantizer.scale.item(), quantizer.encoder)


def walk(quantizer: RQVAE, data: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Codes, ẑ and the residuals r_0 … r_{L-1}, in float64."""
    residuals, codes = [latents_of(quantizer, data)], []
    for level in range(3):
        codebook = quantizer.code_vectors(level).astype(np.float64)
        codes.append(((residuals[-1][:, None] - codebook[None]) ** 2).sum(-1).argmin(1))
        residuals.append(residuals[-1] - codebook[codes[-1]])
    return np.stack(codes, 1), residuals[0] - residuals[-1], residuals[:-1]


@pytest.mark.parametrize("options", [{}, {"codebook_update": "gradient", "start": "random"}])
def test_codes_vectors_and_distances_equal_a_numpy_line(options: dict):
    data = blobs()
    quantizer = fitted(data, **options)
    expected, quantized, residuals = walk(quantizer, data)
    codes = quantizer.encode(data, batch_size=37)
    assert codes.dtype == np.int32
    assert np.array_equal(codes, expected)
    for levels in (1, 2, 3):
        prefix = sum(quantizer.code_vectors(level)[codes[:, level]].astype(np.float64) for level in range(levels))
        decoded = quantizer.decode(codes[:, :levels], batch_size=41)
        reference = quantizer.mean.numpy() + quantizer.scale.item() * mlp(prefix, quantizer.decoder)
        assert decoded == pytest.approx(reference, abs=1e-4)
    assert prefix == pytest.approx(quantized, abs=1e-5)
    for level in range(3):
        distances = quantizer.distances(data, codes, level)
        codebook = quantizer.code_vectors(level)
        assert distances == pytest.approx(((residuals[level][:, None] - codebook[None]) ** 2).sum(-1), abs=1e-4)
        assert np.array_equal(distances.argmin(1), codes[:, level])


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_every_part_of_the_loss_equals_numpy(update: str, estimator: str):
    data = blobs()
    quantizer = fitted(data, codebook_update=update, estimator=estimator, beta=0.4)
    batch = data[:50]
    codes, quantized, residuals = walk(quantizer, batch)
    parts = {name: part.item() for name, part in quantizer._losses(torch.from_numpy(batch)).items()}
    target = (batch - quantizer.mean.numpy()) / quantizer.scale.item()
    gaps = [((residuals[level] - quantizer.code_vectors(level)[codes[:, level]]) ** 2).mean() for level in range(3)]
    expected = {
        "reconstruction": ((target - mlp(quantized, quantizer.decoder)) ** 2).mean(),
        "commitment": 0.4 * sum(gaps),
    }
    if update == "gradient":
        expected["codebook"] = sum(gaps)
    assert parts == pytest.approx(expected, rel=1e-3)


def gradients(quantizer: RQVAE, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*((n, p) for n, p in quantizer.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_straight_through_hands_the_decoders_gradient_to_the_latent(update: str):
    data = blobs()
    quantizer = fitted(data, codebook_update=update)
    batch = torch.from_numpy(data[:50])
    codes = torch.from_numpy(quantizer.encode(data[:50]).astype(np.int64))
    found = gradients(quantizer, torch.stack(list(quantizer._losses(batch).values())).sum())

    latents = quantizer.latents(batch)
    chosen = [quantizer.codebooks[level].detach()[codes[:, level]] for level in range(3)]
    at = torch.stack(chosen).sum(0).requires_grad_()
    (upstream,) = torch.autograd.grad(quantizer.reconstruction_loss(batch, at), at)
    residual, commitment, pull = latents, torch.zeros(()), {}
    for level, codebook in enumerate(quantizer.codebooks):
        commitment = commitment + (residual - chosen[level]).square().mean()
        counts = F.one_hot(codes[:, level], len(codebook)).float()
        # d/de mean‖r − e‖² summed over what chose the code
        gaps = codebook.detach()[codes[:, level]] - residual.detach()
        pull[f"codebooks.{level}"] = 2 / batch.shape[0] / 4 * counts.T @ gaps
        residual = residual - chosen[level]
    expected = gradients(quantizer, (upstream * latents).sum() + 0.25 * commitment)
    decoded = gradients(quantizer, quantizer.reconstruction_loss(batch, at.detach()))
    for name, gradient in found.items():
        reference = decoded[name] if name.startswith("decoder") else pull.get(name, expected[name])
        assert torch.allclose(gradient, reference, atol=1e-6), name
        assert reference.abs().max() > 1e-5, name
    assert ("codebooks.0" in found) == (update == "gradient")


def test_the_rotation_is_one_in_value_and_gradient():
    generator = torch.Generator().manual_seed(0)
    z, to = torch.randn(20, 5, generator=generator).double(), torch.randn(20, 5, generator=generator).double()
    z.requires_grad_()
    found = _rotated(z, to)
    assert torch.allclose(found, to)
    for row in range(20):
        jacobian = torch.stack([torch.autograd.grad(found[row, i], z, retain_graph=True)[0][row] for i in range(5)])
        scale = to[row].norm() / z[row].norm()
        e, q = z[row].detach() / z[row].norm(), to[row] / to[row].norm()
        # the rotation within the plane of e and q: cos, sin from a basis of the plane, the identity elsewhere
        across = q - (q @ e) * e
        across = across / across.norm()
        cos, sin = q @ e, q @ across
        plane = torch.stack([e, across], 1)
        turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
        rotation = torch.eye(5).double() + plane @ (turn - torch.eye(2).double()) @ plane.T
        assert torch.allclose(rotation @ rotation.T, torch.eye(5).double())
        assert torch.allclose(jacobian.detach(), (scale * rotation).detach(), atol=1e-9)


def test_the_rotation_trick_moves_the_encoder_by_the_rotated_gradient():
    data = blobs()
    quantizer = fitted(data, estimator="rotation", beta=0.0)
    batch = torch.from_numpy(data[:30])
    found = gradients(quantizer, torch.stack(list(quantizer._losses(batch).values())).sum())
    quantizer.config.estimator = "straight_through"
    plain = gradients(quantizer, torch.stack(list(quantizer._losses(batch).values())).sum())
    assert torch.allclose(found["decoder.0.weight"], plain["decoder.0.weight"], atol=1e-5)
    assert not torch.allclose(found["encoder.0.weight"], plain["encoder.0.weight"], atol=1e-5)
    quantized = quantizer._quantized(quantizer.latents(batch))[0].detach()
    at = quantized.clone().requires_grad_()
    (upstream,) = torch.autograd.grad(quantizer.reconstruction_loss(batch, at), at)
    expected = gradients(quantizer, (upstream * _rotated(quantizer.latents(batch), quantized)).sum())
    assert torch.allclose(found["encoder.0.weight"], expected["encoder.0.weight"], atol=1e-6)


def test_gumbel_draws_one_code_and_teaches_codes_and_encoder_by_the_decoder():
    data = blobs()
    quantizer = fitted(data, estimator="gumbel", codebook_update="gradient")
    batch = torch.from_numpy(data[:50])
    torch.manual_seed(1)
    parts = quantizer._losses(batch)
    residual, drawn = quantizer.latents(batch).detach(), torch.zeros(50, 4)
    for level, (seen, codes) in enumerate(quantizer._seen):
        assert torch.allclose(seen, residual, atol=1e-6)
        chosen = quantizer.codebooks[level].detach()[codes]
        residual, drawn = residual - chosen, drawn + chosen
    # ẑ is the sum of the drawn codes, no mixture
    expected = quantizer.reconstruction_loss(batch, drawn)
    assert parts["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-4)
    found = gradients(quantizer, parts["reconstruction"])
    assert all(found[f"codebooks.{level}"].abs().max() > 1e-6 for level in range(3))
    assert found["encoder.0.weight"].abs().max() > 1e-6
    # the codebook's own part is ‖sg(r) − e‖²: nothing of it for the encoder
    own = gradients(quantizer, quantizer._losses(batch)["codebook"])
    assert own["encoder.0.weight"].abs().max() == 0
    assert own["codebooks.0"].abs().max() > 0
    draws = [quantizer._seen[0][1] for _ in range(2) if quantizer._losses(batch)]
    assert not torch.equal(*draws)
    assert np.array_equal(quantizer.encode(data), quantizer.encode(data))  # no noise outside the fit
    assert np.array_equal(quantizer.encode(data), walk(quantizer, data)[0])


def test_a_cold_gumbel_draws_the_nearest_code():
    data = blobs()
    quantizer = fitted(data, estimator="gumbel", codebook_update="gradient", temperature=1e-6)
    quantizer._losses(torch.from_numpy(data))
    assert np.mean(quantizer._seen[0][1].numpy() == quantizer.encode(data)[:, 0]) > 0.99


def test_gumbel_learns_at_its_own_temperature():
    data = blobs(600)
    options = {"estimator": "gumbel", "codebook_update": "gradient", "epochs": 15, "learning_rate": 3e-3}
    cold, hot = fitted(data, **options), fitted(data, **options, temperature=1.0)
    errors = [np.square(q.decode(q.encode(data)) - data).mean() / data.var(0).mean() for q in (cold, hot)]
    assert errors[0] < 0.8 * errors[1], errors


def test_gumbel_and_averages_do_not_go_together():
    with pytest.raises(HfGrError, match="gradient"):
        RQVAE(RQVAEConfig(dim=4, estimator="gumbel"))


def test_the_averages_equal_a_loop():
    data = blobs()
    quantizer = fitted(data, ema_decay=0.9, epochs=0)
    counts = [np.full(size, 64 / size) for size in (8, 6, 5)]
    codebooks = [quantizer.code_vectors(level).astype(np.float64) for level in range(3)]
    sums = [count[:, None] * codebook for count, codebook in zip(counts, codebooks, strict=True)]
    for step in range(5):
        batch = data[step * 50 : step * 50 + 50]
        residual = latents_of(quantizer, batch)
        quantizer._losses(torch.from_numpy(batch))
        quantizer._after_step()
        for level in range(3):
            codes = ((residual[:, None] - codebooks[level][None]) ** 2).sum(-1).argmin(1)
            after = residual - codebooks[level][codes]
            for code in range(len(counts[level])):
                mine = residual[codes == code]
                counts[level][code] = 0.9 * counts[level][code] + 0.1 * len(mine)
                sums[level][code] = 0.9 * sums[level][code] + 0.1 * mine.sum(0)
            residual = after
        codebooks = [total / count[:, None] for total, count in zip(sums, counts, strict=True)]
        for level in range(3):
            assert quantizer.code_vectors(level) == pytest.approx(codebooks[level], abs=1e-5)
            assert quantizer._counts(level).numpy() == pytest.approx(counts[level], rel=1e-4)


def test_a_code_that_nothing_chooses_stays_where_it_is():
    data = blobs()
    quantizer = fitted(data, epochs=0)
    with torch.no_grad():
        quantizer.codebooks[0][2] = 1e3
        quantizer._forget(0, torch.tensor([2]))
    for _ in range(3000):
        quantizer._seen = [(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))]
        quantizer._after_step()
    assert quantizer.code_vectors(0)[2] == pytest.approx(np.full(4, 1e3))
    assert quantizer.code_vectors(0)[0] == pytest.approx(np.zeros(4), abs=1e-4)


def test_averages_keep_the_gradient_out_of_the_codes():
    data = blobs()
    quantizer = fitted(data, epochs=0)
    before = quantizer.code_vectors(1)
    quantizer._after_step = lambda: None
    quantizer.config.revive = False
    quantizer._epoch(data, iter([np.arange(64)]), torch.optim.SGD(quantizer._groups(), 0.1), Still())
    assert np.array_equal(quantizer.code_vectors(1), before)
    assert not np.array_equal(fitted(data, epochs=1).code_vectors(1), before)


class Still:
    def step(self) -> None:
        pass


def test_kmeans_start_puts_codes_where_latents_are():
    data = blobs(1000)
    started = fitted(data, epochs=0)
    random = fitted(data, epochs=0, start="random")
    codes, _, residuals = walk(started, data)
    for level in range(3):
        assert len(np.unique(codes[:, level])) == SMALL["codebook_sizes"][level]
        for code in range(SMALL["codebook_sizes"][level]):  # nearly the centre of what chooses it
            mine = residuals[level][codes[:, level] == code]
            step = np.linalg.norm(mine.mean(0) - started.code_vectors(level)[code])
            assert step < 0.3 * np.sqrt((residuals[level] ** 2).sum(1).mean())
    errors = [np.square(residual).mean() for residual in residuals]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert np.square(walk(random, data)[2][2]).mean() > errors[2]
    wide = fitted(blobs(), epochs=0, start="random", codebook_sizes=[200, 200, 200])
    deviation = latents_of(wide, blobs()).std()
    for level in range(3):
        assert wide.code_vectors(level).std() == pytest.approx(deviation, rel=0.1)
    assert not np.array_equal(wide.code_vectors(0), wide.code_vectors(1))


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_dead_code_moves_onto_a_residual_but_not_in_the_last_fifth(update: str):
    data = blobs()
    quantizer = fitted(data, codebook_update=update)
    batch = torch.from_numpy(data[:64])

    def step(progress: float) -> tuple[np.ndarray, list[np.ndarray]]:
        with torch.no_grad():
            quantizer.codebooks[1][[2, 4]] = 1e3
        quantizer._losses(batch)
        quantizer._after_step()
        used = [times.numpy() > 0 for times in quantizer._used]
        before = [quantizer.code_vectors(level) for level in range(3)]
        quantizer._after_epoch(progress)
        after = [quantizer.code_vectors(level) for level in range(3)]
        assert not any(times.any() for times in quantizer._used)
        moved = [(one != other).any(1) for one, other in zip(before, after, strict=True)]
        assert not any((moves & times).any() for moves, times in zip(moved, used, strict=True))
        return after[1], moved

    codebook, moved = step(0.8)
    assert not any(moves.any() for moves in moved)
    quantizer.config.revive = False
    assert not step(0.5)[1][1].any()
    quantizer.config.revive = True
    codebook, moved = step(0.79)
    assert moved[1][[2, 4]].all()
    residual = quantizer._seen[1][0].numpy()
    hits = [np.flatnonzero((residual == codebook[code]).all(1)) for code in (2, 4)]
    assert all(len(hit) for hit in hits)
    assert hits[0][0] != hits[1][0]  # two codes on one residual would leave one dead
    assert quantizer._counts(1)[[2, 4]].tolist() == pytest.approx([64 / 6] * 2)
    if update == "ema":
        assert quantizer.get_buffer("sums_1")[2].numpy() == pytest.approx(codebook[2] * 64 / 6, rel=1e-5)


def test_no_more_codes_are_revived_than_residuals_differ():
    data = blobs()
    quantizer = fitted(data)
    quantizer._losses(torch.from_numpy(np.repeat(data[:1], 5, 0)))
    quantizer._after_step()
    before = quantizer.code_vectors(0)
    quantizer._after_epoch(0.1)
    assert (quantizer.code_vectors(0) != before).any(1).sum() == 1


def test_without_its_guards_an_rq_vae_collapses():
    data = blobs(600, seed=1)
    sizes = [32, 32, 32]
    plain = fitted(data, codebook_sizes=sizes, epochs=15, start="random", codebook_update="gradient", revive=False)
    guarded = fitted(data, codebook_sizes=sizes, epochs=15)
    used = [[len(np.unique(level)) for level in quantizer.encode(data).T] for quantizer in (plain, guarded)]
    assert max(used[0]) < 0.9 * 32, used
    assert min(used[1]) >= 0.9 * 32, used
