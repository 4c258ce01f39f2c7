"""A generative model and a dense retriever as one: its ranking against a listing, its way to users, refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from searching import every_sid
from tiny import NUM_ITEMS
from tiny_runs import QUIET, TinyData, grpo_configs, held_out, retrieve_configs, sft_configs, tiny_data
from transformers import AutoModelForCausalLM, pipeline

from hf_gr.blend import blend
from hf_gr.catalog import SidCatalog
from hf_gr.cli import main
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.grpo import grpo
from hf_gr.models import dense_logits, grow_items
from hf_gr.models.bsarec import log_probabilities
from hf_gr.retrieval import Retriever, retrieve
from hf_gr.scorers import RetrieverScorer, load_scorers
from hf_gr.sft import sft


RETRIEVER = {"hidden_size": 32, "num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("blend"))


@pytest.fixture(scope="module")
def model(data) -> Path:
    settings = data.sft(data.dataset.with_name("sft"), form="recursive", max_steps=20)
    return sft(*sft_configs(**settings, recursion={"read": "sum", "dense": 1.0, "dense_share": 0.4}))


@pytest.fixture(scope="module")
def retriever(data) -> Path:
    output = str(data.dataset.with_name("retrieve"))
    quiet = {name: value for name, value in QUIET.items() if name in ("use_cpu", "disable_tqdm")}
    return retrieve(*retrieve_configs(dataset=str(data.dataset), output_dir=output, **quiet, **RETRIEVER))


@pytest.fixture(scope="module")
def blended(model, retriever) -> Path:
    return blend(model, retriever, model.with_name("blended"), share=0.3)


def test_its_ranking_is_that_of_all_items_listed(data, model, retriever, blended):
    """By the two models apart, whose weights the blended one must hold unchanged."""
    ours, alone, other = Recommender.from_pretrained(blended), Recommender.from_pretrained(model), retriever
    histories = held_out(data).histories
    items, scores = ours.recommend(histories, top_k=NUM_ITEMS, num_beams=NUM_ITEMS)
    retrieved = log_probabilities(Retriever.from_pretrained(other).model, list(histories))
    for row, prompt in enumerate(alone.prompts(histories)[:5]):
        with torch.no_grad():
            hidden = alone.model.model(torch.tensor([prompt])).last_hidden_state[0, -1:]
            dense = dense_logits(alone.model, hidden, torch.arange(NUM_ITEMS)).log_softmax(1)[0]
        sids = every_sid(alone, prompt)
        generative = torch.tensor([sids[tuple(sid)] for sid in alone.catalog.codes.tolist()])
        expected = 0.7 * (0.6 * generative + 0.4 * dense) + 0.3 * retrieved[row]
        assert sorted(items[row]) == list(range(NUM_ITEMS))
        np.testing.assert_allclose(scores[row], expected[items[row]], atol=1e-4)
        np.testing.assert_allclose(scores[row], expected.sort(descending=True).values, atol=1e-4)


def test_it_answers_by_name_and_in_sessions(data, blended):
    recommender = Recommender.from_pretrained(blended)
    history = [recommender.catalog.item_ids[item] for item in next(iter(held_out(data).histories))]
    answers = pipeline("generative-recommendation", model=str(blended))({"history": history}, top_k=5)
    session = recommender.session(history[:-1])
    session.append(history[-1])
    found = session.recommend(5)
    assert [answer["item_id"] for answer in answers] == [item for item, _ in found]
    assert [answer["score"] for answer in answers] == pytest.approx([score for _, score in found], abs=1e-4)
    denied = [item for item, _ in found[:2]]
    assert not {item for item, _ in session.recommend(5, exclude=denied)} & set(denied)
    assert len(recommender.session().recommend(5)) == 5  # nobody is too cold for the retriever


def test_items_are_matched_by_their_ids(data, retriever, blended, tmp_path):
    """A catalog in another order than the retriever's gets the same rows under the same ids."""
    catalog = SidCatalog.load(data.catalog)
    order = np.random.default_rng(0).permutation(NUM_ITEMS)
    vectors = tuple(np.asarray(own) for own in catalog.code_vectors)
    turned = SidCatalog.from_codes(
        catalog.codes[order], catalog.items.take(order), catalog.codebook_sizes, code_vectors=vectors
    )
    turned.save(tmp_path / "catalog")
    settings = TinyData(data.dataset, tmp_path / "catalog").sft(tmp_path / "sft", form="recursive", max_steps=1)
    model = blend(sft(*sft_configs(**settings)), retriever, tmp_path / "blended")
    ours, theirs = (RetrieverScorer.load(path / "retriever").model for path in (model, blended))
    assert torch.equal(ours.catalog, theirs.catalog[torch.from_numpy(order)])
    assert torch.equal(ours.items.weight[-1], theirs.items.weight[-1])


def test_nothing_is_made_twice(model, retriever, blended, capsys):
    main(["blend", str(model), str(retriever), "--out", str(blended), "--share", "0.3"])
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_training_leaves_the_retriever_alone(data, blended, tmp_path, finetune):
    settings = data.sft(tmp_path / "on", max_steps=2, finetune=finetune) | {"continue_from": str(blended)}
    folder = sft(*sft_configs(**settings))
    trained, before = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, blended))
    assert not torch.equal(trained.model.items.embedding.weight, before.model.items.embedding.weight)
    (ours, mixture), (theirs, same) = (load_scorers(path, SidCatalog.load(path)) for path in (folder, blended))
    assert torch.equal(ours["retriever"].model.items.weight, theirs["retriever"].model.items.weight)
    assert mixture == same
    assert dict(mixture.weights) == pytest.approx({"semantic_id": 0.42, "vectors": 0.28, "retriever": 0.3})
    assert (
        "| ranks by | semantic_id 0.42, retriever 0.3, vectors 0.28 (shares) |" in (folder / "README.md").read_text()
    )


def test_rewards_leave_the_retriever_alone(data, retriever, tmp_path):
    """GRPO trains the semantic IDs of a flat model; what ranks beside them goes on as it is."""
    flat = sft(*sft_configs(**data.sft(tmp_path / "sft", max_steps=1)))
    before = blend(flat, retriever, tmp_path / "blended", share=0.2, rule="probabilities")
    folder = grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", before, max_steps=1)))
    for name in ("scorers.json", "retriever/config.json", "retriever/model.safetensors"):
        assert (folder / name).read_bytes() == (before / name).read_bytes()
    assert dict(Recommender.from_pretrained(folder).mixture.weights) == {"semantic_id": 0.8, "retriever": 0.2}


def old_blend(blended: Path, folder: Path) -> Path:
    """The same, as older releases wrote it: the retriever among the model's weights, its share in the config."""
    model = AutoModelForCausalLM.from_pretrained(blended)
    retriever = RetrieverScorer.load(blended / "retriever").model
    model.config.retriever, model.config.retriever_share, model.retriever = retriever.config.settings, 0.3, retriever
    shutil.copytree(blended, folder, ignore=shutil.ignore_patterns("retriever", "scorers.json", "*.safetensors"))
    shutil.copy2(blended / "catalog.safetensors", folder)
    custom = json.loads((folder / "config.json").read_text())
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(custom | written))
    return folder


def test_blends_of_older_releases_answer_as_before_and_are_blended_anew(data, blended, retriever, tmp_path):
    old = old_blend(blended, tmp_path / "old")
    anew = blend(old, retriever, tmp_path / "anew", share=0.3)
    assert AutoModelForCausalLM.from_pretrained(old).config.shares == pytest.approx((0.42, 0.28, 0.3))
    assert AutoModelForCausalLM.from_pretrained(anew).retriever is None
    histories = held_out(data).histories
    expected = Recommender.from_pretrained(blended).recommend(histories, top_k=10)
    for folder in (old, anew):
        items, scores = Recommender.from_pretrained(folder).recommend(histories, top_k=10)
        assert np.array_equal(items, expected[0])
        np.testing.assert_allclose(scores, expected[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["beside", "inside"])
def test_new_items_get_rows_of_their_kin(blended, tmp_path, kind):
    model = AutoModelForCausalLM.from_pretrained(old_blend(blended, tmp_path / "old"))
    before, codes = model.retriever.items.weight.clone(), model.model.sids
    if kind == "inside":
        retriever = grow_items(model, codes[[3, 8]]).retriever
    else:
        scorer = RetrieverScorer(model.retriever)
        retriever = scorer.with_items(codes.numpy(), codes[[3, 8]].numpy()).model
        assert torch.equal(scorer.model.items.weight, before), "the old one stays"
    rows = retriever.items.weight
    assert rows.shape[0] == NUM_ITEMS + 3 and retriever.config.num_items == NUM_ITEMS + 2
    assert torch.equal(rows[:NUM_ITEMS], before[:NUM_ITEMS]) and torch.equal(rows[-1], before[-1])
    assert torch.equal(rows[NUM_ITEMS : NUM_ITEMS + 2], before[[3, 8]])  # whose SID nobody else has
    assert log_probabilities(retriever, [np.array([1, NUM_ITEMS + 1])]).shape == (1, NUM_ITEMS + 2)


def test_what_does_not_go_together_is_refused_in_a_line(data, model, retriever, tmp_path):
    with pytest.raises(HfGrError, match=r"share is 1.5; give a number above 0, up to 1\."):
        blend(model, retriever, tmp_path / "out", share=1.5)
    with pytest.raises(HfGrError, match="is not a dense retriever"):
        blend(model, model, tmp_path / "out")
    with pytest.raises(HfGrError, match=r"rule is 'sum' .*; choose from"):
        blend(model, retriever, tmp_path / "out", rule="sum")
    items = pq.read_table(retriever / "items.parquet")
    others = tmp_path / "others"
    others.mkdir()
    for file in retriever.iterdir():
        (others / file.name).write_bytes(file.read_bytes())
    renamed = pa.array(["another", *items["item_id"].to_pylist()[1:]])
    pq.write_table(items.set_column(items.column_names.index("item_id"), "item_id", renamed), others / "items.parquet")
    with pytest.raises(HfGrError, match="does not know item"):
        blend(model, others, tmp_path / "out")
    assert not (tmp_path / "out").exists()
