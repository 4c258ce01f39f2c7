"""Interests as part of an item's text (IEID)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hf_gr.dataset import InteractionDataset
from hf_gr.embedding.stage import EmbedConfig, embed
from hf_gr.embedding.store import ItemVectors
from hf_gr.embedding.text import encode_text, item_texts
from hf_gr.errors import HfGrError
from hf_gr.interests import Interests
from hf_gr.interests.table import SCHEMA


@pytest.fixture
def config(dataset_folder: Path, tiny_encoder: Path, tmp_path: Path) -> EmbedConfig:
    return EmbedConfig(
        str(dataset_folder), str(tmp_path / "vectors"), ["text"], encoder=str(tiny_encoder), device="cpu"
    )


def write_interests(folder: Path, *rows: tuple[str, str, float, bool | None]) -> str:
    names = ("item_id", "interest", "confidence", "label")
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], SCHEMA)
    folder.mkdir()
    Interests(table).save(folder)
    return str(folder)


def test_accepted_interests_stand_in_the_text(config: EmbedConfig, tmp_path: Path, capsys):
    items = InteractionDataset.load(config.dataset).items
    first, second = items["item_id"][:2].to_pylist()
    rows = [(first, "calm", 0.2, True), (first, "sleep", 0.9, True), (first, "gift", 1.0, False)]
    mined = write_interests(tmp_path / "mined", *rows, (second, "sport", 0.5, None))
    told = ItemVectors.load(embed(replace(config, interests=mined)))
    column = [["sleep", "calm"], ["sport"], *[[]] * (items.num_rows - 2)]
    texts = item_texts(items.append_column("interests", pa.array(column, pa.list_(pa.string()))))
    assert "interests: sleep, calm" in texts[0] and "interests" not in texts[2]
    expected = encode_text(texts, config.encoder, device="cpu", progress=False)
    assert np.allclose(told.vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert "interests" in told.info["fields"]
    plain = ItemVectors.load(embed(replace(config, output_dir=str(tmp_path / "plain"))))
    assert "interests" not in plain.info["fields"]
    moved = ~np.isclose(told.vectors, plain.vectors, atol=1e-5).all(axis=1)
    assert moved.tolist() == [True, True, *[False] * (items.num_rows - 2)]
    capsys.readouterr()
    write_interests(tmp_path / "other", (first, "calm", 0.2, True))
    embed(replace(config, interests=str(tmp_path / "other")))
    assert "wrote" in capsys.readouterr().out  # other interests, other vectors


def test_interests_that_cannot_be_used_are_refused(config: EmbedConfig, tmp_path: Path):
    foreign = write_interests(tmp_path / "foreign", ("nobody's", "calm", 0.2, True))
    with pytest.raises(HfGrError, match="no accepted interest of any of the"):
        embed(replace(config, interests=foreign))
    for change in ({"sources": ["behavior"]}, {"fields": ["title"]}):
        with pytest.raises(HfGrError, match="interests are part of an item's text"):
            embed(replace(config, interests=foreign, **change))
