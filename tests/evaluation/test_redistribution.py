"""Where items moved: against counting item by item, in the stage's result and on its page."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from searching import RECURSIVE, Case, build
from tiny import NUM_ITEMS, tiny_catalog, tiny_tokenizer
from transformers import Qwen3Config

import hf_gr.decoding.recommender as recommender_module
from hf_gr.catalog import SidCatalog
from hf_gr.decoding import Recommender
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.evaluation.redistribution import judge_redistribution, redistribution
from hf_gr.evaluation.redistribution_page import redistribution_section
from hf_gr.vocabulary import add_vocabulary


EVIL = """<img src=x onerror="alert(1)"> & 'quoted'"""


def some_catalog() -> SidCatalog:
    """40 items, three of them removed, one in five without events."""
    catalog = tiny_catalog()
    live = np.ones(NUM_ITEMS, bool)
    live[[0, 7, 39]] = False
    events = np.random.default_rng(5).integers(1, 30, NUM_ITEMS)
    events[::5] = 0
    return replace(catalog, live=live, popularity=events)


def some_moves(catalog: SidCatalog, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Learned codes of the live items, a third of them not the SID's, and their probabilities."""
    random = np.random.default_rng(seed)
    own = catalog.codes[catalog.live]
    return np.where(random.random(own.shape) < 1 / 3, (own + 1) % 4, own), random.random(own.shape)


def recommender_of(case: Case, catalog: SidCatalog) -> Recommender:
    tokenizer = tiny_tokenizer()
    add_vocabulary(tokenizer, build().model, case.catalog, max_history=10)  # the same tokens
    return Recommender(case.model, tokenizer, catalog, case.vocabulary)


def test_moves_are_counted_item_by_item():
    catalog = some_catalog()
    learned, probability = some_moves(catalog)
    found = redistribution(catalog, learned, probability)
    assert json.loads(json.dumps(found)) == found
    items = np.flatnonzero(catalog.live)
    distances = [
        sum(a != b for a, b in zip(catalog.codes[item], codes, strict=True))
        for item, codes in zip(items, learned, strict=True)
    ]
    everyone = found["all"]
    assert everyone["items"] == len(items) == 37
    assert everyone["moved"] == pytest.approx(sum(distance > 0 for distance in distances) / 37)
    assert everyone["changed"] == pytest.approx([distances.count(count) / 37 for count in range(4)])
    for level in range(3):
        moved = [catalog.codes[item, level] != codes[level] for item, codes in zip(items, learned, strict=True)]
        assert everyone["levels"][level] == pytest.approx(sum(moved) / 37)
        assert found["probability"][level] == pytest.approx(sum(probability[:, level]) / 37)
    assert found["distinct_learned"] == len(set(map(tuple, learned.tolist())))
    assert found["distinct_sids"] == len({tuple(catalog.codes[item]) for item in items})
    assert found["distinct_learned"] != found["distinct_sids"]


def test_groups_hold_a_fifth_of_the_events_each():
    catalog = some_catalog()
    learned, probability = some_moves(catalog)
    *groups, unseen = redistribution(catalog, learned, probability)["by_popularity"]
    events = catalog.popularity[catalog.live]
    assert unseen["events"] == [0, 0] and unseen["items"] == (events == 0).sum()
    assert len(groups) == 5 and sum(group["items"] for group in groups) == (events > 0).sum()
    ranked, start = np.argsort(-events, kind="stable"), 0
    for number, group in enumerate(groups, 1):
        inside = ranked[start : start + group["items"]]
        start += group["items"]
        assert group["events"] == [events[inside].min(), events[inside].max()]
        assert abs(events[ranked[:start]].sum() / events.sum() - number / 5) < events.max() / events.sum()
        distances = (learned != catalog.codes[catalog.live])[inside].sum(1)
        assert group["changed"] == pytest.approx([(distances == count).mean() for count in range(4)])
    some = replace(catalog, popularity=np.full(NUM_ITEMS, 3))
    assert all(group["events"] == [3, 3] for group in redistribution(some, learned, probability)["by_popularity"])


def test_examples_are_the_most_popular_that_moved_and_what_is_nearest():
    catalog = some_catalog()
    learned, probability = some_moves(catalog)
    items = np.flatnonzero(catalog.live).tolist()
    moved = [(item, codes) for item, codes in zip(items, learned, strict=True) if (catalog.codes[item] != codes).any()]
    moved.sort(key=lambda pair: -catalog.popularity[pair[0]])
    examples = redistribution(catalog, learned, probability)["examples"]
    assert len(examples) == 12
    for example, (item, codes) in zip(examples, moved, strict=False):
        assert example["title"] == catalog.titles[item] and example["events"] == catalog.popularity[item]
        assert example["sid"] == catalog.codes[item].tolist() and example["learned"] == codes.tolist()

        def near(other: int, codes: np.ndarray = codes) -> tuple[int, int, int]:
            same = (catalog.codes[other] == codes).tolist()
            return -sum(same), -([*same, False].index(False)), -int(catalog.popularity[other])

        first, second = sorted((other for other in items if other != item), key=near)[:2]
        assert [other["title"] for other in example["nearest"]] == [catalog.titles[first], catalog.titles[second]]
        assert [other["shared"] for other in example["nearest"]] == [-near(first)[0], -near(second)[0]]
        assert [other["sid"] for other in example["nearest"]] == catalog.codes[[first, second]].tolist()


def test_catalogs_of_few_items_and_models_that_stayed():
    catalog = replace(some_catalog(), live=np.arange(NUM_ITEMS) == 3)
    one = catalog.codes[[3]]
    still = redistribution(catalog, one, np.ones((1, 3)))
    assert still["all"]["moved"] == 0 and still["examples"] == []
    assert "The most popular items" not in redistribution_section(still)
    (example,) = redistribution(catalog, (one + 1) % 4, np.ones((1, 3)))["examples"]
    assert example["nearest"] == []


def test_a_model_is_asked_in_batches(monkeypatch):
    case = build(Qwen3Config, RECURSIVE)
    catalog = some_catalog()
    model = recommender_of(case, catalog)
    found = judge_redistribution(model)
    monkeypatch.setattr("hf_gr.evaluation.redistribution._BATCH", 10)
    again = judge_redistribution(model)
    assert again.pop("probability") == pytest.approx(found.pop("probability")) and again == found
    items = torch.from_numpy(np.flatnonzero(catalog.live))
    learned = [case.model.model.assigned(item)[0][0].tolist() for item in items.split(1)]
    assert found["distinct_learned"] == len(set(map(tuple, learned)))
    own = catalog.codes[catalog.live].tolist()
    assert found["all"]["moved"] == np.mean([a != b for a, b in zip(learned, own, strict=True)])
    assert 0 < found["all"]["moved"] <= 1
    flat = build(Qwen3Config)
    assert judge_redistribution(recommender_of(flat, flat.catalog)) is None


def test_the_stage_tells_where_items_moved(dataset_folder, tmp_path, monkeypatch):
    case = build(Qwen3Config, RECURSIVE)
    real = recommender_of(case, case.catalog)
    monkeypatch.setattr(recommender_module, "Recommender", SimpleNamespace(from_pretrained=lambda path, **_: real))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    paths = {"dataset": str(dataset_folder), "model": str(tmp_path / "model"), "output_dir": str(tmp_path / "out")}
    result = evaluate(EvaluateConfig(**paths, max_users=4, top_k=5, num_beams=5, baselines=False))
    assert result["redistribution"] == judge_redistribution(real)
    assert json.loads((Path(paths["output_dir"]) / "metrics.json").read_text()) == result
    assert "<h2>Where items moved</h2>" in (Path(paths["output_dir"]) / "report.html").read_text()


def test_the_page_shows_shares_and_marks_what_changed():
    catalog = some_catalog()
    learned, probability = some_moves(catalog)
    found = redistribution(catalog, learned, probability)
    text = redistribution_section(found)
    rows = dict(re.findall(r"<tr><th>([^<]*)</th>(.*?)</tr>", text[text.index("<tbody>") :]))
    assert list(rows)[:4] == ["level 1", "level 2", "level 3", "any level"]
    cells = re.findall(r'<td class="number">(.*?)</td>', rows["level 2"])
    parts = [found["all"], *found["by_popularity"]]
    assert cells == [*(f"{part['levels'][1]:.1%}" for part in parts), f"{found['probability'][1]:.3f}"]
    assert f"{found['all']['moved']:.1%}" in rows["any level"]
    example = found["examples"][0]
    marked = [
        f'<span class="hit">{code}</span>' if code != own else str(code)
        for code, own in zip(example["learned"], example["sid"], strict=True)
    ]
    assert f'<td class="codes">{", ".join(marked)}</td>' in text
    assert "<svg" in text and redistribution_section(None) == ""


def test_titles_are_escaped():
    catalog = some_catalog()
    titles = [EVIL] * NUM_ITEMS
    catalog = replace(catalog, items=catalog.items.set_column(1, "title", [titles]))
    text = redistribution_section(redistribution(catalog, *some_moves(catalog)))
    assert "<img" not in text and "&#39;quoted" in text
    assert text.count("&lt;img src=x onerror=&#34;") == 36  # 12 examples, each with two that are nearest
    for tag in ("table", "tr", "td", "div", "small", "span"):
        assert len(re.findall(f"<{tag}[ >]", text)) == text.count(f"</{tag}>") > 0
