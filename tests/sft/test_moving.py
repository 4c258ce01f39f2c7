"""A tokenizer that moves: what reaches the quantizer, what follows its codes, and a run that goes on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_lm, tiny_tokenizer
from tiny_runs import TinyData, sft_configs, tiny_data

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import InteractionDataset
from hf_gr.decoding import Recommender
from hf_gr.embedding.store import ItemVectors, items_fingerprint
from hf_gr.errors import HfGrError
from hf_gr.packing import pack
from hf_gr.quantizers import QuantizeConfig, load_quantizer, quantize
from hf_gr.quantizers.collisions import resolve_collisions
from hf_gr.references import references, resolved
from hf_gr.sft import sft
from hf_gr.sft.moving import MovingTokenizer
from hf_gr.sft.trainer import SidSFTTrainer
from hf_gr.vocabulary import add_vocabulary


SMALL = {"hidden_sizes": [16], "latent_dim": 8, "epochs": 4, "batch_size": 16}
METHODS = {"r3_vae": SMALL, "mmq": SMALL | {"shared_experts": 1, "own_experts": 1}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    folder = tmp_path_factory.mktemp("moving")
    data = tiny_data(folder)
    ids = InteractionDataset.load(data.dataset).item_ids
    vectors = np.random.default_rng(0).normal(size=(len(ids), 12)).astype(np.float32)
    told = {"sources": ["text", "behavior"], "dims": {"text": 8, "behavior": 4}}
    told |= {"items_fingerprint": items_fingerprint(ids)}
    ItemVectors(vectors, told).save(folder / "vectors")
    for method, settings in METHODS.items():
        common = {"dataset": str(data.dataset), "embeddings": str(folder / "vectors"), "levels": 3, "codebook_size": 8}
        quantize(QuantizeConfig(output_dir=str(folder / method), method=method, method_config=settings, **common))
    return data


def settings_of(data: TinyData, output, method: str = "r3_vae", **changes) -> dict:
    folder = data.dataset.parent
    paths = {"catalog": str(folder / method), "embeddings": str(folder / "vectors"), "tokenizer": "trainable"}
    rates = {"tokenizer_learning_rate": 3e-2, "tokenizer_until": 0.7, "num_train_epochs": 4, "max_steps": -1}
    return data.sft(output, per_device_train_batch_size=8) | paths | rates | changes


def moving_of(data: TinyData, method: str) -> tuple[MovingTokenizer, SidCatalog]:
    folder = data.dataset.parent
    catalog = SidCatalog.load(folder / method)
    return MovingTokenizer.of(folder / method, catalog, folder / "vectors", weight=0.5), catalog


@pytest.mark.parametrize("method", METHODS)
def test_embeddings_are_those_of_the_tokens_and_gradients_those_of_the_whole_product(data, method):
    """ind · E written out for every place, in a loop."""
    moving, catalog = moving_of(data, method)
    model = tiny_lm()
    vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=5)
    moving.attach(model)
    moving.quantizer.eval()
    items = np.array([3, 7, 3, 20])
    tokens = [1, *references(items, 3).ravel().tolist()]
    packed = pack([{"input_ids": tokens, "attach": [len(tokens)], "answers": [[]], "labels": [[5]], "weights": [1.0]}])
    plain = resolved(packed, torch.from_numpy(vocabulary.item_tokens(catalog)))
    asked, _ = moving.read(model, packed, plain.inputs("sdpa", model.dtype), vocabulary.code_ids)
    embeddings = model.get_input_embeddings()
    assert torch.equal(asked["inputs_embeds"], embeddings(plain.input_ids))
    random = torch.randn(asked["inputs_embeds"].shape, generator=torch.Generator().manual_seed(0))
    weights = [weight for weight in moving.quantizer.parameters() if weight.requires_grad]
    wanted = [*weights, embeddings.weight]
    found = torch.autograd.grad((asked["inputs_embeds"] * random).sum(), wanted, allow_unused=True)
    total = torch.zeros(())
    for place, item in enumerate(items):
        for level, index in enumerate(moving.quantizer.soft_codes(moving.vectors[[item]], straight_through=True)):
            rows = embeddings.weight[list(vocabulary.code_ids[level])].detach()
            total = total + (index[0] @ rows * random[0, 1 + 3 * place + level]).sum()
    expected = torch.autograd.grad(total, weights, allow_unused=True)
    reached = 0
    for ours, theirs in zip(found[:-1], expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
            reached += int(ours.abs().sum() > 0)
    assert reached > 3  # encoder and codebooks of all levels
    [lookup] = torch.autograd.grad((embeddings(plain.input_ids) * random).sum(), [embeddings.weight])
    torch.testing.assert_close(found[-1], lookup)


@pytest.fixture(scope="module")
def trained(data):
    return sft(*sft_configs(**settings_of(data, data.dataset.parent / "run")))


def test_the_catalog_is_the_quantizers_and_everything_follows(data, trained):
    first, last = SidCatalog.load(data.dataset.parent / "r3_vae"), SidCatalog.load(trained)
    quantizer = load_quantizer(trained / "quantizer")
    vectors = ItemVectors.load(data.dataset.parent / "vectors").vectors
    codes, _ = resolve_collisions(quantizer.encode(vectors), vectors, quantizer, last.collisions)
    assert np.array_equal(last.codes, codes) and not np.array_equal(last.codes, first.codes)
    for level, centers in enumerate(last.code_vectors):
        assert np.array_equal(centers, quantizer.code_vectors(level))
    log = json.loads((trained / "training_log.json").read_text())
    moves = [entry for entry in log if "tokenizer/moved" in entry]
    assert [entry["epoch"] for entry in moves[:2]] == [1.0, 2.0] and len(moves) == 3  # once more at the end
    assert moves[-1]["tokenizer/moved_since_start"] == pytest.approx((last.codes != first.codes).any(1).mean())
    assert not [name for name in load_file(trained / "model.safetensors") if "quantizer" in name]
    recommender = Recommender.from_pretrained(trained)
    assert recommender.vocabulary.catalog_fingerprint == last.fingerprint
    histories = InteractionDataset.load(data.dataset).split().train
    items, _ = recommender.recommend(histories, top_k=5, num_beams=20)
    assert (items >= 0).all()


def test_a_killed_run_goes_on_as_if_it_had_not_been(data, trained, tmp_path, monkeypatch):
    settings = settings_of(data, tmp_path / "run", save_strategy="steps", save_steps=3)
    steps = json.loads((trained / "training_log.json").read_text())[-1]["step"]
    train = SidSFTTrainer.train

    class Killed(Exception):
        pass

    def until(self, *args, **kwargs):
        step = self.training_step

        def once(*inputs):
            if self.state.global_step == steps // 2:
                raise Killed
            return step(*inputs)

        self.training_step = once
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SidSFTTrainer, "train", until)
        sft(*sft_configs(**settings))
    resumed = sft(*sft_configs(**settings))
    for name in ("model.safetensors", "catalog.safetensors", "quantizer/model.safetensors"):
        ours, theirs = load_file(resumed / name), load_file(trained / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


SCRIPT = """
import json, sys
from pathlib import Path

from accelerate import PartialState
from safetensors.torch import save_file

from hf_gr.arguments import configs_of
from hf_gr.sft import SFT_CONFIGS, SidSFTTrainer, sft

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
taken = SidSFTTrainer.take_heads


def noted(self):
    rank = self.accelerator.process_index
    seen = {name: value.contiguous().clone() for name, value in self.model.state_dict().items()}
    save_file(seen, folder / f"rank-{rank}.safetensors")
    self.catalog.save(folder / f"catalog-{rank}")
    return taken(self)


SidSFTTrainer.take_heads = noted
sft(*configs_of(SFT_CONFIGS, **settings))
assert PartialState().num_processes == 2
"""


def test_two_processes_agree(data, tmp_path):
    settings = settings_of(data, str(tmp_path / "run"), num_train_epochs=2, per_device_train_batch_size=8)
    del settings["use_cpu"]
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += [str(tmp_path / "script.py"), str(tmp_path), json.dumps(settings)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    catalogs = [SidCatalog.load(tmp_path / f"catalog-{rank}") for rank in range(2)]
    assert (
        catalogs[0].fingerprint == catalogs[1].fingerprint == SidCatalog.load(tmp_path / "run" / "model").fingerprint
    )
    assert catalogs[0].fingerprint != SidCatalog.load(data.dataset.parent / "r3_vae").fingerprint


def test_without_a_rate_it_is_a_training_on_fixed_codes(data, tmp_path):
    frozen = {"tokenizer": "frozen", "embeddings": None, "tokenizer_learning_rate": 1e-4, "tokenizer_until": 0.67}
    still = {"tokenizer_learning_rate": 1e-12}
    models = [
        sft(
            *sft_configs(
                **settings_of(data, tmp_path / name, **{"num_train_epochs": 1, "max_grad_norm": 0.0} | changes)
            )
        )
        for name, changes in {"frozen": frozen, "still": still}.items()
    ]
    ours, theirs = (load_file(model / "model.safetensors") for model in models)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": None}, "go together"),
        ({"tokenizer": "frozen"}, "go together|acts only with tokenizer: trainable"),
        ({"finetune": "lora"}, "set finetune: full"),
        ({"form": "recursive"}, "form recursive keeps the codes in the model"),
        ({"form": "stepwise", "thinking": {"clusters": 2}}, "thinking heads hold the vectors of the codes"),
    ],
)
def test_what_cannot_move_is_refused_in_a_line(data, tmp_path, changes, message):
    with pytest.raises(HfGrError, match=message) as error:
        sft(*sft_configs(**settings_of(data, tmp_path / "run", **changes)))
    assert "\n" not in str(error.value)


def test_other_quantizers_and_vectors_are_refused(data, tmp_path):
    folder = data.dataset.parent
    common = {"dataset": str(data.dataset), "embeddings": str(folder / "vectors"), "levels": 3, "codebook_size": 8}
    quantize(QuantizeConfig(output_dir=str(tmp_path / "rq"), method="rq_kmeans", **common))
    with pytest.raises(HfGrError, match="is rq_kmeans, whose codes have no gradient"):
        sft(*sft_configs(**settings_of(data, tmp_path / "run", catalog=str(tmp_path / "rq"))))
    averaged = METHODS["mmq"] | {"codebook_update": "ema"}
    quantize(QuantizeConfig(output_dir=str(tmp_path / "ema"), method="mmq", method_config=averaged, **common))
    with pytest.raises(HfGrError, match="moving averages"):
        sft(*sft_configs(**settings_of(data, tmp_path / "run", catalog=str(tmp_path / "ema"))))
    fewer = ItemVectors(ItemVectors.load(folder / "vectors").vectors[:-1].copy())
    fewer.save(tmp_path / "fewer")
    with pytest.raises(HfGrError, match="does not hold the vectors of the catalog's 40 items"):
        sft(*sft_configs(**settings_of(data, tmp_path / "run", embeddings=str(tmp_path / "fewer"))))
