import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from hf_gr.catalog import SidCatalog
from hf_gr.catalog_updates import add_items
from hf_gr.dataset import InteractionDataset
from hf_gr.embedding import EmbedConfig, ItemVectors, embed
from hf_gr.errors import HfGrError
from hf_gr.quantizers import MMQ, MMQConfig, QuantizeConfig, load_quantizer, quantize, resolve_collisions
from hf_gr.quantizers.mmq import parameter_overlap


PARTS = {"text": 6, "image": 4}
SIZES = [8, 7, 6, 5, 6, 4]
READS = [slice(0, 10)] * 2 + [slice(0, 6)] * 2 + [slice(6, 10)] * 2
SMALL = {
    "dim": 10,
    "modalities": list(PARTS),
    "widths": list(PARTS.values()),
    "codebook_sizes": SIZES,
    "hidden_sizes": [16],
    "latent_dim": 4,
    "batch_size": 64,
    "epochs": 4,
}
UPDATES = ["gradient", "ema"]


def items(rows: int = 300, seed: int = 0) -> np.ndarray:
    """Vectors of two modalities; the first 30 items have no image, the next 10 no text."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(12, 10)) * 3
    vectors = (centres[random.integers(12, size=rows)] + random.normal(size=(rows, 10))).astype(np.float32)
    vectors[:30, 6:], vectors[30:40, :6] = 0, 0
    return vectors


def new(kind: type[MMQ] = MMQ, **options) -> MMQ:
    return kind(MMQConfig(**SMALL | options))


def fitted(seed: int = 0, **options) -> MMQ:
    return new(**options).fit(items(), seed=seed, progress=False)


def mlp(values: np.ndarray, layers: torch.nn.Sequential) -> np.ndarray:
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
            values = values @ weight.T + bias
        else:
            values = np.maximum(values, 0)
    return values


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


class Walk:
    """Everything that a quantizer makes of vectors, in NumPy float64."""

    def __init__(self, quantizer: MMQ, data: np.ndarray) -> None:
        self.values = (data.astype(np.float64) - quantizer.mean.numpy()) / quantizer.scale.numpy()
        known = np.stack([data[:, :6].any(1), data[:, 6:].any(1)], 1)
        self.known = known
        features = np.where(np.repeat(known, [6, 4], 1), self.values, quantizer.absent.detach().numpy())
        self.points = [mlp(features[:, read], net) for read, net in zip(READS, quantizer.encoder, strict=True)]
        parts = (features[:, :6], features[:, 6:])
        self.gates = np.hstack([softmax(mlp(p, gate)) for p, gate in zip(parts, quantizer.gates, strict=True)])
        self.cosines, self.codes, self.chosen = [], [], []
        for level, points in enumerate(self.points):
            codes = quantizer.code_vectors(level).astype(np.float64)
            lengths = np.linalg.norm(points, axis=1)[:, None] * np.linalg.norm(codes, axis=1)
            self.cosines.append(points @ codes.T / lengths)
            self.codes.append(self.cosines[-1].argmax(1))
            self.chosen.append(codes[self.codes[-1]])

    def mixed(self, gates: np.ndarray, levels: int = 6) -> tuple[np.ndarray, list[np.ndarray]]:
        weights = np.hstack([np.ones((len(gates), 2)), gates])
        each = [weights[:, [level]] * self.chosen[level] for level in range(levels)]
        none = [np.zeros_like(self.chosen[0])]
        return sum(each[:2], none[0]), [sum(each[2:4], none[0]), sum(each[4:6], none[0])]


@pytest.mark.parametrize("update", UPDATES)
def test_codes_gates_vectors_and_distances_equal_numpy(update: str):
    data, quantizer = items(), fitted(codebook_update=update)
    walk = Walk(quantizer, data)
    codes = quantizer.encode(data, batch_size=37)
    assert codes.dtype == np.int32 and np.array_equal(codes, np.stack(walk.codes, 1))
    side = quantizer.side(data, codes, batch_size=50)
    assert side.shape == (300, quantizer.side_width) == (300, 4)
    assert side == pytest.approx(walk.gates, abs=1e-5)
    assert walk.gates.std(0).min() > 1e-4  # gates tell items apart, so that what follows can fail
    usual = np.broadcast_to(walk.gates.mean(0), walk.gates.shape)
    for given, known in ((side, walk.gates), (None, usual)):
        for count in range(1, 7):
            shared, own = walk.mixed(known, count)
            decoded = mlp(shared + own[0] + own[1], quantizer.decoder)
            expected = quantizer.mean.numpy() + quantizer.scale.numpy() * decoded
            assert quantizer.decode(codes[:, :count], given, batch_size=41) == pytest.approx(expected, abs=1e-4)
    for level, size in enumerate(SIZES):
        assert quantizer.code_vectors(level).shape == (size, 4)
        found = quantizer.distances(data, np.zeros_like(codes), level)  # no code depends on another
        assert found == pytest.approx(1 - walk.cosines[level], abs=1e-5)


def test_modalities_are_measured_by_the_items_that_have_them():
    data, quantizer = items(), fitted()
    for part, rows in ((slice(0, 6), data[:, :6].any(1)), (slice(6, 10), data[:, 6:].any(1))):
        seen = data[rows, part].astype(np.float64)
        assert (~rows).sum() > 0 and quantizer.mean[part].numpy() == pytest.approx(seen.mean(0), abs=1e-5)
        assert quantizer.scale[part].numpy() == pytest.approx(np.sqrt(seen.var(0).mean()), rel=1e-5)


def overlap_by_hand(quantizer: MMQ) -> float:
    total = 0.0
    flat = [
        np.concatenate([layer.weight.detach().double().numpy().ravel() for layer in net[::2]])
        for net in quantizer.encoder
    ]
    for one, other in ((0, 1), (2, 3), (4, 5)):
        cosine = flat[one] @ flat[other] / np.linalg.norm(flat[one]) / np.linalg.norm(flat[other])
        total += 2 * cosine**2
    return total


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_every_part_of_the_loss_equals_numpy(update: str, dropout: float):
    quantizer = fitted(codebook_update=update, beta=0.4, orthogonality=0.7, side_dropout=dropout)
    batch = items()[:80]
    walk = Walk(quantizer, batch)
    gates = np.broadcast_to(walk.gates.mean(0), walk.gates.shape) if dropout else walk.gates
    shared, own = walk.mixed(gates)
    whole = np.square(mlp(shared + own[0] + own[1], quantizer.decoder) - walk.values)
    variances = quantizer.scale.double().numpy() ** 2
    reconstruction = modalities = 0.0
    for m, part in enumerate((slice(0, 6), slice(6, 10))):
        rows = walk.known[:, m]
        share = variances[part].sum() / variances.sum()
        reconstruction += share * whole[rows, part].mean()
        decoded = mlp(shared + own[m], quantizer.decoders[m])
        modalities += np.square(decoded - walk.values[:, part])[rows].mean()
    commitment = sum(np.square(p - c).mean() for p, c in zip(walk.points, walk.chosen, strict=True))
    expected = {
        "reconstruction": 12 * reconstruction,
        "modalities": 10 * modalities,
        "orthogonality": 0.7 * overlap_by_hand(quantizer),
        "commitment": 0.4 * commitment,
    }
    parts = {name: part.item() for name, part in quantizer._losses(torch.from_numpy(batch)).items()}
    assert parts == pytest.approx(expected, rel=1e-3)


def test_straight_through_hands_every_expert_its_weight_of_the_decoders_gradients():
    quantizer = fitted(codebook_update="ema", orthogonality=0.0, beta=0.0, side_dropout=0.0)
    batch = torch.from_numpy(items()[40:90])
    bias = quantizer.encoder[2][-1].bias  # of the first text expert
    (found,) = torch.autograd.grad(sum(quantizer._losses(batch).values()), bias)
    latents, gates = quantizer.latents(batch), quantizer._gates(quantizer.features(batch)[0]).detach()
    chosen = quantizer._passed(latents)[1].detach()

    def loss(shift: float, dimension: int) -> float:  # of decoders that read the codes, one expert's shifted
        moved = chosen.double().clone()
        moved[:, 2, dimension] += shift
        shared, own = quantizer._mixed(moved, gates.double())
        values = ((batch - quantizer.mean) / quantizer.scale).double().numpy()
        whole = np.square(mlp((shared + own[0] + own[1]).detach().numpy(), quantizer.decoder) - values)
        variances = quantizer.scale.double().numpy() ** 2
        parts = (slice(0, 6), slice(6, 10))
        total = 12 * sum(variances[p].sum() / variances.sum() * whole[:, p].mean() for p in parts)
        text = mlp((shared + own[0]).detach().numpy(), quantizer.decoders[0])
        return total + 10 * np.square(text - values[:, :6]).mean()

    # the bias moves every item's output alike, and straight through so it moves what decoders read
    expected = [(loss(1e-5, d) - loss(-1e-5, d)) / 2e-5 for d in range(4)]
    assert np.abs(expected).max() > 1e-3
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-3, abs=1e-4)


class Alike(MMQ):
    """Starts with every second expert as a near copy of the one before."""

    def _reset(self, vectors: np.ndarray, seed: int) -> None:
        super()._reset(vectors, seed)
        nets = list(self.encoder)
        with torch.no_grad():
            for one, other in zip(nets[::2], nets[1::2], strict=True):
                for weight, copied in zip(one.parameters(), other.parameters(), strict=True):
                    copied.copy_(weight + 0.01 * torch.randn(weight.shape))


def test_overlap_falls_in_training_where_experts_start_alike():
    def overlaps(weight: float) -> list[float]:
        options = {"orthogonality": weight, "epochs": 20, "learning_rate": 0.01, "hidden_sizes": [6]}
        log = new(Alike, **options).fit(items(), progress=False).fit_log
        return [entry["orthogonality"] / weight for entry in log]

    weighed, free = overlaps(100.0), overlaps(1e-6)
    assert 5 < weighed[0] < 6 and weighed[-1] < 1 and weighed[-1] < 0.3 * free[-1], (weighed, free)


def test_overlap_is_of_directions_of_parameters():
    one, other = torch.nn.Sequential(torch.nn.Linear(3, 2)), torch.nn.Sequential(torch.nn.Linear(3, 2))
    with torch.no_grad():
        one[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0]]))
        other[0].weight.copy_(torch.tensor([[0, 1.0, 0], [0, 0, 5]]))
    assert parameter_overlap([one, other]).item() == pytest.approx(0)
    assert parameter_overlap([one]).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        other[0].weight.copy_(3 * one[0].weight)
    assert parameter_overlap([one, other]).item() == pytest.approx(2)


@pytest.mark.parametrize("update", UPDATES)
def test_the_seed_decides_and_a_reload_is_the_same(update: str, tmp_path: Path):
    data = items()
    one, again, other = (fitted(seed, codebook_update=update) for seed in (0, 0, 1))
    codes = one.encode(data)
    assert np.array_equal(codes, again.encode(data)) and not np.array_equal(codes, other.encode(data))
    one.save_pretrained(tmp_path)
    loaded = load_quantizer(tmp_path)
    assert type(loaded) is MMQ and loaded.config.modalities == ["text", "image"]
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert np.array_equal(loaded.encode(data), codes)
    assert np.array_equal(loaded.decode(codes), one.decode(codes))


class Killed(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"codebook_update": "ema"}, {"start": "random", "shared_experts": 0}])
def test_a_killed_fit_goes_on_to_the_same_bytes(options: dict, tmp_path: Path):
    if "shared_experts" in options:
        options = options | {"codebook_sizes": [60, 40, 30, 20]}  # codes die and are revived at random
    file = tmp_path / "fit.pt"
    whole = fitted(3, **options)

    class Dying(MMQ):
        def _after_epoch(self, progress: float) -> None:
            super()._after_epoch(progress)
            if len(self.fit_log) > 2:
                raise Killed

    with pytest.raises(Killed):
        new(Dying, **options).fit(items(), seed=3, progress=False, checkpoint=file)
    resumed = new(**options).fit(items(), seed=3, progress=False, checkpoint=file)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert resumed.fit_log == whole.fit_log
    whole.save_pretrained(tmp_path / "whole")
    resumed.save_pretrained(tmp_path / "resumed")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert one == other


def test_what_an_item_lacks_is_told_to_the_shared_experts_alone():
    data, quantizer = items(), fitted(epochs=20)
    codes = quantizer.encode(data)
    assert (codes[:30, 4:] == codes[0, 4:]).all()  # one code for "no image"
    assert (codes[30:40, 2:4] == codes[30, 2:4]).all()
    assert len(np.unique(codes[:30, 2:4], axis=0)) > 3 and len(np.unique(codes[:30, :2], axis=0)) > 3
    assert quantizer.absent.detach().abs().max() > 0.01  # learned
    with torch.no_grad():
        without = quantizer.latents(torch.from_numpy(data[:1]))
        quantizer.absent[6:] += 1
        moved = quantizer.latents(torch.from_numpy(data[:1])) != without
        complete = quantizer.latents(torch.from_numpy(data[40:41]))
        quantizer.absent[6:] -= 1
        assert torch.equal(complete, quantizer.latents(torch.from_numpy(data[40:41])))
    assert moved[0, :2].any() and moved[0, 4:].any() and not moved[0, 2:4].any()
    # a code depends on its own vector alone
    assert np.array_equal(np.concatenate([quantizer.encode(data[row : row + 1]) for row in range(50)]), codes[:50])
    # nobody asks decoders for what is not known
    target = torch.from_numpy(data[:30].copy())
    before = {name: part.item() for name, part in quantizer._losses(target).items() if name != "commitment"}
    assert all(np.isfinite(value) for value in before.values())


def test_where_nothing_is_absent_an_absent_part_stands_for_the_mean():
    data = items()[40:]
    quantizer = new().fit(data, progress=False)
    assert quantizer.absent.detach().abs().max() == 0
    lacking, average = data[:5].copy(), data[:5].copy()
    lacking[:, 6:], average[:, 6:] = 0, quantizer.mean[6:].numpy()
    assert np.array_equal(quantizer.encode(lacking), quantizer.encode(average))


def test_codes_stay_in_use_and_collisions_are_resolved():
    data = items(900)
    quantizer = new(codebook_sizes=[24] * 6, latent_dim=8, epochs=20).fit(data, progress=False)
    codes = quantizer.encode(data)
    assert min(len(np.unique(column)) for column in codes.T) >= 0.95 * 24
    coarse = new(codebook_sizes=[3] * 6).fit(data[:300], progress=False)
    codes = coarse.encode(data[:300])
    distinct, _ = resolve_collisions(codes, data[:300], coarse, "greedy")
    assert len(np.unique(codes, axis=0)) < 300 == len(np.unique(distinct, axis=0))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"modalities": ["text"], "widths": [10]}, "two or more modalities, but these hold text"),
        ({"modalities": [], "widths": []}, "but these hold none"),
        ({"widths": [6, 5]}, r"widths \[6, 5\] of text, image do not sum to dim 10"),
        ({"codebook_sizes": [8] * 3}, "2 shared and 2 for each of text, image are 6, .* set levels to 6"),
        ({"own_experts": 0}, "own_experts is 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(options: dict, told: str):
    with pytest.raises(HfGrError, match=told) as error:
        new(**options)
    assert "\n" not in str(error.value)


def test_a_modality_that_no_item_has_is_refused():
    data = items()
    data[:, :6] = 0
    with pytest.raises(HfGrError, match="no item has the modality 'text'"):
        new().fit(data, progress=False)


@pytest.fixture
def config(dataset_folder: Path, tmp_path: Path) -> QuantizeConfig:
    """Vectors of behavior and of a file that lacks two items."""
    ids = InteractionDataset.load(dataset_folder).item_ids
    random = np.random.default_rng(0)
    known = [*ids[2:], "new"]
    vectors = random.normal(size=(len(known), 5)).astype(np.float32)
    save_file({"v": vectors}, tmp_path / "shown.safetensors", {"item_id": json.dumps(known)})
    made = EmbedConfig(
        str(dataset_folder),
        str(tmp_path / "vectors"),
        sources=["behavior", "file"],
        behavior_dim=8,
        vectors_file=str(tmp_path / "shown.safetensors"),
    )
    fit = {"epochs": 3, "hidden_sizes": [8], "latent_dim": 4}
    return QuantizeConfig(
        str(dataset_folder), str(embed(made)), str(tmp_path / "sids"), "mmq", 6, 4, method_config=fit
    )


def test_a_catalog_of_parts_and_items_that_come_later(config: QuantizeConfig, tmp_path: Path):
    folder = quantize(config)
    quantizer = load_quantizer(folder / "quantizer")
    assert (quantizer.config.modalities, quantizer.config.widths) == (["behavior", "file"], [8, 5])
    catalog = SidCatalog.load(folder)
    assert catalog.codebook_sizes == (4,) * 6
    file = tmp_path / "new.parquet"
    pq.write_table(pa.table({"item_id": ["new", "bare"], "title": ["New", "Bare"]}), file)
    more = SidCatalog.load(
        add_items(folder, file, out=tmp_path / "more", vectors_file=str(tmp_path / "shown.safetensors"))
    )
    assert len(more) == len(catalog) + 2 and np.array_equal(more.codes[: len(catalog)], catalog.codes)
    assert len(np.unique(more.codes, axis=0)) == len(more)


def test_vectors_that_do_not_say_their_parts_are_refused_in_a_line(config: QuantizeConfig, tmp_path: Path):
    vectors = ItemVectors.load(config.embeddings)
    assert vectors.parts(config.embeddings) == {"behavior": 8, "file": 5}
    for number, change in enumerate(({"dims": {}}, {"dims": {"behavior": 8}}, {"dims": {"behavior": 8, "file": 6}})):
        old = tmp_path / f"old{number}"
        ItemVectors(np.array(vectors.vectors), vectors.info | change).save(old)
        with pytest.raises(HfGrError, match=r"embeddings.json does not say .* again with `hf-gr embed`") as error:
            quantize(replace(config, embeddings=str(old)))
        assert "\n" not in str(error.value)
        quantize(replace(config, embeddings=str(old), method="rq_kmeans", method_config=None))  # others do not ask
