import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from hf_gr.embedding import precomputed
from hf_gr.embedding.precomputed import read_vectors
from hf_gr.errors import HfGrError


IDS = ["7", "12", "x", "3"]


def write_parquet(file: Path, ids: list, vectors: list) -> Path:
    pq.write_table(pa.table({"item_id": ids, "vector": vectors}), file)
    return file


def write_safetensors(file: Path, ids: list, vectors: list) -> Path:
    """Ids in a tensor where they are integers, else in the metadata."""
    matrix = {"image_embedding": np.array(vectors, np.float16)}
    if all(isinstance(item_id, int) for item_id in ids):
        save_file(matrix | {"item_id": np.array(ids, np.int64)}, file)
    else:
        save_file(matrix, file, {"item_id": json.dumps(ids)})
    return file


@settings(max_examples=40, deadline=None)
@given(
    rows=st.dictionaries(st.integers(0, 30), st.lists(st.integers(-8, 8), min_size=3, max_size=3), min_size=1),
    items=st.lists(st.integers(0, 30), min_size=1, unique=True),
    block=st.integers(1, 9),
    form=st.sampled_from(["parquet", "numbers", "names"]),
)
def test_every_item_gets_the_vector_of_its_id(tmp_path_factory, rows: dict, items: list, block: int, form: str):
    folder = tmp_path_factory.mktemp("vectors")
    if form == "parquet":
        file = write_parquet(folder / "v.parquet", list(rows), list(rows.values()))
    else:
        ids = list(rows) if form == "numbers" else [str(item_id) for item_id in rows]
        file = write_safetensors(folder / "v.safetensors", ids, list(rows.values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precomputed, "_BLOCK_ROWS", block)
        if not set(rows) & set(items):
            with pytest.raises(HfGrError, match="none of the"):
                read_vectors(file, [str(item_id) for item_id in items])
            return
        vectors = read_vectors(file, [str(item_id) for item_id in items])
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [rows.get(item_id, [0, 0, 0]) for item_id in items]


def test_items_without_a_vector_are_counted_in_one_line(tmp_path: Path, capsys):
    file = write_parquet(tmp_path / "v.parquet", ["x", "7", "elsewhere"], [[1.0], [2.0], [3.0]])
    read_vectors(file, IDS)
    assert capsys.readouterr().out == f"[embed] {file} lacks 2 of 4 items\n"
    read_vectors(file, ["x", "7"])
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["7", "x"], [[1.0], [1.0, 2.0]], "vector of '7' is empty or of another width"),
        (["7", "x"], [[1.0], None], "vector of 'x' is empty"),
        (["7", "x"], [[], []], "empty or of another width"),
        (["7", "x"], [[1.0], [None]], "or holds an empty place"),
        (["7", "x"], ["a", "b"], "vector is string; write lists of floats"),
        (["7", "7"], [[1.0], [2.0]], r"two vectors \('7'\)"),
        (["7", "x"], [[1.0], [float("nan")]], "item row 2 holds NaN"),
        (["8"], [[1.0]], r"none of the 4 items \(such as '7'\)"),
    ],
)
@pytest.mark.parametrize("block", [1, 100])
def test_vectors_that_cannot_be_used_are_one_line(monkeypatch, tmp_path, ids, vectors, message, block):
    monkeypatch.setattr(precomputed, "_BLOCK_ROWS", block)
    file = write_parquet(tmp_path / "v.parquet", ids, vectors)
    if block == 1 and vectors == [[1.0], [1.0, 2.0]]:
        message = "vector of 'x' has 2 numbers, those before 1"
    with pytest.raises(HfGrError, match=message) as error:
        read_vectors(file, IDS)
    assert "\n" not in str(error.value)


def test_files_of_another_form_are_one_line(tmp_path: Path):
    two = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 3), np.float32)}
    save_file(two, tmp_path / "two.safetensors", {"item_id": "[]"})
    save_file({"a": two["a"]}, tmp_path / "anonymous.safetensors")
    save_file({"a": two["a"]}, tmp_path / "names.safetensors", {"item_id": "7, x"})
    pq.write_table(pa.table({"item_id": ["7"], "vectors": [[1.0]]}), tmp_path / "column.parquet")
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "text.npy").write_text("text")
    cases = {
        "two.safetensors": "holds 2 tensors",
        "anonymous.safetensors": "0 ids for 2 vectors",
        "names.safetensors": "0 ids for 2 vectors",
        "column.parquet": "no column 'vector'",
        "text.safetensors": "not a safetensors file",
        "text.npy": "not a Parquet file",
        "nowhere.parquet": "does not exist",
    }
    for name, message in cases.items():
        with pytest.raises(HfGrError, match=message) as error:
            read_vectors(tmp_path / name, IDS)
        assert "\n" not in str(error.value)


def test_half_precision_is_widened(tmp_path: Path):
    tensors = {"item_id": torch.tensor([7, 3]), "v": torch.tensor([[1.5], [-2.0]], dtype=torch.bfloat16)}
    save_torch_file(tensors, tmp_path / "v.safetensors")
    assert read_vectors(tmp_path / "v.safetensors", ["3", "7"]).tolist() == [[-2.0], [1.5]]


def test_poster_features_of_the_shared_data(capsys):
    file = Path(__file__).parents[3] / "shared" / "data" / "movielens_latest_small" / "poster_features.safetensors"
    if not file.is_file():
        pytest.skip("the data are not here")
    vectors = read_vectors(file, ["1", "2", "no such film"])
    assert vectors.shape == (3, 1280)
    assert (vectors.any(axis=1) == [True, True, False]).all()
