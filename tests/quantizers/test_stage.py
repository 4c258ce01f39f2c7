import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import InteractionDataset, popularity, write_dataset
from hf_gr.embedding import EmbedConfig, ItemVectors, embed
from hf_gr.embedding.store import items_fingerprint
from hf_gr.errors import HfGrError
from hf_gr.quantizers import QuantizeConfig, RQKMeans, collision_report, quantize


@pytest.fixture
def config(dataset_folder: Path, tmp_path: Path) -> QuantizeConfig:
    vectors = _embed(dataset_folder, tmp_path / "vectors")
    return QuantizeConfig(str(dataset_folder), str(vectors), str(tmp_path / "sids"), levels=2, codebook_size=8)


def _embed(dataset: Path, output: Path) -> Path:
    return embed(EmbedConfig(str(dataset), str(output), sources=["behavior"], weights=[1.0], behavior_dim=8))


def test_the_artifact_holds_quantizer_and_catalog(config: QuantizeConfig):
    folder = quantize(config)
    dataset = InteractionDataset.load(config.dataset)
    catalog = SidCatalog.load(folder)
    quantizer = RQKMeans.from_pretrained(folder / "quantizer")
    codes = quantizer.encode(ItemVectors.load(config.embeddings).vectors)
    assert np.array_equal(catalog.codes[:, 0], codes[:, 0])  # greedy moves items on the last level, while it has room
    assert np.array_equal(catalog.popularity, popularity(dataset.split().train, dataset.num_items))
    assert catalog.item_ids == dataset.item_ids
    assert catalog.codebook_sizes == (8, 8)
    for level in range(2):
        assert np.array_equal(catalog.code_vectors[level], quantizer.code_vectors(level))
    assert len(np.unique(catalog.codes, axis=0)) == len(catalog) > len(np.unique(codes, axis=0))
    assert catalog.collisions == "greedy"
    recipe = folder / "embedder" / "embeddings.json"
    assert recipe.read_bytes() == (Path(config.embeddings) / "embeddings.json").read_bytes()
    assert {path.name for path in folder.iterdir()} == {
        "quantizer",
        "embedder",
        "catalog.json",
        "catalog.safetensors",
        "items.parquet",
        "training_data.json",
        "manifest.json",
    }


def test_a_digit_is_one_more_level(config: QuantizeConfig):
    catalog = SidCatalog.load(quantize(replace(config, collisions="digit", spare_digits=3)))
    quantizer = RQKMeans.from_pretrained(Path(config.output_dir) / "quantizer")
    codes = quantizer.encode(ItemVectors.load(config.embeddings).vectors)
    assert np.array_equal(catalog.codes[:, :-1], codes)
    _, buckets = np.unique(codes, axis=0, return_counts=True)
    assert catalog.codebook_sizes == (8, 8, buckets.max() + 3)
    assert catalog.collisions == "digit"
    assert [len(vectors) for vectors in catalog.code_vectors] == list(catalog.codebook_sizes)
    assert len(np.unique(catalog.code_vectors[2], axis=0)) == catalog.codebook_sizes[2]


def test_what_a_neural_method_logged_is_kept(config: QuantizeConfig):
    method = {"method": "rq_vae", "method_config": {"epochs": 3, "hidden_sizes": [8], "latent_dim": 4}}
    log = json.loads((quantize(replace(config, **method)) / "fit_log.json").read_text())
    assert len(log) == 3 and all(np.isfinite(list(entry.values())).all() for entry in log)


def test_collisions_can_be_left(config: QuantizeConfig):
    folder = quantize(replace(config, collisions="keep"))
    codes = RQKMeans.from_pretrained(folder / "quantizer").encode(ItemVectors.load(config.embeddings).vectors)
    assert np.array_equal(SidCatalog.load(folder).codes, codes)
    assert SidCatalog.load(folder).collisions == "keep"


def test_the_report_is_printed_and_kept(config: QuantizeConfig, capsys):
    folder = quantize(config)
    dataset = InteractionDataset.load(config.dataset)
    split = dataset.split()
    counts = popularity(split.train, dataset.num_items)
    expected = collision_report(SidCatalog.load(folder).codes, [8, 8], split.test.targets, counts)
    assert json.loads((folder / "manifest.json").read_text())["collisions"] == expected
    printed = capsys.readouterr().out
    assert "items on" in printed and "of test targets are on a shared SID" in printed


def test_a_second_run_is_up_to_date_and_a_changed_setting_is_not(config: QuantizeConfig, capsys):
    quantize(config)
    capsys.readouterr()
    quantize(config)
    assert "up to date" in capsys.readouterr().out
    for change in ({"seed": 1}, {"collisions": "keep"}, {"collisions": "digit"}, {"force": True}):
        quantize(replace(config, **change))
        assert "wrote" in capsys.readouterr().out


def test_two_runs_give_the_same_bytes(config: QuantizeConfig, tmp_path: Path):
    first = quantize(config)
    second = quantize(replace(config, output_dir=str(tmp_path / "again")))
    for name in ("catalog.safetensors", "catalog.json", "items.parquet", "quantizer/model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_held_out_events_leave_no_trace(config: QuantizeConfig, dataset_folder: Path, tmp_path: Path):
    first = quantize(config)
    rewritten = tmp_path / "rewritten"
    events, items = (pq.read_table(dataset_folder / f"{name}.parquet") for name in ("interactions", "items"))
    write_dataset(rewritten, rewrite_held_out(events, items), items, source="Made for tests.")
    vectors = _embed(rewritten, tmp_path / "vectors2")
    assert ItemVectors.load(vectors).vectors.tobytes() == ItemVectors.load(config.embeddings).vectors.tobytes()
    output = str(tmp_path / "second")
    second = quantize(replace(config, dataset=str(rewritten), embeddings=str(vectors), output_dir=output))
    for name in ("catalog.safetensors", "catalog.json", "items.parquet", "quantizer/model.safetensors"):
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
        ({"method": "rq_vea"}, "rq_vea"),
        ({"collisions": "digti"}, "digti"),
        ({"levels": 1}, "40 items do not fit on the 8 SIDs"),
        ({"levels": 0}, "levels 0"),
        ({"codebook_size": 1}, "codebook_size 1"),
        ({"codebook_size": 64}, "40 item vectors are fewer than the 64 codes"),
        ({"embeddings": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_the_old_artifact(config: QuantizeConfig, change: dict, message: str):
    before = (quantize(config) / "manifest.json").read_bytes()
    with pytest.raises(HfGrError, match=message):
        quantize(replace(config, **change))
    assert (Path(config.output_dir) / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("rows", [slice(None, -1), slice(None, None, -1)])
def test_vectors_of_other_items_are_refused(config: QuantizeConfig, dataset_folder: Path, tmp_path: Path, rows: slice):
    """One item less, or the same items in another order."""
    items = pq.read_table(dataset_folder / "items.parquet")
    vectors = ItemVectors.load(config.embeddings)
    ids = items["item_id"].to_pylist()[rows]
    other = ItemVectors(vectors.vectors[rows].copy(), {"items_fingerprint": items_fingerprint(ids)})
    other.save(tmp_path / "other")
    with pytest.raises(HfGrError, match="in their order"):
        quantize(replace(config, embeddings=str(tmp_path / "other")))


RECIPE = """
import sys
from hf_gr.quantizers import QuantizeConfig, quantize
dataset, vectors, output = sys.argv[1:]
folder = quantize(QuantizeConfig(dataset, vectors, output, levels=2, codebook_size=8, force=True))
assert (folder / "catalog.json").is_file()  # the others go on only when it is there
from accelerate import PartialState
assert PartialState().num_processes == 2
"""


def test_two_processes_give_what_one_gives(config: QuantizeConfig, tmp_path: Path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += [str(tmp_path / "recipe.py"), config.dataset, config.embeddings, str(tmp_path / "two")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("[quantize] wrote") == 1 and "up to date" not in done.stdout
    one = quantize(config)
    for file in (path for path in one.rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(one)).read_bytes(), file
    assert not list(tmp_path.glob(".two*"))  # neither a staging folder nor the checkpoint of a fit
