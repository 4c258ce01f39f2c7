"""Two towers end to end: training, new items in the folder and beside a generative model, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from tiny import NUM_ITEMS, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer
from tiny_runs import retrieve_configs

from hf_gr.blend import blend
from hf_gr.catalog import SidCatalog
from hf_gr.catalog_updates import add_items, remove_items
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.decoding import Recommender
from hf_gr.embedding import EmbedConfig, embed
from hf_gr.errors import HfGrError
from hf_gr.hub import carry, repo_files, save_repo
from hf_gr.quantizers import QuantizeConfig, quantize
from hf_gr.retrieval import Retriever, retrieve
from hf_gr.vocabulary import add_vocabulary


NEW = [f"n{row}" for row in range(6)]
TINY = {"use_cpu": True, "disable_tqdm": True, "hidden_size": 32, "hidden_dropout": 0.1, "attention_dropout": 0.1}
TINY |= {"per_device_train_batch_size": 16, "warmup_steps": 0, "learning_rate": 1e-2, "num_train_epochs": 20}
TINY |= {"causal": True, "eval_steps": 0.5, "per_device_eval_batch_size": 64}


def place_on_circle(rows: np.ndarray) -> np.ndarray:
    """Vectors of items as they stand in the walk that users take; float32 [n, 8]."""
    angles = 2 * np.pi * rows[:, None] * np.arange(1, 5) / NUM_ITEMS
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def vectors_file(tmp_path_factory) -> Path:
    """New item n stands at 3.0, 7.0, … on the circle, just where an old item is."""
    rows = np.concatenate([np.arange(NUM_ITEMS), 3.01 + 4 * np.arange(len(NEW))])
    file = tmp_path_factory.mktemp("vectors") / "vectors.safetensors"
    ids = json.dumps(tiny_items()["item_id"].to_pylist() + NEW)
    save_file({"v": place_on_circle(rows)}, file, {"item_id": ids})
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory, vectors_file: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    paths = {name: str(folder / name) for name in ("dataset", "vectors", "catalog")}
    write_dataset(Path(paths["dataset"]), tiny_interactions(), tiny_items(), source="Made for tests.")
    embed(EmbedConfig(paths["dataset"], paths["vectors"], sources=["file"], vectors_file=str(vectors_file)))
    quantize(QuantizeConfig(paths["dataset"], paths["vectors"], paths["catalog"], levels=2, codebook_size=8))
    return paths


def train(data: dict[str, str], output: Path, **settings: object) -> Path:
    names = settings.get("item_features", ["id"])
    paths = {"dataset": data["dataset"]} | ({"vectors": data["vectors"]} if "file" in names else {})
    paths |= {"catalog": data["catalog"]} if "sid" in names else {}
    return retrieve(*retrieve_configs(**TINY | paths | settings, output_dir=str(output)))


def hit_rate(model: Path, data: dict[str, str]) -> float:
    test = InteractionDataset.load(data["dataset"]).split().test
    items = Retriever.from_pretrained(model).recommend(test.histories, top_k=10).items
    return float((items == test.targets[:, None]).any(axis=1).mean())


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    return train(data, tmp_path_factory.mktemp("run"), item_features=["id", "file", "category"], id_dropout=0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"item_features": ["sid", "category"], "log_q": True, "negatives_from": "uniform", "negatives": 20},
        {"item_features": ["file"], "loss": "info_nce", "temperature": 0.1, "negatives_from": "in_batch"},
        {"loss": "info_nce", "temperature": 0.1, "log_q": True, "negatives_from": "popularity", "negatives": 20},
        {"item_features": ["id", "file"], "log_q": True, "negatives": 20, "index": "hnsw"},
    ],
)
def test_it_learns_the_walk_by_any_features_and_negatives(data, tmp_path, settings, capsys):
    model = train(data, tmp_path / "run", **settings)
    assert hit_rate(model, data) > 0.5  # chance: .25
    assert (model / "index.faiss").is_file() == ("index" in settings)
    assert ("recall@50" in capsys.readouterr().out) == ("index" in settings)


def test_new_items_are_answers_at_once(data, trained, tmp_path, vectors_file):
    assert hit_rate(trained, data) > 0.6
    table = pa.table({"item_id": NEW, "title": NEW, "color": ["red"] * len(NEW)})
    grown = add_items(trained, table, vectors_file=vectors_file, out=tmp_path / "grown")
    before, after = Retriever.from_pretrained(trained), Retriever.from_pretrained(grown)
    assert after.item_ids == before.item_ids + NEW and after.items.column_names == before.items.column_names
    assert np.array_equal(after.model.catalog[:NUM_ITEMS], before.model.catalog)
    old, scores = load_file(trained / "model.safetensors"), load_file(grown / "model.safetensors")
    assert all(np.array_equal(old[name], scores[name]) for name in old if name not in ("vectors", "id_rows"))
    kin = 3 + 4 * np.arange(len(NEW))  # the old items that new ones stand beside
    alike = np.corrcoef(after.model.catalog)[NUM_ITEMS:, :NUM_ITEMS]
    assert (np.abs(alike.argmax(axis=1) - kin) <= 1).mean() >= 0.8
    history = InteractionDataset.load(data["dataset"]).split().test.histories
    only = np.arange(NUM_ITEMS, NUM_ITEMS + len(NEW))
    assert set(after.recommend(history, top_k=6, only=only).items.ravel()) == {*only}
    assert {file.name for file in repo_files(grown)} >= {"features.json", "embeddings.json", "items.parquet"}
    assert f"# Dense retriever of {NUM_ITEMS + len(NEW)} items" in (grown / "README.md").read_text()


def test_items_go_and_come_back(data, trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    remove_items(folder, ["i003", "i004"])
    remove_items(folder, ["i003", "i009"])
    history = InteractionDataset.load(data["dataset"]).split().test.histories
    gone = Retriever.from_pretrained(folder)
    found = gone.recommend(history, top_k=NUM_ITEMS).items
    assert set(found.ravel()) == {*range(NUM_ITEMS)} - {3, 4, 9} | {-1}
    with pytest.raises(HfGrError, match=r"1 of the items are in .* already \(first: 'i001'\)"):
        add_items(folder, tiny_items().take([1, 3]))
    add_items(folder, tiny_items().take([3, 4]))
    add_items(folder, pa.table({"item_id": ["i001"], "title": ["Another"]}), update=True)
    back = Retriever.from_pretrained(folder)
    assert np.flatnonzero(~back.live).tolist() == [9] and back.items["title"][1].as_py() == "Another"
    assert np.array_equal(back.model.catalog, gone.model.catalog)
    with pytest.raises(HfGrError, match="item 'none' is not among the 40"):
        remove_items(folder, ["none"])
    with pytest.raises(HfGrError, match="no item would be left"):
        remove_items(folder, back.item_ids)


def test_an_index_grows_and_forgets(data, tmp_path, vectors_file):
    model = train(data, tmp_path / "run", item_features=["file"], index="ivf", max_steps=3)
    add_items(model, pa.table({"item_id": NEW, "title": NEW}), vectors_file=vectors_file)
    remove_items(model, ["i000"])
    found = Retriever.from_pretrained(model)
    history = InteractionDataset.load(data["dataset"]).split().test.histories
    items, scores = found.recommend(history, top_k=45)
    assert len(found.index) == NUM_ITEMS + len(NEW) and set(items.ravel()) == {*range(1, NUM_ITEMS + len(NEW))}
    found.index = None
    exact = found.recommend(history, top_k=45)
    assert np.array_equal(items, exact.items) and np.ptp(scores - exact.scores, axis=1).max() < 1e-4


def test_codes_of_new_items_are_those_of_the_quantizer(data, tmp_path, vectors_file):
    model = train(data, tmp_path / "run", item_features=["sid"], max_steps=3)
    first = tiny_items().slice(0, 1).set_column(0, "item_id", pa.array(["n0"]))
    add_items(model, first, vectors_file=vectors_file)
    vectors = Retriever.from_pretrained(model).model.catalog
    codes = SidCatalog.load(data["catalog"]).codes
    alike = [row for row in range(NUM_ITEMS) if (vectors[row] - vectors[-1]).abs().max() < 1e-5]
    assert alike and all((codes[row] == codes[alike[0]]).all() for row in alike)
    shutil.rmtree(model / "quantizer")
    with pytest.raises(HfGrError, match="quantizer is missing, which new items need"):
        add_items(model, pa.table({"item_id": ["n1"], "title": ["n1"]}), vectors_file=vectors_file)


def test_beside_a_generative_model_new_items_are_scored_by_their_features(data, trained, tmp_path, vectors_file):
    catalog = SidCatalog.load(data["catalog"])
    lm, tokenizer = tiny_lm(), tiny_tokenizer()
    vocabulary = add_vocabulary(tokenizer, lm, catalog, max_history=10)
    model = tmp_path / "model"
    model.mkdir()
    save_repo(model, lm, tokenizer, catalog, vocabulary)
    carry(data["catalog"], model)
    both = blend(model, trained, tmp_path / "both", share=1.0)
    grown = add_items(
        both, pa.table({"item_id": NEW, "title": NEW}), vectors_file=vectors_file, out=tmp_path / "grown"
    )
    alone = add_items(trained, pa.table({"item_id": NEW, "title": NEW}), vectors_file=vectors_file, out=tmp_path / "a")
    histories = InteractionDataset.load(data["dataset"]).split().test.histories
    expected = Retriever.from_pretrained(alone).recommend(histories, top_k=10)
    items, scores = Recommender.from_pretrained(grown).recommend(histories, top_k=10, num_beams=10)
    assert np.array_equal(items, expected.items) and np.allclose(scores, expected.scores, atol=1e-4)
    again = add_items(
        grown, pa.table({"item_id": ["m0"], "title": ["m0"]}), vectors_file=_with("m0", tmp_path), out=tmp_path / "g2"
    )
    assert Recommender.from_pretrained(again).catalog.item_ids[-1] == "m0"


def _with(item_id: str, folder: Path) -> Path:
    file = folder / "more.parquet"
    pq.write_table(pa.table({"item_id": [item_id], "vector": [place_on_circle(np.array([5.5]))[0].tolist()]}), file)
    return file


def test_a_retriever_of_ids_refuses_new_items_and_takes_old_ones_back(data, tmp_path):
    model = train(data, tmp_path / "run", max_steps=2)
    with pytest.raises(HfGrError, match="knows items by their ids alone"):
        add_items(model, pa.table({"item_id": ["n0"], "title": ["New"]}))
    remove_items(model, ["i001"])
    add_items(model, tiny_items().slice(1, 1))
    assert Retriever.from_pretrained(model).live.all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"item_features": ["id", "id"]}, "name each feature once"),
        ({"item_features": ["sid"]}, "catalog is not set"),
        ({"vectors": "x"}, "vectors is 'x', but acts only with a part of item vectors"),
        ({"catalog": "x"}, "acts only with sid in item_features"),
        ({"id_dropout": 0.3}, "acts only with id and another feature"),
        ({"temperature": 0.3}, "acts only with loss: info_nce"),
        ({"negatives": 0, "log_q": True}, "acts only with negatives above 0"),
        ({"negatives_from": "in_batch", "negatives": 7}, "in_batch draws none"),
        ({"index": "flat", "index_recall": 0.9}, "acts only with index"),
        ({"index": "annoy"}, "it is one of auto, flat, ivf, hnsw"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings, message):
    with pytest.raises(HfGrError, match=message):
        retrieve_configs(output_dir="unused", **settings)


def test_folders_of_other_items_are_refused(data, tmp_path, vectors_file):
    with pytest.raises(HfGrError, match="'text', a part of item vectors, but these hold file"):
        retrieve(
            *retrieve_configs(
                dataset=data["dataset"],
                vectors=data["vectors"],
                item_features=["text"],
                output_dir=str(tmp_path / "o"),
            )
        )
    other = tmp_path / "dataset"
    write_dataset(other, tiny_interactions(num_items=30), tiny_items(30), source="Made for tests.")
    with pytest.raises(HfGrError, match="holds vectors of other items"):
        train(data | {"dataset": str(other)}, tmp_path / "o", item_features=["file"])
    vectors = tmp_path / "vectors"
    embed(EmbedConfig(data["dataset"], str(vectors), sources=["file", "behavior"], vectors_file=str(vectors_file)))
    with pytest.raises(HfGrError, match="was made of other vectors"):
        train(data | {"vectors": str(vectors)}, tmp_path / "o", item_features=["file", "sid"])
