"""What the model had in mind, asked for with `explain`."""

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import pipeline

from hf_gr.dataset import Histories
from hf_gr.errors import HfGrError
from hf_gr.hub import repo_files, save_repo
from hf_gr.models import ThinkingConfig, ThinkingHeads
from hf_gr.pipeline import GenerativeRecommendationPipeline
from hf_gr.vocabulary import add_vocabulary


REMOVED = ["i005", "i006"]


def write_repo(folder: Path, **settings) -> Path:
    """A model that thinks, whose heads are not trained."""
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5, form="stepwise" if settings else "flat")
    save_repo(folder, model, tokenizer, catalog.removed(REMOVED), vocabulary)
    if settings:
        ThinkingHeads.start(ThinkingConfig(**settings), 32, catalog, seed=0).save(folder)
    return folder


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    return write_repo(tmp_path_factory.mktemp("repo") / "model", clusters=3, interest_width=16)


@pytest.fixture(scope="module")
def recommend(repo) -> GenerativeRecommendationPipeline:
    return pipeline("generative-recommendation", model=str(repo))


def thoughts_of(recommend, history: list[str], item_id: str, query: str | None = None) -> dict:
    """One item of one user, asked for directly."""
    catalog = recommend.recommender.catalog
    rows = np.array([catalog.row_of[item] for item in history], np.int64)
    histories = Histories(np.array(["u"], dtype=object), np.array([0, len(rows)]), rows, np.arange(len(rows)))
    ((own,),) = recommend._thoughts.explain(histories, np.array([[catalog.row_of[item_id]]]), [query])
    return own.described()


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == (pytest.approx(other, abs=1e-5) if isinstance(one, float) else other)


def test_every_item_gets_the_thoughts_behind_it(recommend):
    requests = [["i001", "i002"], {"history": ["i003"], "query": "calm", "allow": ["i004", "i009"]}, [], ["i007"]]
    plain, told = recommend(requests, top_k=4), recommend(requests, top_k=4, explain=True, batch_size=3)
    assert [len(answers) for answers in told] == [4, 2, 4, 4]
    histories = [["i001", "i002"], ["i003"], [], ["i007"]]
    for row, (answers, others) in enumerate(zip(plain, told, strict=True)):
        for answer, other in zip(answers, others, strict=True):
            assert other.keys() == answer.keys() | {"path", "thoughts"}
            assert all(same(answer[key], other[key]) for key in answer)
            expected = thoughts_of(recommend, histories[row], other["item_id"], "calm" if row == 1 else None)
            assert same(other["thoughts"], expected)
    levels = told[0][0]["thoughts"]["levels"]
    assert [level["level"] for level in levels] == [1, 2, 3]
    catalog, clusters = recommend.recommender.catalog, recommend.recommender.thinking.clusters_of
    for entry in told[0]:
        code = catalog.codes[catalog.row_of[entry["item_id"]]]
        own = [level["code_cluster"]["cluster"] for level in entry["thoughts"]["levels"]]
        assert own == [int(clusters(level)[code[level]]) for level in range(3)]


def test_it_may_be_set_when_the_pipeline_is_made(repo):
    made = pipeline("generative-recommendation", model=str(repo), explain=True, top_k=2)
    assert all("thoughts" in entry for entry in made(["i001"]))
    assert not any("thoughts" in entry for entry in made(["i001"], explain=False))


def test_filters_that_leave_nothing_leave_nothing_to_explain(recommend):
    with pytest.raises(HfGrError, match="no live item"):
        recommend({"history": ["i001"], "allow": ["i005"]}, explain=True)
    assert recommend({"history": ["i001"], "allow": ["i001"], "exclude": ["i001"]}, explain=True) == []


def test_models_without_heads_have_no_thoughts(tmp_path):
    flat = pipeline("generative-recommendation", model=str(write_repo(tmp_path / "flat")))
    assert all("path" in entry and "thoughts" not in entry for entry in flat(["i001"], explain=True))


def test_hidden_feedback_is_explained_too(tmp_path):
    folder = write_repo(tmp_path / "hidden", clusters=3, interest=0, agreement=0, feedback="hidden")
    entries = pipeline("generative-recommendation", model=str(folder))(["i001"], top_k=3, explain=True)
    assert [entry["thoughts"]["interest"] for entry in entries] == [None] * 3


def test_heads_travel_with_the_model(recommend, repo, tmp_path):
    names = {file.name for file in repo_files(repo)}
    assert {"thinking.json", "thinking.safetensors"} <= names
    recommend.save_pretrained(tmp_path / "copy")
    copied = pipeline("generative-recommendation", model=str(tmp_path / "copy"))
    requests = [["i001", "i002"], ["i003"]]
    assert same(copied(requests, explain=True), recommend(requests, explain=True))
