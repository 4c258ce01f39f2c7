"""The three editions of the Amazon data in miniature."""

import gzip
import json

import pytest

from data_prep import FilterOptions, prepare_amazon
from data_prep.amazon import clean, read_metadata
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError


ALL = FilterOptions()
REVIEWS = {
    "2014": {"reviewerID": "U1", "asin": "0001", "overall": 5.0, "unixReviewTime": 1393545600, "helpful": [0, 0]},
    "2018": {
        "reviewerID": "U1",
        "asin": "0001",
        "overall": 5.0,
        "unixReviewTime": 1393545600,
        "style": {"Size:": "L"},
    },
    "2023": {
        "user_id": "U1",
        "parent_asin": "0001",
        "asin": "9",
        "rating": 5.0,
        "timestamp": 1393545600999,
        "images": [],
    },
}
TITLE = "Tom &amp;amp; Jerry's <b>Soap</b>"
METADATA = {
    "2014": repr(
        {
            "asin": "0001",
            "title": TITLE,
            "brand": "Acme",
            "categories": [["Beauty", "Bath &amp; Body"], ["Beauty", "Soap"]],
            "description": "<p>Fine\n soap</p>",
        }
    ),
    "2018": json.dumps(
        {
            "asin": "0001",
            "title": TITLE,
            "brand": "Acme",
            "category": ["Beauty", "Bath &amp; Body", "Soap"],
            "description": ["<p>Fine", "soap</p>"],
        }
    ),
    "2023": json.dumps(
        {
            "parent_asin": "0001",
            "title": TITLE,
            "store": "Acme",
            "categories": ["Beauty", "Bath &amp; Body", "Soap"],
            "description": ["Fine soap", ""],
        }
    ),
}


@pytest.mark.parametrize(("edition", "suffix"), [("2014", ".json.gz"), ("2018", ".json"), ("2023", ".jsonl.gz")])
def test_editions_give_the_same_folder(tmp_path, edition, suffix):
    write = gzip.open if suffix.endswith(".gz") else open
    for name, line in (("reviews", json.dumps(REVIEWS[edition])), ("meta", METADATA[edition])):
        with write(tmp_path / f"{name}{suffix}", "wt") as handle:
            handle.write(line + "\n")
    prepare_amazon(tmp_path / "out", tmp_path / f"reviews{suffix}", tmp_path / f"meta{suffix}", options=ALL)
    data = InteractionDataset.load(tmp_path / "out")
    assert data.items.to_pylist() == [
        {
            "item_id": "0001",
            "title": "Tom & Jerry's Soap",
            "brand": "Acme",
            "categories": ["Beauty", "Bath & Body", "Soap"],
            "description": "Fine soap",
        }
    ]
    assert data.events.timestamps.tolist() == [1393545600_000_000 + (999_000 if edition == "2023" else 0)]
    assert data.events.ratings.tolist() == [5.0]


def test_five_core_is_the_default(tmp_path):
    rows = [
        REVIEWS["2014"] | {"reviewerID": f"U{u}", "asin": f"{i}"} for u in range(6) for i in range(5 if u < 5 else 1)
    ]
    (tmp_path / "r.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_amazon(tmp_path / "out", tmp_path / "r.json")
    data = InteractionDataset.load(tmp_path / "out")
    assert (len(data.events), data.num_items, len(data.events.items)) == (5, 5, 25)


def test_titles_missing_or_made_of_javascript_and_repeated_products(tmp_path):
    lines = [{"asin": "a"}, {"asin": "b", "title": "var t = getTime()"}, {"asin": "a", "title": "again"}]
    (tmp_path / "m.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_metadata(tmp_path / "m.json").to_pydict() == {"item_id": ["a", "b"], "title": ["a", "b"]}


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("a &lt; b", "a < b"),
        ("3 < 5 and 6 > 4", "3 < 5 and 6 > 4"),
        ("<br/> ", None),
        (["x", None, "y"], "x y"),
        (None, None),
    ],
)
def test_clean(raw, plain):
    assert clean(raw) == plain


@pytest.mark.parametrize(
    ("reviews", "metadata", "message"),
    [
        ('{"user": 1}\n', None, r"r\.json has no column 'reviewerID' \(it has: user\)"),
        (json.dumps(REVIEWS["2014"]), "{'asin': 'x'}\n{'asin': \n", r"m\.json line 2 is unreadable"),
        (json.dumps(REVIEWS["2014"]), "{'name': 'x'}", r"m\.json: a product has no 'parent_asin' or 'asin'"),
        (
            json.dumps(REVIEWS["2014"]),
            "{'asin': 'x'}",
            r"r\.json: 1 interaction.*'0001' of user 'U1'.*--drop-unknown-items",
        ),
    ],
)
def test_bad_input(tmp_path, reviews, metadata, message):
    (tmp_path / "r.json").write_text(reviews)
    (tmp_path / "m.json").write_text(metadata or "")
    with pytest.raises(HfGrError, match=message) as caught:
        prepare_amazon(tmp_path / "out", tmp_path / "r.json", tmp_path / "m.json" if metadata else None, options=ALL)
    assert "\n" not in str(caught.value)
