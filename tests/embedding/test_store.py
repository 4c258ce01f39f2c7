import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hf_gr.embedding.store import ItemVectors, items_fingerprint
from hf_gr.errors import HfGrError


finite = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


@settings(max_examples=30, deadline=None)
@given(vectors=arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=finite))
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, vectors):
    folder = tmp_path_factory.mktemp("vectors")
    ItemVectors(vectors, {"encoder": "some/model", "fields": ["title"]}).save(folder)
    loaded = ItemVectors.load(folder)
    assert loaded.vectors.tobytes() == vectors.tobytes()
    assert loaded.vectors.shape == vectors.shape
    assert loaded.info["fields"] == ["title"]
    assert (loaded.info["num_items"], loaded.info["dim"]) == vectors.shape


def test_loaded_vectors_are_a_read_only_map_of_the_file(tmp_path: Path):
    ItemVectors(np.ones((3, 2), np.float32)).save(tmp_path)
    vectors = ItemVectors.load(tmp_path).vectors
    assert isinstance(vectors, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        vectors[0, 0] = 2


def test_sliced_vectors_are_saved_by_value(tmp_path: Path):
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    ItemVectors(wide[:, ::2]).save(tmp_path)
    assert np.array_equal(ItemVectors.load(tmp_path).vectors, wide[:, ::2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused_with_their_row(tmp_path: Path, bad: float):
    vectors = np.zeros((70_000, 2), np.float32)
    vectors[66_001, 1] = bad  # in the second stretch that is checked
    with pytest.raises(HfGrError, match="item row 66001"):
        ItemVectors(vectors).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_vectors_that_became_nan_on_disk_are_refused_on_load(tmp_path: Path):
    ItemVectors(np.zeros((4, 2), np.float32)).save(tmp_path)
    file = tmp_path / "embeddings.safetensors"
    data = bytearray(file.read_bytes())
    data[-8:-4] = np.float32(np.nan).tobytes()
    file.write_bytes(data)
    with pytest.raises(HfGrError, match="item row 3"):
        ItemVectors.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "embeddings.json").unlink(), "embeddings.json is missing"),
        (lambda folder: (folder / "embeddings.safetensors").unlink(), "embeddings.safetensors is missing"),
        (lambda folder: (folder / "embeddings.safetensors").write_bytes(b"x" * 40), "not a safetensors file"),
    ],
)
def test_a_broken_artifact_is_refused(tmp_path: Path, damage, message: str):
    ItemVectors(np.zeros((4, 2), np.float32)).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(HfGrError, match=message):
        ItemVectors.load(tmp_path)


def test_only_float32_matrices_are_item_vectors():
    with pytest.raises(HfGrError, match="float64"):
        ItemVectors(np.zeros((2, 2)))
    with pytest.raises(HfGrError, match=r"\[2\]"):
        ItemVectors(np.zeros(2, np.float32))


def test_fingerprints_tell_values_and_orders_apart(tmp_path: Path):
    found = []
    for number, value in enumerate((1, 1, 2)):
        ItemVectors(np.full((2, 2), value, np.float32)).save(tmp_path / str(number))
        found.append(json.loads((tmp_path / str(number) / "embeddings.json").read_text())["fingerprint"])
    assert found[0] == found[1] != found[2]
    assert items_fingerprint(["a", "b"]) != items_fingerprint(["b", "a"])
    assert items_fingerprint(["ab", "c"]) != items_fingerprint(["a", "bc"])
