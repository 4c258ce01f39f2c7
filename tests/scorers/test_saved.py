"""Scorers that travel in the repo of a model of any form: blended, loaded everywhere, weighed anew, refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from searching import RECURSIVE, Case, _written, every_sid, recursive
from tiny import NUM_ITEMS, tiny_catalog, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer
from transformers import pipeline

from hf_gr.batch import recommend_batch
from hf_gr.blend import blend
from hf_gr.cli import main
from hf_gr.dataset import write_dataset
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.histories import Histories
from hf_gr.hub import repo_files, save_repo, update_catalog
from hf_gr.model_card import retriever_card
from hf_gr.models import BSARecConfig, BSARecModel
from hf_gr.models.bsarec import log_probabilities
from hf_gr.scorers import load_scorers
from hf_gr.scoring import mixed
from hf_gr.search_config import SEMANTIC_ID, Mixture
from hf_gr.vocabulary import add_vocabulary


FORMS = ["flat", "stepwise", "unordered", RECURSIVE]
HISTORIES = Histories(np.array(["u", "v"], object), np.array([0, 3, 3]), np.array([3, 8, 21]), np.arange(3))


@pytest.fixture(scope="module")
def retriever(tmp_path_factory) -> Path:
    """An untrained one of sharp opinions, whose items stand in another order than the catalog's."""
    folder = tmp_path_factory.mktemp("retriever")
    torch.manual_seed(3)
    model = BSARecModel(BSARecConfig(NUM_ITEMS, hidden_size=8, max_history=4, initializer_range=0.8))
    model.save_pretrained(folder)
    pq.write_table(tiny_items().take(np.random.default_rng(1).permutation(NUM_ITEMS)), folder / "items.parquet")
    (folder / "README.md").write_text(str(retriever_card(NUM_ITEMS)))
    return folder


@pytest.fixture(scope="module")
def blended(tmp_path_factory, retriever) -> dict[str, Path]:
    """A model of each form, untrained, blended by each rule in turn; some items share a SID."""
    folder, made = tmp_path_factory.mktemp("blended"), {}
    for form, rule in zip(FORMS, ["probabilities", "log_probs", "shares", "shares"], strict=True):
        model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
        vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10, form=form)
        if form == RECURSIVE:
            model, vocabulary = recursive(model, vocabulary, catalog)
        save_repo(folder / form, model, tokenizer, catalog, vocabulary)
        made[form] = blend(folder / form, retriever, folder / f"{form}-blend", share=0.4, rule=rule)
    return made


def listed(folder: Path, mixture: Mixture) -> torch.Tensor:
    """Scores of all items after each history, float32 [2, N]: every SID by plain rows, the retriever by itself."""
    recommender = Recommender.from_pretrained(folder)
    catalog, scores = recommender.catalog, []
    case = Case(recommender.model, recommender.grammar, recommender.vocabulary, catalog)
    codes = [tuple(sid) for sid in catalog.codes.tolist()]
    for prompt in recommender.prompts(HISTORIES):
        if case.vocabulary.form == "unordered":
            distinct = sorted(set(codes))
            sids = {sid: float(_written(case, prompt, sid, (0, 1, 2), distinct, None)) for sid in distinct}
        else:
            sids = every_sid(case, prompt)
        shared = [1 if mixture.rule == "shares" else codes.count(sid) for sid in codes]
        scores.append([float(sids[sid]) - np.log(count) for sid, count in zip(codes, shared, strict=True)])
    other = log_probabilities(load_scorers(folder, catalog)[0]["retriever"].model, list(HISTORIES))
    weights = dict(mixture.weights)
    parts = [(weights[SEMANTIC_ID], torch.tensor(scores)), (weights["retriever"], other)]
    return mixed(parts, mixture.rule, mixture.smoothing, len(codes))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_ranks_beside_a_retriever(blended, retriever, form):
    """As all items listed do; by name as in Python; otherwise where a call says so."""
    folder = blended[form]
    recommender = Recommender.from_pretrained(folder)
    rows, scores = recommender.recommend(HISTORIES, top_k=8, num_beams=NUM_ITEMS)
    expected = listed(folder, recommender.mixture)
    np.testing.assert_allclose(scores, expected.sort(dim=1, descending=True).values[:, :8], atol=2e-4)
    np.testing.assert_allclose(scores, expected.gather(1, torch.from_numpy(rows)), atol=2e-4)

    ids = [recommender.catalog.item_ids[row] for row in HISTORIES.items]
    lists = [[recommender.catalog.item_ids[row] for row in own] for own in rows]
    for settings in ({"task": "generative-recommendation"}, {"trust_remote_code": True}):
        answers = pipeline(model=str(folder), **settings)([{"history": ids}, {"history": []}], top_k=8, num_beams=40)
        assert [[answer["item_id"] for answer in answer] for answer in answers] == lists
        assert [answer["score"] for answer in answers[0]] == pytest.approx(scores[0].tolist(), abs=1e-5)

    alone = recommender.recommend(HISTORIES, top_k=8, mixture=Mixture({"retriever": 1}))[0]
    names = pq.read_table(retriever / "items.parquet")["item_id"].to_pylist()
    place = [names.index(item_id) for item_id in recommender.catalog.item_ids]
    own = log_probabilities(BSARecModel.from_pretrained(retriever).eval(), [np.array(place)[HISTORIES.items], []])
    assert alone.tolist() == own[:, place].topk(8).indices.tolist()
    plain = Recommender.from_pretrained(folder.with_name(form)).recommend(HISTORIES, top_k=8)
    ours = recommender.recommend(HISTORIES, top_k=8, mixture=Mixture({SEMANTIC_ID: 1}))
    assert ours[0].tolist() == plain[0].tolist() and np.allclose(ours[1], plain[1])
    assert ours[0].tolist() != rows.tolist()


def test_a_call_that_names_no_rule_takes_the_models(blended):
    recommender = Recommender.from_pretrained(blended["flat"])
    weights = {SEMANTIC_ID: 0.2, "retriever": 0.8}
    ours = recommender.recommend(HISTORIES, mixture=Mixture(weights))[1]
    expected = recommender.recommend(HISTORIES, mixture=Mixture(weights, "probabilities"))[1]
    other = recommender.recommend(HISTORIES, mixture=Mixture(weights, "log_probs"))[1]
    assert np.array_equal(ours, expected) and not np.allclose(ours, other)


def test_the_command_line_batches_and_evaluations_weigh_anew(blended, tmp_path, capsys):
    folder = str(blended["flat"])
    write_dataset(tmp_path / "data", tiny_interactions(), tiny_items(), source="Made for tests.")
    settings = {"dataset": str(tmp_path / "data"), "model": folder, "top_k": 5, "num_beams": 10, "max_users": 9}
    alone = {"weights": "{semantic_id: 1, retriever: 0}"}
    told = {"usual": {}, "alone": alone, "other": {"weights": {"retriever": 1.0}, "mixing": "log_probs"}}
    lists = {}
    for name, options in told.items():
        evaluate(EvaluateConfig(output_dir=str(tmp_path / name), **settings, **options))
        lists[name] = pq.read_table(tmp_path / name / "predictions.parquet")["item_ids"].to_pylist()
    assert lists["usual"] != lists["alone"] != lists["other"] != lists["usual"]

    command = ["recommend", folder, "--history", "i003,i008,i021", "--top-k", "3"]
    shown = []
    for words in ([], ["--weights", "{semantic_id: 1, retriever: 0}"], ["--weights", "{retriever: 1}"]):
        main([*command, *words, "--mixing", "shares"] if words else command)
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 3
    recommender = Recommender.from_pretrained(folder)
    best = recommender.recommend(HISTORIES, top_k=3, mixture=Mixture({"retriever": 1}))[0][0]
    assert all(recommender.catalog.item_ids[row] in shown[2] for row in best)

    users = tmp_path / "users.jsonl"
    users.write_text('{"user_id": "u", "history": ["i003", "i008", "i021"]}\n{"user_id": "v", "history": []}\n')
    rows = recommender.recommend(HISTORIES)[0]
    batch = pq.read_table(recommend_batch(folder, users, tmp_path / "lists.parquet"))["item_ids"].to_pylist()
    assert batch == [[recommender.catalog.item_ids[row] for row in own] for own in rows]
    with pytest.raises(HfGrError, match="mixing is 'shares', but there are no weights to mix by"):
        EvaluateConfig(output_dir="out", **settings, mixing="shares")


@pytest.mark.parametrize("form", FORMS)
def test_new_items_rank_beside_their_kin(blended, tmp_path, form):
    """A new item on the SID of an old one has its row, so that the retriever ranks the two alike."""
    folder = Path(shutil.copytree(blended[form], tmp_path / form))
    before = Recommender.from_pretrained(folder)
    table = tiny_items(NUM_ITEMS + 1).slice(NUM_ITEMS)
    catalog = before.catalog.extended(table, before.catalog.codes[[7]])
    kin = [row for row in range(NUM_ITEMS) if (catalog.codes[row] == catalog.codes[7]).all()]
    update_catalog(folder, catalog.removed(["i001"]))
    recommender = Recommender.from_pretrained(folder)
    new = load_scorers(folder, recommender.catalog)[0]["retriever"].model.catalog
    old = load_scorers(blended[form], before.catalog)[0]["retriever"].model.catalog
    assert torch.equal(new[:NUM_ITEMS], old) and torch.allclose(new[NUM_ITEMS], old[kin].mean(0), atol=1e-6)
    items, scores = recommender.recommend(HISTORIES, top_k=NUM_ITEMS, num_beams=NUM_ITEMS)
    assert recommender.mixture == before.mixture
    assert all(sorted(own) == [row for row in range(NUM_ITEMS + 1) if row != 1] for own in items)
    assert np.isfinite(scores).all()
    assert "41 (40 live)" in (folder / "README.md").read_text()


def test_a_pushed_repo_holds_them(blended):
    folder = blended["flat"]
    names = {file.relative_to(folder).as_posix() for file in repo_files(folder)}
    assert {"scorers.json", "retriever/config.json", "retriever/model.safetensors"} <= names
    assert "manifest.json" not in names
    assert "| ranks by | semantic_id 0.6, retriever 0.4 (probabilities) |" in (folder / "README.md").read_text()
    plain = folder.with_name("flat") / "README.md"
    assert "| ranks by | semantic IDs |" in plain.read_text()


def test_a_saved_pipeline_answers_as_before(blended, tmp_path):
    answer = pipeline("generative-recommendation", model=str(blended["flat"]))
    answer.save_pretrained(tmp_path / "copy")
    again = pipeline("generative-recommendation", model=str(tmp_path / "copy"))
    assert again(["i003"], top_k=7) == answer(["i003"], top_k=7)


def test_a_blend_is_blended_anew(blended, retriever, tmp_path):
    """The retriever's share is the new one, and nothing else of the ranking changes."""
    folder = blend(blended["flat"], retriever, tmp_path / "anew", share=0.7, rule="log_probs")
    recommender = Recommender.from_pretrained(folder)
    assert dict(recommender.mixture.weights) == pytest.approx({SEMANTIC_ID: 0.3, "retriever": 0.7})
    assert recommender.mixture.rule == "log_probs"
    scores = recommender.recommend(HISTORIES, top_k=8, num_beams=NUM_ITEMS)[1]
    np.testing.assert_allclose(scores, listed(folder, recommender.mixture).topk(8).values, atol=2e-4)


def edited(**changes):
    def edit(folder: Path) -> None:
        said = json.loads((folder / "scorers.json").read_text())
        (folder / "scorers.json").write_text(json.dumps(said | changes))

    return edit


@pytest.mark.parametrize(
    ("line", "break_it"),
    [
        (r"scorers.json is not valid JSON", lambda folder: (folder / "scorers.json").write_text("{")),
        (r"scorers.json is not what this release reads", edited(format=2)),
        (r"scorers.json is not what this release reads", edited(more=1)),
        (r"scorers.json: rule is 'sum' \(str\); bring .* hf-gr blend", edited(rule="sum")),
        (r"scorers.json says no rule of mixing; bring .* hf-gr blend", edited(rule=None)),
        (r"scorers.json: the weight of retriever is -1.*; bring", edited(weights={"retriever": -1})),
        (r"scorers.json: weights are 3.*; bring", edited(weights=3)),
        (r"scorers.json weighs 'next', but scorers are memory, retriever,", edited(weights={"next": 1})),
        (r"scorers.json is of catalog other, but the model's is ", edited(catalog_fingerprint="other")),
        (r"scorers.json is missing, which says what .*retriever counts", lambda f: (f / "scorers.json").unlink()),
        (r"retriever is missing, which scorers.json gives a weight", lambda f: shutil.rmtree(f / "retriever")),
        (
            r"retriever does not hold a retriever \(.*copy the whole folder",
            lambda folder: (folder / "retriever" / "model.safetensors").write_bytes(b"no"),
        ),
        (
            r"retriever does not hold a retriever \(.*copy the whole folder",
            lambda folder: (folder / "retriever" / "config.json").unlink(),
        ),
        (
            r"retriever knows 3 items, but the catalog has 40",
            lambda folder: BSARecModel(BSARecConfig(3, hidden_size=8)).save_pretrained(folder / "retriever"),
        ),
    ],
)
def test_what_is_broken_is_refused_in_a_line(blended, tmp_path, line, break_it):
    folder = Path(shutil.copytree(blended["flat"], tmp_path / "model"))
    break_it(folder)
    with pytest.raises(HfGrError, match=line) as error:
        Recommender.from_pretrained(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(HfGrError, match=line):
        pipeline("generative-recommendation", model=str(folder))
