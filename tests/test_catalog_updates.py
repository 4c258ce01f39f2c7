"""Items that come and go, on a catalog and on a trained model."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file
from searching import recursive
from tiny import NUM_ITEMS, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer
from tiny_runs import TinyData, grpo_configs, sft_configs
from transformers import pipeline

from hf_gr.artifacts import MANIFEST, fingerprint, write_manifest
from hf_gr.catalog import SidCatalog
from hf_gr.catalog_updates import add_items, new_codes, remove_items
from hf_gr.cli import main
from hf_gr.dataset import write_dataset
from hf_gr.decoding import Recommender
from hf_gr.embedding import EmbedConfig, embed
from hf_gr.errors import HfGrError
from hf_gr.grpo import grpo
from hf_gr.hub import carry, repo_files, save_repo
from hf_gr.models import BSARecConfig, BSARecModel, IntRRForCausalLM
from hf_gr.quantizers import QuantizeConfig, load_quantizer, quantize
from hf_gr.scorers import RetrieverScorer, save_scorers
from hf_gr.search_config import Mixture
from hf_gr.sft import sft
from hf_gr.vocabulary import SidVocabulary, add_vocabulary


NEW = [f"n{row}" for row in range(12)]
METHODS = ["keep", "greedy", "sinkhorn", "digit"]


def new_items(ids: list[str]) -> pa.Table:
    """With a column that the catalog lacks, and without its categories."""
    return pa.table({"item_id": ids, "title": [f"New {item_id}" for item_id in ids], "color": ["red"] * len(ids)})


@pytest.fixture(scope="module")
def vectors_file(tmp_path_factory) -> Path:
    """Vectors of old and new items; every third new one is that of an old item, so that they collide."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(NUM_ITEMS + len(NEW), 6)).astype(np.float32)
    vectors[NUM_ITEMS::3] = vectors[: len(NEW) // 3]
    file = tmp_path_factory.mktemp("vectors") / "vectors.safetensors"
    save_file({"v": vectors}, file, {"item_id": json.dumps(tiny_items()["item_id"].to_pylist() + NEW)})
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory, vectors_file: Path) -> dict[str, Path]:
    """A catalog for every collision method."""
    folder = tmp_path_factory.mktemp("made")
    write_dataset(folder / "data", tiny_interactions(), tiny_items(), source="Made for tests.")
    vectors = embed(
        EmbedConfig(str(folder / "data"), str(folder / "v"), sources=["file"], vectors_file=str(vectors_file))
    )
    settings = {"levels": 2, "codebook_size": 8}
    spare = {"digit": {"spare_digits": 2}}
    return {
        method: quantize(
            QuantizeConfig(
                str(folder / "data"),
                str(vectors),
                str(folder / method),
                collisions=method,
                **settings | spare.get(method, {}),
            )
        )
        for method in METHODS
    }


@pytest.fixture
def catalogs(made: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies of them, to be changed."""
    return {method: Path(shutil.copytree(folder, tmp_path / method)) for method, folder in made.items()}


def write_model(folder: Path, source: Path, recursion: dict[str, int] | None = None) -> Path:
    """An untrained model of a catalog, as a run leaves it; one of one position an item, if `recursion` is given."""
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), SidCatalog.load(source)
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10)
    if recursion is not None:
        model, vocabulary = recursive(model, vocabulary, catalog, **recursion)
    folder.mkdir()
    save_repo(folder, model, tokenizer, catalog, vocabulary)
    carry(source, folder)
    write_manifest(folder, "sft", {}, {})
    return folder


def answers_without(items: list[str], model: Path, copy: Path, request: dict, **settings: int) -> list:
    """What a copy of a model answers without some of its items: probabilities are shares of the live items."""
    return pipeline("generative-recommendation", model=str(remove_items(model, items, out=copy)))(request, **settings)


def test_scorers_beside_the_weights_learn_of_new_items(catalogs, vectors_file, tmp_path):
    """In place and in a copy alike; the copy's source stays byte for byte."""
    model = write_model(tmp_path / "model", catalogs["keep"])
    catalog = SidCatalog.load(model)
    scorers = {"retriever": RetrieverScorer(BSARecModel(BSARecConfig(NUM_ITEMS, hidden_size=8)))}
    save_scorers(model, catalog, scorers, Mixture({"semantic_id": 0.5, "retriever": 0.5}, "shares"))
    before = contents(model)
    held = tmp_path / "held.safetensors"  # another name of the file that is to be replaced
    os.link(model / "retriever" / "model.safetensors", held)
    copied = add_items(model, new_items(NEW), vectors_file=vectors_file, out=tmp_path / "copy")
    assert contents(model) == before
    add_items(model, new_items(NEW), vectors_file=vectors_file)
    assert held.read_bytes() == before["retriever/model.safetensors"]
    for folder in (model, copied):
        answers = pipeline("generative-recommendation", model=str(folder))(NEW[:2], top_k=60, num_beams=60)
        assert sorted(answer["item_id"] for answer in answers) == sorted([*catalog.item_ids, *NEW])
        assert all(np.isfinite(answer["score"]) for answer in answers)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_kept(now: SidCatalog, before: SidCatalog) -> None:
    """Everybody who was there has the SID they had, in the row they had."""
    assert now.item_ids[: len(before)] == before.item_ids
    assert np.array_equal(now.codes[: len(before)], before.codes)
    assert np.array_equal(now.popularity[: len(before)], before.popularity)
    assert now.codebook_sizes == before.codebook_sizes and now.collisions == before.collisions
    assert len(now.code_vectors) == len(before.code_vectors)


@pytest.mark.parametrize("method", METHODS)
def test_new_items_get_sids_of_trained_codes_and_move_nobody(catalogs, vectors_file, method: str):
    folder = catalogs[method]
    before = SidCatalog.load(folder)
    assert add_items(folder, new_items(NEW), vectors_file=vectors_file) == folder
    now = SidCatalog.load(folder)
    assert_kept(now, before)
    assert now.item_ids[len(before) :] == NEW and now.live.all()
    assert not now.popularity[len(before) :].any()
    assert now.titles[-1] == "New n11" and now.items.schema == before.items.schema
    assert now.items["categories"][-1].as_py() is None
    for level in range(before.num_levels):
        assert set(now.codes[len(before) :, level]) <= set(before.codes[:, level])
    if method == "keep":
        assert np.array_equal(now.codes[NUM_ITEMS::3], before.codes[: len(NEW) // 3])
    else:
        assert len(np.unique(now.codes, axis=0)) == len(now)
    if method == "digit":  # the same vector, the same bucket
        assert np.array_equal(now.codes[NUM_ITEMS::3, :-1], before.codes[: len(NEW) // 3, :-1])


def test_the_same_items_get_the_same_sids_and_two_calls_are_as_valid_as_one(catalogs, vectors_file, tmp_path):
    folder = catalogs["greedy"]
    before = contents(folder)
    one = add_items(folder, new_items(NEW), vectors_file=vectors_file, out=tmp_path / "one")
    again = add_items(folder, new_items(NEW), vectors_file=vectors_file, out=tmp_path / "again")
    assert contents(one) == contents(again) and contents(folder) == before
    first = add_items(folder, new_items(NEW[:5]), vectors_file=vectors_file, out=tmp_path / "two")
    half = SidCatalog.load(first)
    two = SidCatalog.load(add_items(first, new_items(NEW[5:]), vectors_file=vectors_file))
    assert_kept(two, half)
    assert two.item_ids == SidCatalog.load(one).item_ids
    assert len(np.unique(two.codes, axis=0)) == len(two)
    manifest = json.loads((first / MANIFEST).read_text())
    assert [entry["new"] for entry in manifest["catalog_updates"]] == [5, 7]
    assert manifest["fingerprint"] == fingerprint(first)
    assert manifest["settings"]["collisions"] == "greedy"  # the stage still finds it up to date


def test_a_code_that_no_item_carries_is_not_given(catalogs, vectors_file):
    folder = catalogs["greedy"]
    catalog = SidCatalog.load(folder)
    quantizer = load_quantizer(folder / "quantizer")
    vectors = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    wished = new_codes(catalog, vectors, quantizer)[0, 0]
    untrained = replace(catalog, codes=np.where(catalog.codes == wished, (wished + 1) % 8, catalog.codes))
    codes = new_codes(untrained, vectors, quantizer)
    assert wished not in codes[:, 0] and wished not in codes[:, 1]


def test_when_a_bucket_has_no_digit_left_the_level_before_decides(catalogs):
    folder = catalogs["digit"]
    catalog = SidCatalog.load(folder)
    quantizer = load_quantizer(folder / "quantizer")
    digits = catalog.codebook_sizes[-1]
    vectors = np.zeros((digits + 3, 6), np.float32)
    codes = new_codes(catalog, vectors, quantizer)
    everyone = np.concatenate([catalog.codes, codes])
    assert len(np.unique(everyone, axis=0)) == len(everyone)
    wish = quantizer.encode(vectors[:1])[0]
    at_home = (everyone[:, :2] == wish).all(axis=1).sum()
    assert at_home == digits  # the bucket is full, and the rest is elsewhere


def test_a_full_catalog_says_so(catalogs):
    catalog, quantizer = SidCatalog.load(catalogs["greedy"]), load_quantizer(catalogs["greedy"] / "quantizer")
    with pytest.raises(HfGrError, match="25 items do not fit on the 24 free SIDs"):
        new_codes(catalog, np.zeros((25, 6), np.float32), quantizer)
    with pytest.raises(HfGrError, match="use the quantizer that it was made with"):
        new_codes(replace(catalog, collisions="digit"), np.zeros((1, 6), np.float32), quantizer)


def test_known_items_are_refused_or_updated(catalogs, vectors_file):
    folder = catalogs["greedy"]
    before = contents(folder)
    with pytest.raises(HfGrError, match=r"1 of the items are in .* already \(first: 'i003'\)"):
        add_items(folder, new_items(["n0", "i003"]), vectors_file=vectors_file)
    assert contents(folder) == before
    old = SidCatalog.load(folder)
    add_items(folder, new_items(["n0", "i003"]), vectors_file=vectors_file, update=True)
    now = SidCatalog.load(folder)
    assert_kept(now, old)
    assert now.item_ids[-1] == "n0" and len(now) == len(old) + 1
    assert (now.titles[3], now.titles[4]) == ("New i003", "Title 4")
    assert now.categories[3] == old.categories[3]  # what is not given stays


def test_removed_items_come_back_with_their_sid(catalogs):
    folder = remove_items(catalogs["greedy"], ["i003", "i007"])
    gone = SidCatalog.load(folder)
    assert np.flatnonzero(~gone.live).tolist() == [3, 7]
    shutil.rmtree(folder / "embedder")  # needed for new items only
    back = SidCatalog.load(add_items(folder, new_items(["i007"])))
    assert_kept(back, gone)
    assert np.flatnonzero(~back.live).tolist() == [3]
    assert back.titles[7] == "New i007" and back.fingerprint == gone.fingerprint
    counts = json.loads((folder / MANIFEST).read_text())["catalog_updates"]
    assert [list(entry.values()) for entry in counts] == [[2, "remove-items"], [1, 0, "add-items", 0]]


def test_sids_of_removed_items_are_not_given_away(catalogs, vectors_file):
    """n0 has the vector of i000, whose SID stays taken."""
    folder = remove_items(catalogs["greedy"], ["i000"])
    now = SidCatalog.load(add_items(folder, new_items(["n0"]), vectors_file=vectors_file))
    assert now.codes[-1].tolist() != now.codes[0].tolist()


@pytest.mark.parametrize("missing", ["quantizer", "embedder"])
def test_what_new_items_need_is_named(catalogs, vectors_file, missing: str):
    shutil.rmtree(catalogs["greedy"] / missing)
    before = contents(catalogs["greedy"])
    with pytest.raises(HfGrError, match=f"{missing} is missing, which new items need"):
        add_items(catalogs["greedy"], new_items(NEW), vectors_file=vectors_file)
    assert contents(catalogs["greedy"]) == before


def test_other_mistakes_get_one_line(catalogs, tmp_path):
    folder = catalogs["greedy"]
    (tmp_path / "items.csv").write_text("item_id,title")
    with pytest.raises(HfGrError, match=r"items\.csv is no Parquet file; write the items as one"):
        add_items(folder, tmp_path / "items.csv")
    with pytest.raises(HfGrError, match=r"nothing\.parquet is missing; give a Parquet file of items"):
        add_items(folder, tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("item_id,title")
    with pytest.raises(HfGrError, match=r"cannot read .*text\.parquet \(.*Parquet.*\); give a") as error:
        add_items(folder, tmp_path / "text.parquet")
    assert str(error.value).count("text.parquet") == 1
    for name in ("title", "item_id"):
        with pytest.raises(
            HfGrError, match=rf"new items have no column '{name}' \(they have: .*\); add it, or rename"
        ):
            add_items(folder, new_items(["n0"]).drop_columns(name))
    with pytest.raises(HfGrError, match=r"column 'categories' holds string .*give every item a list of strings"):
        add_items(folder, new_items(["i003"]).append_column("categories", pa.array(["toys"])), update=True)
    with pytest.raises(HfGrError, match="'nobody' is not in the catalog"):
        remove_items(folder, ["i001", "nobody"])
    with pytest.raises(HfGrError, match="no item would be left"):
        remove_items(folder, SidCatalog.load(folder).item_ids)
    with pytest.raises(HfGrError, match="is no folder"):
        remove_items("user/model", ["i001"])
    assert SidCatalog.load(folder).live.all()


@pytest.mark.parametrize("title", ["", "  "])
def test_new_items_without_a_word_are_refused(catalogs, title):
    """Where vectors are made of text; before the encoder is needed, so that there need be none."""
    folder = catalogs["greedy"]
    info = folder / "embedder" / "embeddings.json"
    text = {"encoder": "none", "encoder_fingerprint": None, "fields": ["title", "brand"], "template": "{value}"}
    info.write_text(json.dumps(json.loads(info.read_text()) | {"sources": ["text"], "dims": {"text": 6}} | text))
    before = contents(folder)
    items = pa.table({"item_id": ["n0", "n1", "n2"], "title": ["Tea", title, title]})
    with pytest.raises(
        HfGrError, match=r"2 of the new items have no text \(first: 'n1'\).*fill in one of title, brand"
    ):
        add_items(folder, items)
    assert contents(folder) == before


@pytest.fixture
def model(catalogs, tmp_path) -> Path:
    return write_model(tmp_path / "model", catalogs["greedy"])


def test_a_model_recommends_new_items_without_training(model, catalogs, vectors_file, tmp_path):
    """Its weights are the same file, and with the new items gone it answers as before."""
    ask = {"history": ["i001", "i002"], "allow": tiny_items()["item_id"].to_pylist()}
    before = pipeline("generative-recommendation", model=str(model))(ask, top_k=5, num_beams=40)
    inode = (model / "model.safetensors").stat().st_ino
    add_items(model, new_items(NEW), vectors_file=vectors_file)
    assert (model / "model.safetensors").stat().st_ino == inode
    assert answers_without(NEW, model, tmp_path / "without", ask, top_k=5, num_beams=40) == before
    recommend = pipeline("generative-recommendation", model=str(model))
    answers = recommend({"history": ["n1", "i002", "n3"], "allow": ["n0", "n5"]}, top_k=2, num_beams=20)
    assert {answer["item_id"] for answer in answers} == {"n0", "n5"}
    assert {answer["title"] for answer in answers} == {"New n0", "New n5"}
    everything = recommend(["n1"], top_k=52, num_beams=60)
    assert len({answer["item_id"] for answer in everything}) == NUM_ITEMS + len(NEW)
    add_items(catalogs["greedy"], new_items(NEW), vectors_file=vectors_file)
    config = json.loads((model / "config.json").read_text())
    assert config["catalog_fingerprint"] == SidCatalog.load(catalogs["greedy"]).fingerprint  # either may be updated
    assert SidVocabulary.load(model).catalog_fingerprint == config["catalog_fingerprint"]
    assert json.loads((model / MANIFEST).read_text())["fingerprint"] == fingerprint(model)


def test_a_model_never_answers_removed_items(model):
    remove_items(model, ["i001", "i030"])
    recommend = pipeline("generative-recommendation", model=str(model))
    answers = recommend({"history": ["i001"]}, top_k=40, num_beams=50)
    assert len(answers) == 38 and not {"i001", "i030"} & {answer["item_id"] for answer in answers}
    add_items(model, new_items(["i001"]))
    answers = pipeline("generative-recommendation", model=str(model))({"history": []}, top_k=40, num_beams=50)
    assert len(answers) == 39 and "i001" in {answer["item_id"] for answer in answers}


def test_the_card_counts_again(model, vectors_file):
    card = (model / "README.md").read_text()
    assert "# Generative recommender of 40 items" in card
    remove_items(model, ["i001"])
    add_items(model, new_items(NEW), vectors_file=vectors_file)
    now = (model / "README.md").read_text()
    assert "# Generative recommender of 52 items" in now and "| items | 52 (51 live) |" in now
    assert "| semantic IDs | 51 distinct, codebooks 8 × 8 |" in now and "Not evaluated yet" in now
    assert len(now.splitlines()) == len(card.splitlines())


def test_numbers_on_the_card_are_marked_as_older(model):
    card = model / "README.md"
    measured = "| metric | model |\n|---|---|\n| HR@5 | 0.1 |\n\nSplit: one.\n\nMeasured yesterday."
    own = "\n\nMine.\n\n## Limits\n\n| items | many |\n"
    card.write_text(card.read_text().partition("\n## Measured\n")[0] + f"\n## Measured\n\n{measured}{own}")
    remove_items(model, ["i001"])
    remove_items(model, ["i002"])
    said = "Items have come or gone since this was measured: `hf-gr evaluate` measures again."
    assert card.read_text().endswith(f"\n## Measured\n\n{measured}\n\n{said}{own}")
    assert card.read_text().count(said) == 1


def test_what_new_items_need_is_of_the_repo(model):
    names = {file.relative_to(model).as_posix() for file in repo_files(model)}
    assert {"quantizer/config.json", "quantizer/model.safetensors", "embedder/embeddings.json"} <= names
    assert not any(name.endswith(MANIFEST) for name in names)


def test_training_carries_on_what_new_items_need(catalogs, made, vectors_file, tmp_path):
    """From the catalog into the model of SFT, from there into that of GRPO, which then takes new items."""
    data = TinyData(made["greedy"].with_name("data"), catalogs["greedy"])
    first = sft(*sft_configs(**data.sft(tmp_path / "sft", max_steps=1)))
    final = grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", first, max_steps=1)))
    for folder in ("quantizer", "embedder"):
        assert contents(final / folder) == contents(first / folder) == contents(made["greedy"] / folder)
    add_items(final, new_items(["n4"]), vectors_file=vectors_file)
    (answer,) = pipeline("generative-recommendation", model=str(final))({"history": [], "allow": ["n4"]}, top_k=1)
    assert answer["title"] == "New n4"


def test_a_copy_shares_no_file_with_the_model(model, tmp_path):
    before = contents(model)
    out = remove_items(model, ["i001"], out=tmp_path / "out")
    assert contents(model) == before
    assert not any(
        os.path.samefile(file, out / file.relative_to(model)) for file in model.rglob("*") if file.is_file()
    )
    shutil.rmtree(model)
    assert len(pipeline("generative-recommendation", model=str(out))(["i002"], top_k=3)) == 3


def test_a_run_that_dies_leaves_the_old_model(model, vectors_file, monkeypatch):
    before, beside = contents(model), sorted(model.parent.iterdir())

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_gr.hub.SidVocabulary.save", dies)  # after the catalog's files are written
    with pytest.raises(KeyboardInterrupt):
        add_items(model, new_items(NEW), vectors_file=vectors_file)
    assert contents(model) == before and sorted(model.parent.iterdir()) == beside


@pytest.mark.parametrize("recursion", [{}, {"item_rows": 16}], ids=["own", "hashed"])
def test_a_recursive_model_gets_rows_for_new_items(catalogs, vectors_file, tmp_path, recursion):
    """The old items' rows are what they were, and so are their answers with the new ones gone; new ones may be read
    and are answered."""
    model = write_model(tmp_path / "model", catalogs["greedy"], recursion)
    ask = {"history": ["i001", "i002"], "allow": tiny_items()["item_id"].to_pylist()}
    before = pipeline("generative-recommendation", model=str(model))(ask, top_k=40, num_beams=40)
    weights, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    add_items(model, new_items(NEW[:4]), vectors_file=vectors_file)
    add_items(model, new_items(NEW[4:]), vectors_file=vectors_file)
    now, catalog = load_file(model / "model.safetensors"), SidCatalog.load(model)
    longer = {"model.sids"} | ({"model.items.embedding.weight"} if not recursion else set())
    assert {name for name in now if len(now[name]) > len(weights[name])} == longer and now.keys() == weights.keys()
    assert all(np.array_equal(now[name][: len(own)], own) for name, own in weights.items())
    assert np.array_equal(now["model.sids"], SidVocabulary.load(model).item_tokens(catalog))
    known = {"num_items": len(catalog), "catalog_fingerprint": catalog.fingerprint}
    assert json.loads((model / "config.json").read_text()) == config | known
    assert json.loads((model / MANIFEST).read_text())["fingerprint"] == fingerprint(model)
    assert answers_without(NEW, model, tmp_path / "without", ask, top_k=40, num_beams=40) == before
    recommend = pipeline("generative-recommendation", model=str(model))
    answers = recommend({"history": ["n1", "i002", "n3"], "allow": ["n0", "n5"]}, top_k=2, num_beams=20)
    assert {answer["item_id"] for answer in answers} == {"n0", "n5"}
    assert len({answer["item_id"] for answer in recommend(["n1"], top_k=52, num_beams=60)}) == NUM_ITEMS + len(NEW)
    model = Recommender.from_pretrained(model).model
    learned = model.model.assigned(torch.arange(NUM_ITEMS, len(catalog)))[0].numpy()
    assert recursion or (learned == catalog.codes[NUM_ITEMS:]).all(1).mean() > 0.8


def test_shards_of_a_recursive_model_are_written_anew(catalogs, vectors_file, tmp_path):
    folder = write_model(tmp_path / "model", catalogs["greedy"], {})
    model = Recommender.from_pretrained(folder).model
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards, before = sorted(folder.glob("model-*.safetensors")), contents(folder)
    held = [shard.stat().st_ino for shard in [folder / "catalog.safetensors", *shards]]
    assert len(shards) > 1
    remove_items(folder, ["i003"])
    assert [shard.stat().st_ino for shard in shards] == held[1:]  # nothing of the weights changes
    copy = add_items(folder, new_items(NEW), vectors_file=vectors_file, out=tmp_path / "copy")
    assert {name: contents(folder)[name] for name in before if "model" in name} == {
        name: before[name] for name in before if "model" in name
    }
    for place in (copy, add_items(folder, new_items(NEW), vectors_file=vectors_file)):
        assert sorted(file.name for file in place.glob("model*")) == ["model.safetensors"]
        answers = pipeline("generative-recommendation", model=str(place))(["n1", "i004"], top_k=51, num_beams=60)
        assert len(answers) == NUM_ITEMS + len(NEW) - 1
        parameters = Recommender.from_pretrained(place).model.num_parameters()
        assert f"| parameters | {parameters:,} |" in (place / "README.md").read_text()


def test_a_run_that_dies_over_weights_leaves_the_old_ones(catalogs, vectors_file, tmp_path, monkeypatch):
    model = write_model(tmp_path / "model", catalogs["greedy"], {})
    before, beside = contents(model), sorted(model.parent.iterdir())
    save = IntRRForCausalLM.save_pretrained

    def dies(own: IntRRForCausalLM, folder: Path) -> None:
        save(own, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(IntRRForCausalLM, "save_pretrained", dies)
    with pytest.raises(KeyboardInterrupt):
        add_items(model, new_items(NEW), vectors_file=vectors_file)
    assert contents(model) == before and sorted(model.parent.iterdir()) == beside


def test_parts_of_two_models_are_refused(model, catalogs):
    SidCatalog.load(catalogs["keep"]).save(model)
    with pytest.raises(HfGrError, match="is not the one this model was trained on"):
        remove_items(model, ["i001"])


def test_the_command_line(catalogs, vectors_file, tmp_path, capsys):
    folder = str(catalogs["greedy"])
    pq.write_table(new_items(NEW), tmp_path / "new.parquet")
    main(["add-items", folder, str(tmp_path / "new.parquet"), "--vectors-file", str(vectors_file)])
    assert "[add-items] 12 new, 0 back, 0 updated; 52 of 52 items live" in capsys.readouterr().out
    (tmp_path / "gone.txt").write_text("n1\nn2\n\n")
    main(["remove-items", folder, "--file", str(tmp_path / "gone.txt")])
    main(["remove-items", folder, "i001, n3", "--out", str(tmp_path / "out")])
    assert "[remove-items] 2 removed; 48 of 52 items live" in capsys.readouterr().out
    assert (~SidCatalog.load(tmp_path / "out").live).sum() == 4 and (~SidCatalog.load(folder).live).sum() == 2
