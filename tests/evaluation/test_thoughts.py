import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer

import hf_gr.decoding.recommender as recommender_module
from hf_gr.dataset import Cases, Histories
from hf_gr.decoding import Recommender
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.evaluation.metrics import bootstrap_interval
from hf_gr.evaluation.thoughts import agreement, judge_thoughts
from hf_gr.models import ThinkingConfig, ThinkingHeads
from hf_gr.thoughts import Thoughts
from hf_gr.vocabulary import add_vocabulary


CONFIG = ThinkingConfig(clusters=3, interest_width=16)


def thinking_recommender(config: ThinkingConfig = CONFIG) -> Recommender:
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10, form="stepwise")
    heads = ThinkingHeads.start(config, 32, catalog, seed=0)
    return Recommender(model, tokenizer, catalog, vocabulary, thinking=heads)


def thoughts_of(config: ThinkingConfig = CONFIG) -> Thoughts:
    recommender = thinking_recommender(config)
    return Thoughts(recommender, recommender.thinking)


def some_cases(count: int = 40, users: int = 25) -> tuple[Cases, np.ndarray]:
    """Cases of users, some with several, and the items put first: in a third of the cases the truth."""
    random = np.random.default_rng(0)
    lengths = random.integers(0, 9, count)
    names = np.array([f"u{user}" for user in random.integers(0, users, count)], dtype=object)
    ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    histories = Histories(names, ptr, random.integers(0, 40, ptr[-1]), np.arange(ptr[-1]))
    targets, others = random.integers(0, 40, (2, count))
    return Cases(histories, targets), np.where(random.random(count) < 1 / 3, targets, others)


def test_shares_are_counted_case_by_case():
    thoughts, (cases, top_items) = thoughts_of(), some_cases()
    found = agreement(thoughts, cases, top_items, batch_size=7, seed=3)
    counted: dict[int, list[tuple[bool, bool, int]]] = {at: [] for at in range(4)}
    for case, (top, truth) in enumerate(zip(top_items, cases.targets, strict=True)):
        history = cases.histories.cut(np.array([case]), cases.histories.lengths[[case]])
        ((first, second),) = thoughts.explain(history, np.array([[top, truth]]))
        pairs = [*zip(first.levels, second.levels, strict=True), (first.interest, second.interest)]
        for at, (one, other) in enumerate(pairs):
            hits = [thought.clusters[0].cluster == thought.own.cluster for thought in (one, other)]
            counted[at].append((*hits, other.own.cluster))
    assert found["cases"] == 40 and [level["level"] for level in found["levels"]] == [1, 2, 3]
    assert "level" not in found["interest"]
    users = cases.histories.user_ids
    for at, shares in enumerate([*found["levels"], found["interest"]]):
        top, truth, clusters = zip(*counted[at], strict=True)
        ((common, times),) = Counter(clusters).most_common(1)
        expected = {
            "top_item": np.array(top, float),
            "truth": np.array(truth, float),
            "most_frequent": np.array(clusters) == common,
            "difference": np.array(truth, float) - (np.array(clusters) == common),
        }
        assert shares["most_frequent"]["value"] == pytest.approx(times / 40)
        for name, values in expected.items():
            low, high = bootstrap_interval(values.astype(float), 3, groups=users)
            assert shares[name] == pytest.approx({"value": values.mean(), "low": float(low), "high": float(high)})
        assert {float(value) for value in expected["difference"]} <= {-1.0, 0.0, 1.0}
    assert found["levels"][0]["truth"]["low"] < found["levels"][0]["truth"]["high"]


def test_heads_without_an_interest_have_none_to_judge():
    cases, top_items = some_cases(10)
    found = agreement(thoughts_of(replace(CONFIG, interest=0, agreement=0)), cases, top_items)
    assert found["interest"] is None and len(found["levels"]) == 3


def test_examples_are_six_users_with_what_was_thought(monkeypatch):
    thoughts, (cases, top_items) = thoughts_of(), some_cases()
    cases.targets[:4], top_items[4:6] = -1, -1  # what the catalog lacks, and empty lists
    found = judge_thoughts(thoughts, cases, top_items, seed=1)
    assert json.loads(json.dumps(found)) == found
    assert found["cases"] == 34 and len(found["examples"]) == 6
    titles = thoughts.recommender.catalog.titles
    at = {}
    for row in range(6, 40):
        history = [titles[item] for item in cases.histories.cut(np.array([row]), cases.histories.lengths[[row]]).items]
        key = (cases.histories.user_ids[row], *history, titles[cases.targets[row]])
        at[key] = (row, history)
    for example in found["examples"]:
        row, history = at[(example["user"], *example["history"], example["truth"])]
        assert example["recommended"] == titles[top_items[row]]
        assert example["hit"] == (top_items[row] == cases.targets[row])
        own = cases.histories.cut(np.array([row]), np.array([len(history)]))
        ((told,),) = thoughts.explain(own, top_items[[row]][:, None])
        for level, expected in zip(example["thoughts"]["levels"], told.described()["levels"], strict=True):
            assert level["code_cluster"]["probability"] == pytest.approx(
                expected["code_cluster"]["probability"], abs=1e-5
            )
    assert judge_thoughts(thoughts, cases, top_items, seed=1) == found
    assert judge_thoughts(thoughts, cases, top_items, seed=2)["examples"] != found["examples"]
    monkeypatch.setattr("hf_gr.evaluation.thoughts._CASES", 5)
    assert judge_thoughts(thoughts, cases, top_items, seed=1)["cases"] == 5
    assert judge_thoughts(thoughts, cases, np.full(40, -1)) is None


def test_the_stage_judges_the_thoughts_of_a_model_that_has_some(dataset_folder, tmp_path, monkeypatch):
    real = thinking_recommender()
    monkeypatch.setattr(recommender_module, "Recommender", SimpleNamespace(from_pretrained=lambda path, **_: real))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")

    def evaluated(name: str):
        config = EvaluateConfig(
            dataset=str(dataset_folder),
            model=str(tmp_path / "model"),
            output_dir=str(tmp_path / name),
            max_users=8,
            top_k=10,
            num_beams=10,
            baselines=False,
        )
        return evaluate(config), (Path(config.output_dir) / "report.html").read_text()

    result, page = evaluated("thinking")
    assert result["thoughts"]["cases"] == 8 and len(result["thoughts"]["examples"]) == 6
    top = [example["recommended"] for example in result["thoughts"]["examples"]]
    assert "<h2>Thoughts</h2>" in page and all(title in page for title in top)
    real.thinking = None
    result, page = evaluated("plain")
    assert "thoughts" not in result and "<h2>Thoughts</h2>" not in page
