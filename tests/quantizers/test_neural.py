import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_gr.errors import HfGrError
from hf_gr.quantizers import neural, vectors
from hf_gr.quantizers.coba import CoBa
from hf_gr.quantizers.neural import NeuralQuantizer, _warm_cosine, moments
from hf_gr.quantizers.rq_vae import RQVAE


SMALL = {"hidden_sizes": [16], "latent_dim": 4, "codebook_sizes": [8, 6], "batch_size": 64, "epochs": 5}


def blobs(rows: int = 300, dim: int = 10, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(12, dim)) * 3
    return (centres[random.integers(12, size=rows)] + random.normal(size=(rows, dim))).astype(np.float32)


def new(data: np.ndarray, method: type[RQVAE] = RQVAE, **options) -> RQVAE:
    return method(method.config_class(dim=data.shape[1], **(SMALL | options)))


def state_of(quantizer: NeuralQuantizer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Counting:
    """An array that remembers the most rows that were read of it at a time."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.shape, self.ndim, self.most = data, data.shape, data.ndim, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows):
        found = self.data[rows]
        self.most = max(self.most, len(found) if found.ndim == 2 else 1)
        return found

    def __array__(self, *args, **kwargs):
        raise AssertionError("all rows were read at once")


def test_fit_reads_a_file_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=(300, 10))
    data[:] = blobs()
    for module, name, rows in ((vectors, "CHUNK", 80), (neural, "CHUNK", 80), (neural, "BATCH_SIZE", 50)):
        monkeypatch.setattr(module, name, rows)
    counted, quantizer = Counting(data), new(data, sample_size=70, epochs=2)
    quantizer._fit(counted, 0, False, None)
    assert counted.most == 70  # of the sample; batches are of 64, moments of 50
    assert quantizer.mean.numpy() == pytest.approx(data.mean(0), abs=1e-5)
    whole = new(data, sample_size=70, epochs=2).fit(data, progress=False)
    assert np.array_equal(whole.encode(data), quantizer.encode(data))


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (RQVAE, {}),
        (RQVAE, {"codebook_update": "gradient", "estimator": "gumbel"}),
        (RQVAE, {"start": "random", "codebook_sizes": [60, 40]}),  # codes die and are revived at random
        (CoBa, {}),
    ],
)
@pytest.mark.parametrize("killed_after", [1, 4])
def test_a_killed_fit_goes_on_to_the_same_bits(method: type[RQVAE], options: dict, killed_after: int, tmp_path: Path):
    data, file = blobs(), tmp_path / "new" / "fit.pt"
    whole = new(data, method, **options).fit(data, seed=3, progress=False)

    class Dying(method):
        def _after_epoch(self, progress: float) -> None:
            super()._after_epoch(progress)
            if len(self.fit_log) > killed_after:
                raise Killed

    with pytest.raises(Killed):
        new(data, Dying, **options).fit(data, seed=3, progress=False, checkpoint=file)
    assert [path.name for path in file.parent.iterdir()] == ["fit.pt"]
    epochs = []

    class Resumed(method):
        def _after_epoch(self, progress: float) -> None:
            super()._after_epoch(progress)
            epochs.append(progress)

    resumed = new(data, Resumed, **options).fit(data, seed=3, progress=False, checkpoint=file)
    assert len(epochs) == 5 - killed_after
    assert same(state_of(resumed), state_of(whole))
    assert resumed.fit_log == whole.fit_log
    assert len(whole.fit_log) == 5
    assert np.array_equal(resumed.encode(data), whole.encode(data))
    done = new(data, method, **options).fit(
        data, seed=3, progress=False, checkpoint=file
    )  # killed after the last epoch
    assert same(state_of(done), state_of(whole))


def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path):
    data, file = blobs(), tmp_path / "fit.pt"
    new(data).fit(data, progress=False, checkpoint=file)
    for quantizer, seed, rows in ((new(data), 1, 300), (new(data, epochs=6), 0, 300), (new(data), 0, 299)):
        with pytest.raises(HfGrError, match="of another fit") as error:
            quantizer.fit(data[:rows], seed=seed, progress=False, checkpoint=file)
        assert "\n" not in str(error.value)


def test_the_seed_decides(tmp_path: Path):
    data = blobs()
    codes = [new(data).fit(data, seed=seed, progress=False).encode(data) for seed in (0, 0, 1)]
    assert np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])
    quantizer = new(data).fit(blobs(seed=5), seed=4, progress=False)
    assert np.array_equal(quantizer.fit(data, progress=False).encode(data), codes[0])  # a second fit starts anew


def test_a_fit_leaves_the_global_generators_alone():
    data = blobs()
    quantizer = new(data, codebook_update="gradient", estimator="gumbel")
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    quantizer.fit(data, progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_a_fit_works_where_gradients_are_off():
    data = blobs()
    with torch.no_grad():
        inside = new(data).fit(data, progress=False)
        assert not torch.is_grad_enabled()
    assert same(state_of(inside), state_of(new(data).fit(data, progress=False)))


def test_reload_gives_identical_codes(tmp_path: Path):
    data = blobs()
    for method in (RQVAE, CoBa):
        quantizer = new(data, method).fit(data, progress=False)
        quantizer.save_pretrained(tmp_path)
        loaded = method.from_pretrained(tmp_path)
        assert same(state_of(loaded), state_of(quantizer))
        assert np.array_equal(loaded.encode(data), quantizer.encode(data))
        assert loaded.config.hidden_sizes == [16]
        # what was loaded can be fitted again, and learns the same
        assert same(state_of(loaded.fit(data, progress=False)), state_of(quantizer))


@pytest.mark.parametrize("name", ["mean", "scale", "counts_1", "sums_0", "codebooks.1", "encoder.0.weight"])
def test_what_was_never_set_is_noticed(name: str):
    data = blobs()
    with pytest.raises(HfGrError, match="is not set"):
        new(data).encode(data)
    quantizer = new(data).fit(data, progress=False)
    with torch.no_grad():
        quantizer.state_dict()[name].view(-1)[0] = float("nan")
    with pytest.raises(HfGrError, match=name.replace(".", r"\.")):
        quantizer.encode(data)


def test_constant_dimensions_and_constant_vectors_do_no_harm():
    data = blobs()
    data[:, 3] = 17
    quantizer = new(data).fit(data, progress=False)
    assert np.isfinite(quantizer.decode(quantizer.encode(data))).all()
    equal = np.full((20, 10), 5, np.float32)
    with pytest.raises(HfGrError, match="differ"):
        new(equal).fit(equal, progress=False)
    with pytest.warns(UserWarning, match="repeat"):
        single = new(equal, codebook_sizes=[1]).fit(equal, progress=False)  # one code is enough for one vector
    assert single.scale.item() == 1
    assert np.isfinite(single.decode(single.encode(equal))).all()


def testmoments_equal_numpy_even_far_from_zero(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neural, "BATCH_SIZE", 37)
    steps = np.random.default_rng(0).integers(0, 5, (500, 4))
    for offset, unit in ((0.0, 1.0), (2.0**20, 2.0**-3), (-(2.0**40), 2.0**17)):
        data = (offset + steps * unit).astype(np.float32)  # exact: the offset has room for the unit
        mean, variance = moments(data)
        assert mean.dtype == np.float32
        assert mean == pytest.approx(data.astype(np.float64).mean(0), rel=1e-7)
        assert variance == pytest.approx((steps.astype(np.float64) * unit).var(0).mean(), rel=1e-9)
    assert moments(np.full((50, 3), 0.1, np.float32))[1] == 0


def test_the_learning_rate_rises_and_ends_at_0():
    rates = [_warm_cosine(step, 100) for step in range(101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert rates[100] == pytest.approx(0)
    assert rates[99] > 0


def test_the_schedule_spans_every_step_of_the_fit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neural, "CHUNK", 130)  # 3 + 3 + 1 batches an epoch
    monkeypatch.setattr(vectors, "CHUNK", 130)
    asked = []
    monkeypatch.setattr(neural, "_warm_cosine", lambda step, steps: asked.append((step, steps)) or 0.5)
    data = blobs()
    new(data).fit(data, progress=False)
    assert {steps for _, steps in asked} == {5 * 7}
    assert list(dict.fromkeys(step for step, _ in asked)) == list(range(5 * 7 + 1))


def test_only_weights_of_layers_decay():
    quantizer = new(blobs(), CoBa, weight_decay=0.3)
    decayed, rest = quantizer._groups()
    named = {id(parameter): name for name, parameter in quantizer.named_parameters()}
    assert {named[id(parameter)] for parameter in decayed["params"]} == {
        f"{part}.{layer}.weight" for part in ("encoder", "decoder") for layer in (0, 2)
    }
    assert {named[id(parameter)] for parameter in rest["params"]} == set(named.values()) - {
        named[id(parameter)] for parameter in decayed["params"]
    }
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    averaged = new(blobs(), RQVAE)  # codes that follow averages are no business of the optimizer
    trained = {id(parameter) for group in averaged._groups() for parameter in group["params"]}
    assert not trained & {id(codebook) for codebook in averaged.codebooks}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_fit(bad: float, tmp_path: Path):
    class Broken(RQVAE):
        def _losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            parts = super()._losses(batch)
            return parts | {"commitment": parts["commitment"] * (bad if len(self.fit_log) == 1 else 1)}

    data = blobs()
    with pytest.raises(HfGrError, match="learning_rate") as error:
        new(data, Broken).fit(data, progress=False, checkpoint=tmp_path / "fit.pt")
    assert "\n" not in str(error.value)
    assert torch.load(tmp_path / "fit.pt", weights_only=True)["epoch"] == 1  # the last good state


def test_the_log_holds_means_over_the_vectors():
    class Silent(RQVAE):
        def _losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": self.latents(batch).sum() * 0 + len(batch), "b": batch[:, 0].mean()}

    data = blobs()
    quantizer = new(data, Silent, epochs=2)
    quantizer._after_step = lambda: None
    quantizer.config.revive = False
    quantizer.fit(data, progress=False)
    sizes = np.array([64, 64, 64, 64, 44])
    for entry in quantizer.fit_log:
        assert list(entry) == ["a", "b"]
        assert entry["a"] == pytest.approx((sizes**2).sum() / 300)
        assert entry["b"] == pytest.approx(float(data[:, 0].mean()), abs=1e-5)


def test_what_is_kept_of_a_batch_holds_no_graph():
    data = blobs()
    for options in ({}, {"codebook_update": "gradient"}, {"codebook_update": "gradient", "estimator": "gumbel"}):
        quantizer = new(data, **options).fit(data, progress=False)
        assert len(quantizer._seen) == 2
        assert not any(tensor.requires_grad for pair in quantizer._seen for tensor in pair)


def test_the_loss_of_reconstruction_is_1_for_the_mean():
    data = blobs()
    quantizer = new(data).fit(data, progress=False)
    with torch.no_grad():
        for layer in (0, 2):
            quantizer.decoder[layer].weight.zero_()
            quantizer.decoder[layer].bias.zero_()
        loss = quantizer.reconstruction_loss(torch.from_numpy(data), torch.zeros(300, 4))
        found = quantizer.reconstructed(torch.zeros(1, 4))
    assert loss.item() == pytest.approx(1, rel=1e-4)
    assert math.isclose(quantizer.scale.item() ** 2, data.var(0).mean(), rel_tol=1e-4)
    assert found[0].numpy() == pytest.approx(data.mean(0), abs=1e-4)
