import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from hf_gr.errors import HfGrError
from hf_gr.quantizers import MPQ, CoBa, CoBaConfig, MPQConfig, load_quantizer, resolve_collisions
from hf_gr.quantizers.mpq import dependence
from hf_gr.quantizers.redundancy import redundancy


SIZES = [8, 6, 5]
SMALL = {"hidden_sizes": [16], "latent_dim": 4, "codebook_sizes": SIZES, "batch_size": 64, "epochs": 4}


def blobs(rows: int = 300, dim: int = 10, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(12, dim)) * 3
    return (centres[random.integers(12, size=rows)] + random.normal(size=(rows, dim))).astype(np.float32)


def new(data: np.ndarray, method: type[MPQ] = MPQ, **options) -> MPQ:
    return method(MPQConfig(dim=data.shape[1], **(SMALL | options)))


def fitted(data: np.ndarray, seed: int = 0, **options) -> MPQ:
    return new(data, **options).fit(data, seed=seed, progress=False)


def linear(values: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return values @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def mlp(values: np.ndarray, layers: torch.nn.Sequential) -> np.ndarray:
    for layer in layers:
        values = linear(values, layer) if isinstance(layer, torch.nn.Linear) else np.maximum(values, 0)
    return values


def walk(quantizer: MPQ, data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """e [n, M, w], h [n, M], codes [n, M] and z [n, M, w], in float64."""
    inputs = (data.astype(np.float64) - quantizer.mean.numpy()) / quantizer.scale.item()
    outputs = mlp(inputs, quantizer.encoder).reshape(len(data), len(SIZES), -1)
    scores = np.exp(linear(inputs, quantizer.router))
    codes, chosen = [], []
    for expert in range(len(SIZES)):
        codebook = quantizer.code_vectors(expert).astype(np.float64)
        codes.append(((outputs[:, expert, None] - codebook[None]) ** 2).sum(-1).argmin(1))
        chosen.append(codebook[codes[-1]])
    return outputs, scores / scores.sum(1, keepdims=True), np.stack(codes, 1), np.stack(chosen, 1)


def test_codes_weights_vectors_and_distances_equal_a_numpy_line():
    data = blobs()
    quantizer = fitted(data)
    outputs, weights, expected, chosen = walk(quantizer, data)
    codes = quantizer.encode(data, batch_size=37)
    assert codes.dtype == np.int32
    assert np.array_equal(codes, expected)
    side = quantizer.side(data, codes, batch_size=50)
    assert side.shape == (300, quantizer.side_width) == (300, 3)
    assert side == pytest.approx(weights, abs=1e-5)
    assert weights.std(0).min() > 1e-4  # the router tells items apart, so that what follows can fail
    assert quantizer.usual_weights.numpy() == pytest.approx(weights.mean(0), abs=1e-5)
    for given, known in ((side, weights), (None, np.broadcast_to(weights.mean(0), weights.shape))):
        for count in (1, 2, 3):
            latents = (known[:, :count, None] * chosen[:, :count]).sum(1)
            reference = quantizer.mean.numpy() + quantizer.scale.item() * mlp(latents, quantizer.decoder)
            assert quantizer.decode(codes[:, :count], given, batch_size=41) == pytest.approx(reference, abs=1e-4)
    for expert, size in enumerate(SIZES):
        codebook = quantizer.code_vectors(expert)
        assert codebook.shape == (size, 4) and codebook.dtype == np.float32
        reference = ((outputs[:, expert, None] - codebook[None]) ** 2).sum(-1)
        for earlier in (codes, np.zeros_like(codes)):  # no code depends on another
            assert quantizer.distances(data, earlier, expert) == pytest.approx(reference, abs=1e-4)


def dependence_by_hand(outputs: np.ndarray) -> float:
    found = []
    for one, other in itertools.combinations(range(outputs.shape[1]), 2):
        a, b = (outputs[:, expert] - outputs[:, expert].mean(0) for expert in (one, other))
        norm = np.sqrt(((a.T @ a) ** 2).sum() * ((b.T @ b) ** 2).sum())
        found.append(((a.T @ b) ** 2).sum() / norm)
    return float(np.mean(found))


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_every_part_of_the_loss_equals_numpy(update: str, dropout: float):
    data = blobs()
    quantizer = fitted(data, codebook_update=update, beta=0.4, orthogonality=0.7, side_dropout=dropout)
    batch = data[:50]
    outputs, weights, _, chosen = walk(quantizer, batch)
    weights = np.broadcast_to(weights.mean(0), weights.shape) if dropout else weights
    target = (batch - quantizer.mean.numpy()) / quantizer.scale.item()
    gap = ((outputs - chosen) ** 2).mean((0, 2)).sum()
    expected = {
        "reconstruction": ((target - mlp((weights[..., None] * chosen).sum(1), quantizer.decoder)) ** 2).mean(),
        "commitment": 0.4 * gap,
        "orthogonality": 0.7 * dependence_by_hand(outputs),
    }
    if update == "gradient":
        expected["codebook"] = gap
    parts = {name: part.item() for name, part in quantizer._losses(torch.from_numpy(batch)).items()}
    assert parts == pytest.approx(expected, rel=1e-3)


def test_straight_through_hands_every_expert_its_share_of_the_decoders_gradient():
    data = blobs()
    quantizer = fitted(data, orthogonality=0.0, beta=0.0, side_dropout=0.0)
    batch = torch.from_numpy(data[:50])
    (found,) = torch.autograd.grad(
        sum(quantizer._losses(batch).values()), quantizer.encoder[-1].bias, retain_graph=False
    )
    weights = quantizer.weights(batch).detach()
    _, _, _, chosen = walk(quantizer, data[:50])
    at = (weights[..., None] * torch.from_numpy(chosen).float()).sum(1).requires_grad_()
    (upstream,) = torch.autograd.grad(quantizer.reconstruction_loss(batch, at), at)
    expected = torch.einsum("nm,nw->mw", weights, upstream)
    assert found.view(3, 4).numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    assert expected.abs().max() > 1e-5


def test_dependence_sees_an_expert_turned_round_and_not_one_that_says_something_else():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 4000, 6, generator=generator)
    turned = one @ torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    assert dependence(torch.stack([one, 3 * turned + 5], 1)).item() == pytest.approx(1, abs=1e-3)
    assert dependence(torch.stack([one, other], 1)).item() < 0.01
    three = torch.stack([one, turned, other], 1)
    assert dependence(three).item() == pytest.approx(dependence_by_hand(three.double().numpy()), rel=1e-3)
    assert dependence(one[:, None]).item() == 0
    assert torch.isfinite(dependence(torch.zeros(5, 2, 3)))


def test_orthogonality_lowers_the_redundancy():
    data = blobs(600)
    options = {"codebook_sizes": [12, 12], "latent_dim": 8, "epochs": 12}
    told = [redundancy(fitted(data, orthogonality=weight, **options).encode(data)) for weight in (0.0, 1.0)]
    assert told[1]["adjusted"] < told[0]["adjusted"] - 0.05, told


def test_the_seed_decides_and_a_reload_is_the_same(tmp_path: Path):
    data = blobs()
    one, again, other = (fitted(data, seed) for seed in (0, 0, 1))
    assert np.array_equal(one.encode(data), again.encode(data))
    assert not np.array_equal(one.encode(data), other.encode(data))
    one.save_pretrained(tmp_path)
    loaded = load_quantizer(tmp_path)
    assert type(loaded) is MPQ
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in loaded.state_dict().items())
    codes = one.encode(data)
    assert np.array_equal(loaded.encode(data), codes)
    assert np.array_equal(loaded.decode(codes, loaded.side(data, codes)), one.decode(codes, one.side(data, codes)))


class Killed(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"start": "random", "codebook_sizes": [60, 40]}])
def test_a_killed_fit_goes_on_to_the_same_bits(options: dict, tmp_path: Path):
    data, file = blobs(), tmp_path / "fit.pt"
    whole = fitted(data, 3, **options)

    class Dying(MPQ):
        def _after_epoch(self, progress: float) -> None:
            super()._after_epoch(progress)
            if len(self.fit_log) > 2:
                raise Killed

    with pytest.raises(Killed):
        new(data, Dying, **options).fit(data, seed=3, progress=False, checkpoint=file)
    resumed = new(data, **options).fit(data, seed=3, progress=False, checkpoint=file)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())
    assert resumed.fit_log == whole.fit_log


def test_dead_codes_are_put_on_outputs_of_their_expert_but_not_in_the_last_fifth():
    data = blobs()
    quantizer = fitted(data)
    batch = torch.from_numpy(data[:64])

    def changed(progress: float) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            quantizer.codebooks[1][[2, 4]] = 1e3
        quantizer._losses(batch)
        quantizer._after_step()
        before = quantizer.code_vectors(1)
        quantizer._after_epoch(progress)
        return quantizer.code_vectors(1), (quantizer.code_vectors(1) != before).any(1)

    assert not changed(0.8)[1].any()
    codebook, moved = changed(0.79)
    assert moved[[2, 4]].all()
    outputs = quantizer.experts(batch)[:, 1].detach().numpy()
    assert all((outputs == code).all(1).any() for code in codebook[[2, 4]])
    assert not np.array_equal(codebook[2], codebook[4])


def test_codes_of_many_experts_stay_in_use_and_without_the_guards_do_not():
    data = blobs(600)
    sizes = [32] * 8
    guarded = fitted(data, codebook_sizes=sizes, epochs=15).encode(data)
    plain = fitted(data, codebook_sizes=sizes, epochs=15, start="random", codebook_update="gradient", revive=False)
    used = [np.mean([len(np.unique(column)) / 32 for column in codes.T]) for codes in (guarded, plain.encode(data))]
    assert used[0] > 0.9 and used[1] < 0.6, used


def test_collisions_are_resolved_by_moving_the_last_code():
    data = blobs(200)
    quantizer = fitted(data, codebook_sizes=[6, 6, 6])
    codes = quantizer.encode(data)
    distinct, _ = resolve_collisions(codes, data, quantizer, "greedy")
    assert len(np.unique(codes, axis=0)) < 200 == len(np.unique(distinct, axis=0))
    assert (codes != distinct)[:, :-1].mean() < (codes != distinct)[:, -1].mean()


@pytest.mark.parametrize("name", ["usual_weights", "router.weight", "sums_1", "encoder.2.weight"])
def test_what_was_never_set_is_noticed(name: str):
    data = blobs()
    quantizer = fitted(data)
    with torch.no_grad():
        quantizer.state_dict()[name].view(-1)[0] = float("nan")
    with pytest.raises(HfGrError, match=name.replace(".", r"\.")):
        quantizer.encode(data)


def test_vectors_are_smoothed_as_those_of_coba():
    vectors, graph = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), sp.eye_array(6, k=1) * 1.0
    graph = (graph + graph.T).tocsr()
    quantizer = MPQ(MPQConfig(dim=4, codebook_sizes=[2, 2]))
    coba = CoBa(CoBaConfig(dim=4, codebook_sizes=[2, 2]))
    assert quantizer.uses_graph
    assert np.array_equal(quantizer.align(vectors, graph), coba.align(vectors, graph))
    assert not np.array_equal(quantizer.align(vectors, graph), vectors)
    plain = MPQ(MPQConfig(dim=4, codebook_sizes=[2, 2], hops=0))
    assert plain.align(vectors, graph) is vectors and quantizer.align(vectors, None) is vectors
