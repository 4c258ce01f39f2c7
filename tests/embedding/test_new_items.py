import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tiny import tiny_interactions, tiny_items

from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.embedding.new_items import RECIPE_FILES, embed_new_items
from hf_gr.embedding.stage import EmbedConfig, embed
from hf_gr.embedding.store import ItemVectors
from hf_gr.errors import HfGrError


COLD = [40, 41, 42]  # items that nobody has used; 42 has no image and no vector in the file
UNUSED = {"weights": None, "vectors_file": None, "image_encoder": EmbedConfig.image_encoder}  # of one source


@pytest.fixture
def config(tiny_encoder: Path, tiny_vision: Path, tmp_path: Path) -> EmbedConfig:
    """Every source there is, over 43 items."""
    random = np.random.default_rng(0)
    folder = tmp_path / "dataset"
    names = [None if row in (5, 42) else f"images/{row}.png" for row in range(43)]
    items = tiny_items(43).append_column("image", pa.array(names, pa.string()))
    write_dataset(folder, tiny_interactions(num_items=40), items, source="Made for tests.")
    (folder / "images").mkdir()
    for name in filter(None, names):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)
    ids = items["item_id"].to_pylist()[:42]
    vectors = {"v": random.normal(size=(42, 5)).astype(np.float32)}
    save_file(vectors, tmp_path / "vectors.safetensors", {"item_id": json.dumps(ids)})
    return EmbedConfig(
        str(folder),
        str(tmp_path / "out"),
        sources=["image", "text", "behavior", "file"],
        weights=[0.5, 1.0, 2.0, 0.25],
        encoder=str(tiny_encoder),
        image_encoder=str(tiny_vision),
        vectors_file=str(tmp_path / "vectors.safetensors"),
        behavior_dim=8,
        device="cpu",
    )


def items_of(config: EmbedConfig, rows: list[int]) -> pa.Table:
    return InteractionDataset.load(config.dataset).items.take(rows)


@pytest.mark.parametrize("missing", ["predict", "zeros"])
@pytest.mark.parametrize("propagate", [False, True])
def test_an_old_item_without_behavior_passed_as_new_gets_its_own_vector(config, missing: str, propagate: bool):
    folder = embed(replace(config, missing=missing, propagate=propagate))
    rows = ItemVectors.load(folder).vectors[COLD]
    new = embed_new_items(folder, items_of(config, COLD), config.dataset, config.vectors_file, "cpu")
    assert new.dtype == np.float32
    assert np.allclose(new, rows, atol=1e-6)
    lengths = np.square(new).sum(1)
    expected = [3.75] * 3 if missing == "predict" else [1.75, 1.75, 1.0]
    assert np.allclose(lengths, expected, atol=1e-5)


def test_the_recipe_files_are_all_it_needs(config: EmbedConfig, tmp_path: Path):
    folder = embed(config)
    (tmp_path / "recipe").mkdir()
    for name in RECIPE_FILES:
        shutil.copy(folder / name, tmp_path / "recipe")
    arguments = (items_of(config, COLD), config.dataset, config.vectors_file, "cpu")
    assert np.array_equal(embed_new_items(tmp_path / "recipe", *arguments), embed_new_items(folder, *arguments))
    (tmp_path / "recipe" / "missing.safetensors").unlink()
    with pytest.raises(HfGrError, match=r"missing\.safetensors is missing or damaged"):
        embed_new_items(tmp_path / "recipe", *arguments)


def test_parts_that_are_not_given_are_predicted(config: EmbedConfig):
    folder = embed(config)
    items = items_of(config, COLD).drop(["image"])
    new = embed_new_items(folder, items, device="cpu")
    full = embed_new_items(folder, items_of(config, COLD), config.dataset, config.vectors_file, "cpu")
    assert np.allclose(new[2], full[2], atol=1e-6)  # it had neither image nor vector
    assert np.allclose(np.square(new).sum(1), 3.75, atol=1e-5)
    assert not np.allclose(new[:2, :16], full[:2, :16], atol=1e-2)


def test_columns_that_the_old_items_lacked_are_not_read(config: EmbedConfig):
    config = replace(config, sources=["text"], **UNUSED, behavior_dim=None)
    folder = embed(config)
    items = items_of(config, COLD)
    described = items.append_column("description", pa.array(["something else"] * 3))
    assert np.array_equal(
        embed_new_items(folder, described, device="cpu"), embed_new_items(folder, items, device="cpu")
    )


def test_an_artifact_of_behavior_alone_gives_zeros(config: EmbedConfig):
    folder = embed(replace(config, sources=["behavior"], **UNUSED, encoder=EmbedConfig.encoder))
    assert not (folder / "missing.safetensors").exists()
    new = embed_new_items(folder, items_of(config, COLD))
    assert new.shape == (3, 8)
    assert not new.any()


def test_an_encoder_that_is_gone_or_changed_is_one_line(config: EmbedConfig, tiny_encoder: Path, tmp_path: Path):
    copy = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    config = replace(config, sources=["text"], **UNUSED, behavior_dim=None, encoder=str(copy))
    folder = embed(config)
    (copy / "note.txt").write_text("trained again")
    for change in (lambda: None, lambda: shutil.rmtree(copy)):
        change()
        with pytest.raises(HfGrError, match=r"encoder folder .*encoder as it was") as error:
            embed_new_items(folder, items_of(config, COLD), device="cpu")
        assert "\n" not in str(error.value)
    info = json.loads((folder / "embeddings.json").read_text())
    info |= {"encoder": str(tmp_path / "elsewhere"), "encoder_fingerprint": None}
    (folder / "embeddings.json").write_text(json.dumps(info))
    with pytest.raises(HfGrError, match=r"new items need the text encoder of the item vectors.*elsewhere") as error:
        embed_new_items(folder, items_of(config, COLD), device="cpu")
    assert "\n" not in str(error.value)


def test_vectors_of_another_width_are_refused(config: EmbedConfig, tmp_path: Path):
    folder = embed(config)
    save_file({"v": np.ones((1, 4), np.float32)}, tmp_path / "narrow.safetensors", {"item_id": '["i040"]'})
    with pytest.raises(HfGrError, match="'file' of the item vectors is 5 wide, but that of the new items 4"):
        embed_new_items(
            folder, items_of(config, COLD).drop(["image"]), vectors_file=tmp_path / "narrow.safetensors", device="cpu"
        )


def test_an_older_artifact_is_one_line(tmp_path: Path):
    (tmp_path / "embeddings.json").write_text('{"sources": ["text"], "weights": [1.0], "encoder": "e"}')
    with pytest.raises(
        HfGrError, match="does not say dims, encoder_fingerprint, fields, predicted, template"
    ) as error:
        embed_new_items(tmp_path, tiny_items(2))
    assert "\n" not in str(error.value)
