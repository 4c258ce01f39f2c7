import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_gr.arguments import parse_config
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.embedding import stage
from hf_gr.embedding.behavior import behavior_vectors, cooccurrence
from hf_gr.embedding.fusion import fuse
from hf_gr.embedding.image import encode_images
from hf_gr.embedding.propagation import propagate
from hf_gr.embedding.stage import EmbedConfig, embed
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


def test_the_artifact_is_text_and_behavior_of_the_training_part(config: EmbedConfig):
    loaded = ItemVectors.load(embed(config))
    dataset = InteractionDataset.load(config.dataset)
    text = encode_text(item_texts(dataset.items), config.encoder, device="cpu", progress=False)
    behavior = behavior_vectors(dataset.split().train, dataset.num_items, 8, 5, 0)
    expected = fuse({"text": text, "behavior": behavior}, {"text": 1.0, "behavior": 0.5})
    assert np.allclose(loaded.vectors, expected, atol=1e-5)
    assert loaded.info["dims"] == {"text": 16, "behavior": 8}
    assert loaded.info["pooling"] == "mean"
    assert loaded.info["encoder"] == config.encoder


def test_the_width_of_behavior_follows_a_small_catalog_and_is_refused_before_texts_are_encoded(config, monkeypatch):
    items = InteractionDataset.load(config.dataset).num_items
    assert items < 64
    behavior_only = replace(
        config, sources=["behavior"], weights=[1.0], encoder=EmbedConfig.encoder, behavior_dim=None
    )
    loaded = ItemVectors.load(embed(behavior_only))
    assert loaded.info["dims"] == {"behavior": items - 1}
    with pytest.raises(HfGrError, match="behavior_dim 0 must be between 1 and"):  # 0 is not "left out"
        embed(replace(behavior_only, behavior_dim=0))
    monkeypatch.setattr(stage, "encode_text", lambda *_, **__: pytest.fail("texts were encoded"))
    with pytest.raises(HfGrError, match=f"behavior_dim {items} must be between 1 and"):
        embed(replace(config, behavior_dim=items))


def test_a_second_run_is_up_to_date_and_a_changed_setting_is_not(config: EmbedConfig, capsys):
    embed(config)
    assert "wrote" in capsys.readouterr().out
    embed(replace(config, batch_size=3))
    assert "up to date" in capsys.readouterr().out
    embed(replace(config, window=2))
    assert "wrote" in capsys.readouterr().out
    text_only = replace(config, sources=["text"], weights=None, behavior_dim=None)
    embed(text_only)
    capsys.readouterr()
    embed(replace(text_only, weights=[1.0], split="temporal", seed=7))  # nothing of these is in there
    assert "up to date" in capsys.readouterr().out
    embed(replace(text_only, force=True))
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"missing": "zeros"}, {"propagate": True}, {"propagate": True, "hops": 1}])
def test_every_setting_of_the_fusion_counts(config: EmbedConfig, change: dict, capsys):
    first = ItemVectors.load(embed(replace(config, propagate="hops" in change)))
    changed = ItemVectors.load(embed(replace(config, **change, output_dir=config.output_dir + "2")))
    embed(replace(config, propagate="hops" in change))
    assert "up to date" in capsys.readouterr().out
    embed(replace(config, **change))
    assert "wrote" in capsys.readouterr().out
    assert changed.info != first.info


def test_propagation_is_that_of_the_fused_vectors_on_the_training_graph(config: EmbedConfig):
    plain = ItemVectors.load(embed(config))
    mixed = ItemVectors.load(
        embed(replace(config, propagate=True, alpha=0.4, hops=2, output_dir=config.output_dir + "2"))
    )
    dataset = InteractionDataset.load(config.dataset)
    graph = cooccurrence(dataset.split().train, dataset.num_items, config.window)
    expected = propagate(plain.vectors, graph, 0.4, 2, keep_lengths=True)
    assert np.allclose(mixed.vectors, expected, atol=1e-6)
    assert mixed.info["propagate"] == {"alpha": 0.4, "hops": 2, "window": 5}


def test_sources_stand_in_their_order_with_weight_one_unless_told(config: EmbedConfig, tmp_path: Path):
    ids = InteractionDataset.load(config.dataset).item_ids
    vectors = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    pq.write_table(pa.table({"item_id": ids, "vector": vectors.tolist()}), tmp_path / "v.parquet")
    config = replace(
        config,
        sources=["file", "behavior"],
        weights=None,
        encoder=EmbedConfig.encoder,
        vectors_file=str(tmp_path / "v.parquet"),
        behavior_dim=4,
    )
    loaded = ItemVectors.load(embed(config))
    assert loaded.info["weights"] == [1.0, 1.0]
    assert np.allclose(loaded.vectors[:, :3], vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-6)
    assert loaded.info["dims"] == {"behavior": 4, "file": 3}


def test_images_are_read_from_the_dataset_folder_and_cached(config, pictures, tiny_vision, monkeypatch):
    folder = Path(config.dataset)
    items = pq.read_table(folder / "items.parquet")
    names = [path and str(shutil.copy(path, folder)) for path in pictures.values()]
    column = [name and Path(name).name for name in names] + [None] * (items.num_rows - len(names))
    pq.write_table(items.append_column("image", pa.array(column)), folder / "items.parquet")
    unused = {"encoder": EmbedConfig.encoder, "behavior_dim": None}
    config = replace(config, sources=["image"], weights=None, image_encoder=str(tiny_vision), **unused)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "fuse", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(config)
    with monkeypatch.context() as patch:
        patch.setattr(stage.VisionEncoder, "__call__", killed)  # all chunks are there
        loaded = ItemVectors.load(embed(config))
    expected = encode_images(pictures, str(tiny_vision), device="cpu", progress=False)
    assert np.allclose(loaded.vectors[:7], fuse({"image": expected}, {"image": 1.0}), atol=1e-6)
    assert not loaded.vectors[7:].any()
    assert loaded.info["image_pooling"] == "pooler"


def test_weights_may_be_left_out_on_the_command_line():
    arguments = ["--dataset", "d", "--output_dir", "o", "--sources", "behavior"]
    assert parse_config(EmbedConfig, arguments).weights is None
    assert parse_config(EmbedConfig, [*arguments, "--weights", "2", "0.5"]).weights == [2.0, 0.5]


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
        patch.setattr(stage, "behavior_vectors", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(config)
    cache = tmp_path / ".vectors.cache"
    assert list(cache.rglob("*.npy"))
    assert not Path(config.output_dir).exists()
    calls = []
    encode = stage.SentenceEncoder.__call__
    monkeypatch.setattr(stage.SentenceEncoder, "__call__", lambda self, texts: calls.append(1) or encode(self, texts))
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
        ({"sources": ["text", "sound"]}, "sound"),
        ({"sources": ["text", "image"], "behavior_dim": None}, "no column 'image'"),
        ({"sources": ["text", "file"]}, "vectors_file is None"),
        ({"vectors_file": "v.parquet"}, "exactly when 'file'"),
        (
            {"sources": ["text", "file"], "vectors_file": "v.parquet", "behavior_dim": None},
            "v.parquet does not exist",
        ),
        ({"missing": "guess"}, "missing is 'guess'"),
        ({"propagate": True, "alpha": 2.0}, "alpha 2.0"),
        ({"sources": []}, "sources"),
        ({"sources": ["text", "text"]}, "at most once"),
        ({"weights": [1.0]}, "1 weights"),
        ({"dataset": "nowhere"}, "nowhere does not exist"),
        ({"behavior_dim": 40}, "behavior_dim 40"),
        ({"alpha": 0.5}, "alpha is 0.5, but acts only with propagate"),
        ({"hops": 2}, "hops is 2, but acts only with propagate"),
        ({"image_encoder": "x"}, "image_encoder is 'x', but acts only with the source image"),
        ({"sources": ["text"], "weights": None}, "behavior_dim is 8, but acts only with the source behavior"),
        ({"sources": ["behavior"], "weights": None}, "encoder is .*, but acts only with the source text"),
        (
            {"sources": ["text"], "weights": None, "behavior_dim": None, "window": 9},
            "window is 9, but acts only with the source behavior or propagate",
        ),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_the_old_artifact(config: EmbedConfig, change: dict, message: str):
    before = (embed(config) / "manifest.json").read_bytes()
    with pytest.raises(HfGrError, match=message):
        embed(replace(config, **change))
    assert (Path(config.output_dir) / "manifest.json").read_bytes() == before
