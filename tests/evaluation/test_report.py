import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hf_gr.evaluation.metrics import MISS
from hf_gr.evaluation.report import Example, write_report


EVIL = """<img src=x onerror="alert(1)"> & 'quoted' $x$ </svg>"""


def numbers(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def system(value):
    metrics = {f"{family}@{k}": numbers(value) for family in ("HR", "NDCG", "MRR") for k in (1, 10)}
    return {
        "item": metrics,
        "sid": metrics,
        "by_popularity": {"head": {"cases": 3} | metrics, "unseen": {"cases": 0}},
        "by_history_length": {"1-3": {"cases": 3} | metrics},
        "unseen": {"items": 4, "targets": 0, "share_of_lists": 0.1},
        "coverage": {"1": 0.1, "10": 0.5},
        "gini": {"1": 0.9, "10": 0.4},
        "invalid_rate": 0.0,
        "duplicate_rate": 0.0,
        "mean_length": 10.0,
        "seen_first": 0.125,
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("report")
    names = [f"{family}@{k}" for family in ("HR", "NDCG", "MRR") for k in (1, 10)]
    result = {
        "cases": 3,
        "users": 3,
        "sampled": False,
        "ks": [1, 10],
        "settings": {
            "model": f"runs/{EVIL}",
            "predictions": None,
            "dataset": "data",
            "split": "leave_one_out@add_to_cart",
            "part": "test",
            "exclude_seen": False,
        },
        "systems": {EVIL: system(0.25), "popularity": system(0.125)},
        "best": dict.fromkeys(names, None) | {"HR@10": EVIL},
        "differences": {"popularity": {name: numbers(0.125) for name in names}},
        "catalog": {
            "items": 5,
            "distinct_sids": 4,
            "collision_rate": 0.4,
            "largest_bucket": 2,
            "targets_on_shared_sid": 0.2,
            "levels": [{"used": 2, "size": 3, "perplexity": 1.9}],
            "items_per_code": [[3, 2, 0]],
        },
        "provenance": {"commit": EVIL},
        "seen_targets": 0.0625,
        "item kNN": {"window": 5, "neighbours": 100, "trials": [{}] * 8},
    }
    example = Example(EVIL, [EVIL], ["first", EVIL, "third"], EVIL, 1)
    logs = {EVIL: [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.0}, {"step": 3, "reward": 0.5, EVIL: 1}]}
    logs[EVIL] += [{"step": 0, "eval_NDCG@10": 0.1}, {"step": 3, "eval_NDCG@10": 0.2}]
    write_report(tmp_path / "report.html", result, [example, Example("u2", [], [], "truth", MISS)], logs)
    return (tmp_path / "report.html").read_text()


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that tags close in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def read(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_nothing_is_loaded_and_nothing_runs(page, read):
    assert not {"script", "img", "link", "iframe", "object", "image", "base"} & set(read.tags)
    for name, value in read.attributes:
        assert not name.startswith("on") and name not in ("src", "srcset")
        assert name not in ("href", "xlink:href") or value.startswith("#")
        assert "http" not in (value or "") or name.startswith("xmlns")
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_texts_are_shown_as_they_are(read):
    text = "".join(read.text)
    assert text.count(EVIL) > 8  # user, history, lists, truth, provenance, legends, tables
    assert "img" not in read.tags


def test_every_part_is_there(page, read):
    text = "".join(read.text)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    expected = ["Results", "By cut-off", "For whom, and for what", "Semantic IDs", "Training"]
    assert titles[:5] == expected
    assert read.tags.count("svg") == 2 + 2 + 1 + 3
    assert page.count('class="best"') == 1
    assert page.count('class="hit"') == 2  # in the list, and as the truth
    assert "0.2500" in text and "0.2400 – 0.2600" in text
    assert "6.2% of the targets stand in their own history." in text and "12.5%" in text
    assert "item kNN: pairs within 5 events, 100 neighbours; chosen among 8 settings" in text
    assert "data, leave-one-out@add_to_cart split, test" in text
    assert "found at place 2" in text and "not in the list" in text
    assert "prefers-color-scheme: dark" in page and "#010203" not in page


def test_plots_take_the_page_size(read):
    svgs = [dict(read.attributes[i : i + 1]) for i in range(len(read.attributes))]
    boxes = [a["viewbox"] for a in svgs if "viewbox" in a]
    assert len(boxes) == 8 and all(np.array(box.split(), float)[2] > 300 for box in boxes)


def test_losses_rewards_and_measurements_are_curves_of_their_own(page):
    for label in ("loss", "reward", "validation"):
        assert page.count(f"{label} of {html.escape(EVIL)} over training steps") == 1
