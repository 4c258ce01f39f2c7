"""Settings of a search: what they refuse, and that one config reaches every way to ask."""

import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from searching import build
from tiny import tiny_catalog, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer
from transformers import pipeline

from hf_gr.arguments import parse_config
from hf_gr.batch import recommend_batch
from hf_gr.cli import main
from hf_gr.dataset import Histories, write_dataset
from hf_gr.decoding import Recommender, Reflection, SearchGraphs, beam_search, exhaustive_search, graphs, tree_search
from hf_gr.errors import HfGrError
from hf_gr.evaluation import EvaluateConfig
from hf_gr.hub import save_repo
from hf_gr.search_config import Mixture, SearchConfig
from hf_gr.vocabulary import add_vocabulary


REFUSED = {
    "num_beams is 0": {"num_beams": 0},
    "top_k is True": {"top_k": True},
    r"method is 'best' .*; choose from beam, sample, gumbel, exhaustive": {"method": "best"},
    "score is 'sum'": {"score": "sum"},
    "merge is 'never'": {"merge": "never"},
    "temperature is 0": {"temperature": 0},
    "temperature is nan": {"temperature": float("nan")},
    "reflection is 2": {"reflection": 2},
    "graphs is 1": {"graphs": 1},
    "seed is -1": {"method": "sample", "seed": -1},
    'it has no score="model"': {"method": "gumbel", "score": "model"},
    "drops paths of a beam search, not draws": {"method": "sample", "reflection": 0.3},
    'use method="beam" instead of "exhaustive"': {"method": "exhaustive", "reflection": 0.3},
    'merge="end" is about beams': {"method": "sample", "merge": "end"},
    'captured of beams alone, not with method="sample"': {"method": "sample", "graphs": True},
    "captured of beams alone, not with reflection": {"reflection": 0.3, "graphs": True},
    "seed is of draws": {"seed": 1},
    "no option 'beams'; it has: num_beams, top_k": {"beams": 3},
}


@pytest.mark.parametrize(("line", "options"), REFUSED.items())
def test_what_does_not_go_together_is_refused_in_a_line(line, options):
    with pytest.raises(HfGrError, match=line) as caught:
        SearchConfig.of(**options)
    assert "\n" not in str(caught.value)


def test_a_config_is_a_value():
    one, same = SearchConfig(num_beams=np.int64(7)), SearchConfig.of(SearchConfig(), num_beams=7)
    assert one == same and hash(one) == hash(same) and type(one.num_beams) is int
    assert SearchConfig.of(one, top_k=3) == replace(one, top_k=3) != one
    with pytest.raises(HfGrError, match="give a SearchConfig"):
        SearchConfig.of({"num_beams": 7})


def test_settings_that_lack_what_they_work_with_are_refused():
    case = build()
    search = case.model, case.prompts(), case.grammar
    with pytest.raises(HfGrError, match=r"give reflection=Reflection.of\(catalog"):
        beam_search(*search, SearchConfig(reflection=0.3))
    with pytest.raises(HfGrError, match=r"give graphs=SearchGraphs\(\)"):
        tree_search(*search, SearchConfig(graphs=True))
    with pytest.raises(HfGrError, match=r"reflection is 0.3 .*; give a Reflection"):
        beam_search(*search, reflection=0.3)
    with pytest.raises(HfGrError, match="is no search of the tree"):
        tree_search(*search, method="exhaustive")
    unordered = build(form="unordered")
    with pytest.raises(HfGrError, match="not for unordered answers"):
        tree_search(unordered.model, unordered.prompts(), unordered.grammar, graphs=SearchGraphs())


def test_config_and_single_options_ask_the_same():
    case = build()
    config = SearchConfig(num_beams=40, top_k=4, score="model", temperature=0.7)
    found = beam_search(case.model, case.prompts(), case.grammar, config)
    single = beam_search(case.model, case.prompts(), case.grammar, **asdict(config))
    other = beam_search(case.model, case.prompts(), case.grammar, config, score="constrained", temperature=1)
    exact = exhaustive_search(case.model, case.prompts(), case.grammar, config)
    assert torch.equal(found.items, single.items) and torch.equal(found.scores, single.scores)
    assert not torch.allclose(found.scores, other.scores, atol=1e-3)
    assert torch.allclose(found.scores[:, 0], exact.scores[:, 0], atol=1e-4)


# ---------------------------------------------------------------- everywhere

CONFIGS = {
    "exhaustive": SearchConfig(num_beams=3, top_k=5, method="exhaustive"),
    "whole vocabulary": SearchConfig(num_beams=40, top_k=5, score="model", temperature=2.0),
    "draws": SearchConfig(num_beams=8, top_k=5, method="gumbel", seed=3),
    "reflection": SearchConfig(num_beams=8, top_k=5, reflection=0.9),
}
HISTORY = ["i001", "i004"]


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "model"
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    save_repo(folder, model, tokenizer, catalog, add_vocabulary(tokenizer, model, catalog, max_history=10))
    return folder


def histories(recommender: Recommender) -> Histories:
    rows = np.array([recommender.catalog.row_of[item] for item in HISTORY])
    return Histories(np.array(["u"], object), np.array([0, len(rows)]), rows, np.arange(len(rows)))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_reaches_the_recommender_the_pipeline_and_the_batch(repo, tmp_path, name):
    config = CONFIGS[name]
    recommender = Recommender.from_pretrained(repo)
    model, grammar, prompts = recommender.model, recommender.grammar, recommender.prompts(histories(recommender))
    reflection = Reflection.of(recommender.catalog, config.reflection) if config.reflection else None
    expected = beam_search(model, prompts, grammar, config, reflection=reflection)
    plain = beam_search(model, prompts, grammar, num_beams=config.num_beams, top_k=config.top_k)
    same = torch.equal(expected.items, plain.items) and torch.allclose(expected.scores, plain.scores)
    assert not same, "the setting must matter for the test to see it"
    items, scores = recommender.recommend(histories(recommender), config)
    assert items.tolist() == expected.items.tolist() and np.allclose(scores, expected.scores, atol=1e-5)
    single = asdict(config)
    assert recommender.recommend(histories(recommender), **single)[0].tolist() == items.tolist()
    ids = [recommender.catalog.item_ids[row] for row in items[0]]
    recommend = pipeline("generative-recommendation", model=str(repo))
    for options in ({"search": config}, single, {"search": replace(config, top_k=2), "top_k": 5}):
        assert [entry["item_id"] for entry in recommend(HISTORY, **options)] == ids
    users = tmp_path / "users.jsonl"
    users.write_text('{"user_id": "u", "history": ["i001", "i004"]}\n', encoding="utf-8")
    out = recommend_batch(repo, users, tmp_path / "out.parquet", search=config)
    assert pq.read_table(out)["item_ids"].to_pylist() == [ids]


def test_options_of_a_call_change_those_of_the_pipeline(repo):
    config = SearchConfig(num_beams=8, top_k=5, method="gumbel", seed=3)
    recommend = pipeline("generative-recommendation", model=str(repo), search=config)
    assert len(recommend(HISTORY, top_k=2)) == 2 and len(recommend(HISTORY)) == 5
    assert recommend(HISTORY, top_k=2) == recommend(HISTORY)[:2], "the method stays"
    plain = pipeline("generative-recommendation", model=str(repo))(HISTORY, top_k=5, num_beams=8)
    assert recommend(HISTORY, search=SearchConfig(num_beams=8, top_k=5)) == plain


def test_evaluation_and_the_command_line_take_the_same_settings(repo, tmp_path, capsys):
    config = EvaluateConfig("data", "out", "model", num_beams=60, method="gumbel", temperature=0.5, seed=4)
    assert config.search == SearchConfig(60, 50, "gumbel", temperature=0.5, seed=4)
    assert EvaluateConfig("data", "out", "model", score="model", graphs=True).search.graphs
    with pytest.raises(HfGrError, match='it has no score="model"'):
        EvaluateConfig("data", "out", "model", method="sample", score="model")
    with pytest.raises(HfGrError, match="no model that searches"):
        EvaluateConfig("data", "out", temperature=0.5)
    write_dataset(tmp_path / "data", tiny_interactions(), tiny_items(), source="Made for tests.")
    main(["recommend", str(repo), "--history", "i001", "--top-k", "2", "--method", "exhaustive", "--score", "model"])
    assert "i0" in capsys.readouterr().out


def test_weights_of_an_evaluation_are_read_as_every_mapping_of_a_command_line():
    arguments = ["--dataset", "data", "--output_dir", "out", "--model", "model", "--mixing", "probabilities"]
    for text in ("{semantic_id: 0.5, vectors: 1}", '{"semantic_id": 0.5, "vectors": 1}'):
        config = parse_config(EvaluateConfig, [*arguments, "--weights", text])
        assert config.search.mixture == Mixture({"vectors": 1, "semantic_id": 0.5}, "probabilities")
    for text, line in (
        ("vectors", "weights is 'vectors'; give keys and values"),
        ("{vectors: x}", "weight of vectors"),
    ):
        with pytest.raises(HfGrError, match=line):
            parse_config(EvaluateConfig, [*arguments, "--weights", text])


def test_graphs_reach_the_search_from_every_front(repo, monkeypatch):
    """On a CPU, with a stand-in for the capture that says what was captured."""
    with pytest.raises(HfGrError, match="need a model on a GPU"):
        pipeline("generative-recommendation", model=str(repo))(HISTORY, graphs=True)
    captured: list[bool] = []

    def capture(search):
        captured.append(True)
        return (lambda: None), search()

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "check_device", lambda model: None)
    recommend = pipeline("generative-recommendation", model=str(repo))
    plain = recommend(HISTORY, top_k=3)
    assert [entry["item_id"] for entry in recommend(HISTORY, top_k=3, graphs=True)] == [e["item_id"] for e in plain]
    assert recommend(HISTORY, top_k=3, search=SearchConfig(graphs=True)) and len(captured) == 1
    recommend({"history": HISTORY, "exclude": ["i003"]}, top_k=3, graphs=True)
    assert len(captured) == 1, "a filtered search goes the usual way"
    copied = pickle.loads(pickle.dumps(recommend.recommender))
    copied.recommend(histories(copied), graphs=True)
    assert len(captured) == 2, "a copy for another process captures its own"
