from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.embedding import station
from hf_gr.embedding.behavior import behavior_vectors
from hf_gr.embedding.fusion import fuse
from hf_gr.embedding.station import EmbedConfig, embed
from hf_gr.embedding.store import ItemVectors
from hf_gr.embedding.text import encode_text, item_texts
from hf_gr.errors import HfGrError


@pytest.fixture
def config(dataset_folder: Path, tiny_encoder: Path, tmp_path: Path) -> EmbedConfig:
    return EmbedConfig(
        str(dataset_folder),
        str(tmp_path / "vectors"),
        encoder=str(tiny_encoder),
        behavior_dim=8,
        weights=[1.0, 0.5],
        device="cpu",
    )


def test_the_artefact_is_text_and_behaviour_of_the_training_part(config: EmbedConfig):
    loaded = ItemVectors.load(embed(config))
    dataset = InteractionDataset.load(config.dataset)
    text = encode_text(item_texts(dataset.items), config.encoder, device="cpu", progress=False)
    behavior = behavior_vectors(dataset.split().train, dataset.num_items, 8, 5, 0)
    expected = fuse({"text": text, "behavior": behavior}, {"text": 1.0, "behavior": 0.5})
    assert np.allclose(loaded.vectors, expected, atol=1e-5)
    assert loaded.info["dims"] == {"text": 16, "behavior": 8}
    assert loaded.info["pooling"] == "mean"
    assert loaded.info["encoder"] == config.encoder


def test_a_second_run_is_up_to_date_and_a_changed_setting_is_not(config: EmbedConfig, capsys):
    embed(config)
    assert "wrote" in capsys.readouterr().out
    embed(replace(config, batch_size=3))
    assert "up to date" in capsys.readouterr().out
    embed(replace(config, window=2))
    assert "wrote" in capsys.readouterr().out
    text_only = replace(config, sources=["text"], weights=[1.0])
    embed(text_only)
    capsys.readouterr()
    embed(replace(text_only, window=9, behavior_dim=4))  # nothing of behaviour is in there
    assert "up to date" in capsys.readouterr().out
    embed(replace(text_only, force=True))
    assert "wrote" in capsys.readouterr().out


def test_an_encoder_folder_that_changed_is_read_again(config: EmbedConfig, tiny_encoder: Path, tmp_path: Path, capsys):
    copy = tmp_path / "encoder"
    copy.mkdir()
    for file in tiny_encoder.rglob("*"):
        if file.is_file():
            (copy / file.relative_to(tiny_encoder)).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(tiny_encoder)).write_bytes(file.read_bytes())
    config = replace(config, encoder=str(copy))
    embed(config)
    (copy / "note.txt").write_text("trained again")
    capsys.readouterr()
    embed(config)
    assert "wrote" in capsys.readouterr().out


def test_a_run_killed_after_the_texts_resumes_and_leaves_no_cache(config: EmbedConfig, monkeypatch, tmp_path: Path):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(station, "behavior_vectors", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(config)
    cache = tmp_path / ".vectors.cache"
    assert list(cache.rglob("*.npy"))
    assert not Path(config.output_dir).exists()
    calls = []
    encode = station.SentenceEncoder.__call__
    monkeypatch.setattr(
        station.SentenceEncoder, "__call__", lambda self, texts: calls.append(1) or encode(self, texts)
    )
    embed(config)
    assert not calls
    assert not cache.exists()


def test_held_out_events_leave_no_trace(dataset_folder: Path, config: EmbedConfig, tmp_path: Path):
    first = embed(config)
    rewritten = tmp_path / "rewritten"
    events, items = (pq.read_table(dataset_folder / f"{name}.parquet") for name in ("interactions", "items"))
    write_dataset(rewritten, rewrite_held_out(events, items), items, source="Made for tests.")
    second = embed(replace(config, dataset=str(rewritten), output_dir=str(tmp_path / "second")))
    for name in ("embeddings.safetensors", "embeddings.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def rewrite_held_out(events: pa.Table, items: pa.Table) -> pa.Table:
    """The last two events of every user become other items."""
    frame = events.to_pandas()
    ids = items["item_id"].to_pylist()
    held_out = frame.groupby("user_id").cumcount(ascending=False) < 2
    other = {item: ids[(row + 7) % len(ids)] for row, item in enumerate(ids)}
    frame.loc[held_out, "item_id"] = frame.loc[held_out, "item_id"].map(other)
    return pa.Table.from_pandas(frame, preserve_index=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ["text", "image"]}, "image"),
        ({"sources": []}, "sources"),
        ({"sources": ["text", "text"]}, "at most once"),
        ({"weights": [1.0]}, "1 weights"),
        ({"dataset": "nowhere"}, "nowhere does not exist"),
        ({"behavior_dim": 40}, "behavior_dim 40"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_the_old_artefact(config: EmbedConfig, change: dict, message: str):
    before = (embed(config) / "manifest.json").read_bytes()
    with pytest.raises(HfGrError, match=message):
        embed(replace(config, **change))
    assert (Path(config.output_dir) / "manifest.json").read_bytes() == before
