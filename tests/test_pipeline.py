"""Requests, answers, and the task that `import hf_gr` registers."""

import copy
import logging
import pickle
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import hf_gr
from hf_gr.answering import answer, histories_of
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.decoding import PrefixCache, Recommender
from hf_gr.errors import HfGrError
from hf_gr.hub import save_repo
from hf_gr.pipeline import GenerativeRecommendationPipeline
from hf_gr.requests import parse_request
from hf_gr.vocabulary import add_vocabulary


REMOVED = ["i005", "i006"]


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """A model folder; two of its 40 items are removed."""
    folder = tmp_path_factory.mktemp("repo") / "model"
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5)
    save_repo(folder, model, tokenizer, catalog.removed(REMOVED), vocabulary)
    return folder


@pytest.fixture(scope="module")
def recommend(repo) -> GenerativeRecommendationPipeline:
    return pipeline("generative-recommendation", model=str(repo))


def ids(answers: list[dict]) -> list[str]:
    return [entry["item_id"] for entry in answers]


def test_importing_is_quick():
    """hf_gr alone loads nothing heavy. (That the task is there when it is needed: tests/test_hub.py.)"""
    code = "import sys, hf_gr; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_root())


def test_public_names_and_version():
    assert all(getattr(hf_gr, name) is not None for name in hf_gr.__all__)
    assert set(hf_gr.__all__) == {*hf_gr._MODULE_OF, "__version__"}
    project = tomllib.loads((_root() / "pyproject.toml").read_text())["project"]
    assert hf_gr.__version__ == project["version"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_gr.nothing


def _root() -> Path:
    return Path(__file__).parents[1]


def test_an_answer_is_what_the_recommender_finds(recommend, repo):
    answers = recommend(["i001", "i002"], top_k=7)
    recommender = Recommender.from_pretrained(repo, device="cpu")
    request = parse_request(["i001", "i002"], recommender.catalog)
    ((items, scores),) = answer(recommender, [request], top_k=7)
    catalog = recommender.catalog
    assert answers == [
        {
            "item_id": catalog.item_ids[item],
            "title": catalog.titles[item],
            "score": pytest.approx(float(score), abs=1e-4),
            "sid": catalog.codes[item].tolist(),
        }
        for item, score in zip(items, scores, strict=True)
    ]
    assert len(answers) == 7


def test_forms_of_a_request(recommend):
    one = recommend(["i001", "i002"])
    assert len(one) == 10  # the default
    assert ids(recommend({"history": ["i001", "i002"]})) == ids(one)
    assert ids(recommend(("i001", "i002"))) == ids(one)
    batch = recommend([["i001", "i002"], {"history": ["i003"], "exclude": None}, []], batch_size=2)
    assert [len(answers) for answers in batch] == [10, 10, 10]
    assert ids(batch[0]) == ids(one)
    assert ids(batch[1]) == ids(recommend(["i003"]))
    assert ids(batch[2]) == ids(recommend({"history": []})) == ids(recommend({"history": None}))
    assert len(recommend([["i001"]])) == 1


def test_a_batch_of_no_requests(recommend, caplog):
    assert answer(recommend.recommender, []) == []
    assert recommend([]) == recommend(np.array([])) == []
    assert 'for a new user, of no events, give {"history": []}' in caplog.text
    assert list(recommend(iter([]))) == []


ONE = ["i001", "i002"]


@pytest.mark.parametrize(
    "given_",
    [
        np.array(ONE),
        np.array(ONE, object),
        pd.Series(ONE),
        pa.array(ONE),
        pa.chunked_array([ONE[:1], ONE[1:]]),
        {"history": pd.Series(ONE), "exclude": set(), "allow": None},
        {"history": (item for item in ONE), "exclude_seen": np.False_},
    ],
    ids=lambda given_: type(given_).__name__,
)
def test_arrays_are_lists(recommend, given_):
    assert recommend(given_, top_k=np.int64(3)) == recommend(ONE, top_k=3)


MANY = [["i001"], ["i002", "i003"], ["i004", "i005", "i006"]]


@pytest.mark.parametrize(
    "given_",
    [
        tuple(MANY),
        pd.Series(MANY),
        [np.array(history) for history in MANY],
        np.array([np.array(history, object) for history in MANY], object),
        pa.array(MANY),
        datasets.Dataset.from_dict({"history": MANY}),
        datasets.Dataset.from_dict({"history": MANY})["history"],
    ],
    ids=lambda given_: type(given_).__name__,
)
def test_lists_of_lists_are_a_batch(recommend, given_):
    assert recommend(given_, top_k=3) == recommend(MANY, top_k=3)


def test_streams_are_answered_a_batch_at_a_time(recommend):
    read = []

    def requests():
        for history in MANY:
            read.append(history)
            yield history

    expected = recommend(MANY, top_k=3)
    answers = recommend(requests(), top_k=3, batch_size=2)
    assert read == []
    assert ids(next(answers)) == ids(expected[0]) and len(read) == 2
    assert [ids(found) for found in answers] == [ids(found) for found in expected[1:]]
    keys = KeyDataset(datasets.Dataset.from_dict({"history": MANY}), "history")
    assert [ids(found) for found in recommend(keys, top_k=3)] == [ids(found) for found in expected]
    with pytest.raises(HfGrError, match="topk"):
        recommend(requests(), topk=3)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_bad_request_fails_alone(recommend, caplog, batch_size):
    bad = {
        1: ([1, 2], "history holds 1"),
        3: ({"history": ["zz"]}, "no item of the catalog"),
        4: (None, "a request is None"),
        6: ({"history": ["i001"], "category": "evn"}, "no item is of category 'evn'"),
        7: ({"history": ["i001"], "query": "x" * 3000}, "query has a length of 3000"),
    }
    batch = [bad[row][0] if row in bad else MANY[row % 3] for row in range(9)]
    answers = recommend(batch, top_k=3, batch_size=batch_size, explain=True)
    good = iter(recommend([MANY[row % 3] for row in range(9) if row not in bad], top_k=3, explain=True))
    for row, answer_ in enumerate(answers):
        if row in bad:
            assert answer_.keys() == {"error"} and bad[row][1] in answer_["error"]
        else:
            assert ids(answer_) == ids(next(good)) and "path" in answer_[0]
    assert "5 of 9 requests failed (index 1: history holds 1" in caplog.text
    assert list(recommend(iter(batch[:4]), top_k=3, batch_size=batch_size))[3] == answers[3]
    assert recommend([None, []])[0] == answers[4]


def test_what_only_the_search_finds_out_fails_alone_too(recommend, monkeypatch):
    """A request that the model cannot read; here as one with a query would be, to a model of SIDs alone."""
    prompts = Recommender.prompts

    def no_queries(self, histories, queries=None):
        if any(queries or []):
            raise HfGrError("the model reads no query")
        return prompts(self, histories, queries)

    monkeypatch.setattr(Recommender, "prompts", no_queries)
    plain = recommend(MANY, top_k=3)
    batch = [MANY[0], {"history": MANY[1], "query": "red"}, MANY[2]]
    for settings_ in ({}, {"max_per_category": 5}, {"explain": True}):
        answers = recommend(batch, top_k=3, **settings_)
        assert answers[1] == {"error": "the model reads no query"}
        assert [ids(answers[0]), ids(answers[2])] == [ids(plain[0]), ids(plain[2])]
    with pytest.raises(HfGrError, match="reads no query"):
        recommend(batch[1])


def test_settings_are_for_all(recommend):
    for settings_ in ({"top_k": 0}, {"reflection": 2}, {"batch_size": 0}):
        with pytest.raises(HfGrError, match=next(iter(settings_))):
            recommend(MANY, **settings_)


def test_another_process_can_have_a_copy(recommend):
    recommend.recommender.mask("even")
    copied = pickle.loads(pickle.dumps(recommend))
    assert copied(ONE, explain=True) == recommend(ONE, explain=True)
    cached = Recommender(
        recommend.model,
        recommend.tokenizer,
        recommend.recommender.catalog,
        recommend.recommender.vocabulary,
        PrefixCache(max_tokens=64, block=2),
    )
    requests = [parse_request(ONE, cached.catalog)]
    expected = answer(cached, requests)[0][0].tolist()
    assert len(cached.prefix_cache._blocks) > 0
    copied = pickle.loads(pickle.dumps(cached))
    assert copied.prefix_cache.tokens == 0 and copied.prefix_cache.max_tokens == 64
    assert answer(copied, requests)[0][0].tolist() == expected
    assert cached.snapshot()._lock is cached._lock


def test_settings_given_when_it_is_made(repo):
    made = pipeline("generative-recommendation", model=str(repo), top_k=3, strict=True, batch_size=2)
    assert len(made(["i001"])) == 3
    assert len(made(["i001"], top_k=4)) == 4
    with pytest.raises(HfGrError, match="nobody"):
        made(["nobody"])


def test_long_histories_keep_the_most_recent(recommend):
    long = [f"i{row:03d}" for row in range(10, 35)]
    assert recommend(long) == recommend(long[-5:])
    assert recommend(long) != recommend(long[:5])


def test_the_query_is_read(recommend):
    plain, asked = recommend(["i001"]), recommend({"history": ["i001"], "query": "something calm"})
    assert [entry["score"] for entry in plain] != [entry["score"] for entry in asked]
    prompts = recommend.recommender.prompts
    request = parse_request({"query": "<items>"}, recommend.recommender.catalog)
    histories = histories_of([request], "none")
    start = recommend.recommender.vocabulary.start_id
    assert prompts(histories, [request.query])[0].count(start) == 1  # user text never becomes a control token


def test_unknown_ids_are_skipped_with_one_warning(recommend, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_gr"):
        answers = recommend([["a", "i001", "i005"], {"history": ["b", "c", "i002"], "exclude": ["a", "i006"]}])
    assert [record.message for record in caplog.records] == [
        "3 item id(s) are not in the catalog: 'a', 'b', 'c'; skipped."
    ]
    assert ids(answers[0]) == ids(recommend(["i001", "i005"]))
    with pytest.raises(HfGrError, match=r"1 item id\(s\).*'zz'; leave them out"):
        recommend(["i001", "i005", "zz"], strict=True)
    with pytest.raises(HfGrError, match="'zz'"):
        recommend({"history": ["i001"], "exclude": ["zz"]}, strict=True)


@pytest.mark.parametrize("strict", [False, True])
def test_a_history_of_which_nothing_is_known_is_no_new_user(recommend, strict):
    with pytest.raises(HfGrError, match=r"in the catalog|no item of the catalog, whose ids are written as 'i000'"):
        recommend({"history": ["I001", "I002"]}, strict=strict)
    assert len(recommend({"history": ["i005"]}, strict=strict)) == 10  # removed, not unknown


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (7, r"history is 7 \(int\); give a list"),
        (None, "a request is None"),
        ({"i001", "i002"}, r"history is \{'i00.* \(set\)"),
        (np.array(1), r"history is array\(1\) \(ndarray\)"),
        (np.array([1, 2]), r"history holds .*item ids are strings: write '1', of an array \.astype\(str\)"),
        (["i001", None], "history holds None .*write them as text"),
        ("i001", r"history is 'i001' \(str\)"),
        ([1, 2], r"history holds 1 \(int\); item ids are strings"),
        ({"histroy": ["i001"]}, "no key 'histroy'; it may have: history,"),
        ({"history": ["i001"], "query": "\ud83d"}, "half a character"),
        ({"history": ["i001"], "ratings": [5]}, "ratings are given, but this model reads none"),
        ({"history": ["i001"], "behaviors": ["view"]}, "behaviors are given, but this model reads none"),
        ({"history": ["i001"], "exclude": "i002"}, "exclude is 'i002'"),
        ({"history": ["i001"], "query": 3}, r"query is 3 \(int\)"),
        ({"history": ["i001"], "allow": []}, r"allow is \[\]"),
        ({"history": ["i001"], "allow": ["x", "i005"]}, r"allow is \['x', 'i005'\] .*nothing can be answered"),
    ],
)
def test_bad_requests_get_one_line(recommend, request_, message):
    with pytest.raises(HfGrError, match=message) as caught:
        recommend(request_)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "parameter",
    [
        {"top_k": 0},
        {"top_k": "5"},
        {"num_beams": 0},
        {"max_per_category": 0},
        {"topk": 3},
        {"top_k": True},
        {"num_beams": np.True_},
        {"max_per_category": True},
        {"batch_size": 0},
        {"batch_size": 1.0},
        {"exclude": ["i001"]},
        {"history": ["i001"]},
        {"reflection": 2},
        {"reflection": [0.5]},
    ],
)
def test_bad_parameters_get_one_line(recommend, parameter):
    with pytest.raises(HfGrError, match=next(iter(parameter))):
        recommend(["i001"], **parameter)


@pytest.mark.parametrize("cap", [None, 2])
def test_reflection_reaches_the_search(recommend, cap):
    requests = [["i001", "i002"], {"history": ["i003"], "exclude": ["i004"]}]
    settings = {"top_k": 4, "num_beams": 4, "max_per_category": cap}
    plain = [ids(answers) for answers in recommend(requests, **settings)]
    found = [ids(answers) for answers in recommend(requests, reflection=0.9, **settings)]
    assert found != plain and all(len(set(answers)) == 4 for answers in found)
    assert [ids(answers) for answers in recommend(requests, reflection=0, **settings)] == plain
    if cap is None:
        asked = [parse_request(value, recommend.recommender.catalog) for value in requests]
        histories = histories_of(asked, "none")
        rows = recommend.recommender.recommend(
            histories, top_k=4, num_beams=4, exclude=[request.exclude for request in asked], reflection=0.9
        )[0]
        assert [[f"i{row:03d}" for row in answer] for answer in rows] == found


def test_a_filter_that_leaves_nothing_gives_an_empty_list(recommend):
    everything = [f"i{row:03d}" for row in range(40) if f"i{row:03d}" not in REMOVED]
    assert recommend([{"exclude": everything}, ["i001"]])[0] == []


ITEMS = st.lists(st.sampled_from([f"i{row:03d}" for row in range(40)] + ["x", "y"]), max_size=45)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=ITEMS, exclude=ITEMS, allow=st.none() | ITEMS, top_k=st.integers(1, 45), cap=st.none() | st.integers(1, 9)
)
def test_exactly_as_many_live_items_as_there_are(recommend, history, exclude, allow, top_k, cap):
    catalog = recommend.recommender.catalog
    live = set(catalog.item_ids) - set(REMOVED)
    refused = bool(history) and not set(history) & set(catalog.item_ids)  # of a history nothing is known
    if refused or (allow is not None and not live & set(allow)):
        return
    wanted = live - set(exclude) if allow is None else (live & set(allow)) - set(exclude)
    even = sum(int(item_id[1:]) % 2 == 0 for item_id in wanted)  # the category of the tiny items
    left = len(wanted) if cap is None else min(cap, even) + min(cap, len(wanted) - even)
    answers = ids(
        recommend(
            {"history": history, "exclude": exclude, "allow": allow}, top_k=top_k, num_beams=4, max_per_category=cap
        )
    )
    assert len(answers) == len(set(answers)) == min(top_k, left)
    assert set(answers) <= wanted


def test_the_cap_keeps_the_order_and_counts_the_first_category(recommend):
    """One search suffices here: the capped list is the long list with the surplus left out."""
    recommender = recommend.recommender
    full = ids(recommend(["i001"], top_k=38))
    seen = {0: 0, 1: 0}
    expected = []
    for item_id in full:
        kind = int(item_id[1:]) % 2
        seen[kind] += 1
        expected += [item_id] if seen[kind] <= 3 else []
    assert ids(recommend(["i001"], top_k=38, max_per_category=3)) == expected
    items = tiny_items().drop_columns("categories").append_column("categories", [[None] * 20 + [["a", "b"]] * 20])
    catalog = SidCatalog.from_codes(recommender.catalog.codes, items, (4, 4, 4), recommender.catalog.popularity)
    mixed = Recommender(recommender.model, recommender.tokenizer, catalog, recommender.vocabulary)
    ((rows, _),) = answer(mixed, [parse_request([], catalog)], top_k=40, max_per_category=2)
    assert (rows < 20).sum() == 20  # without a category: no cap
    assert (rows >= 20).sum() == 2


def test_context_is_required_where_the_model_reads_it(tmp_path):
    write_dataset(tmp_path / "data", tiny_interactions(), tiny_items(), source="Made for tests.")
    train = InteractionDataset.load(tmp_path / "data").split().train
    for context, name, good, other in (
        ("rating", "ratings", [5, 1.0, 2], [1, 1, 1]),
        ("behavior", "behaviors", ["view"] * 3, ["steal"] * 3),
    ):
        model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
        vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5, context=context, histories=train)
        recommend = GenerativeRecommendationPipeline(model, tokenizer, catalog=catalog, vocabulary=vocabulary)
        history = ["i001", "unknown", "i002"]
        for bad in (None, good[:2], ["five", 1, 1], "view"):
            with pytest.raises(HfGrError, match=f"reads a {context}.*{name} is"):
                recommend({"history": history, name: bad})
        assert len(recommend({"history": []})) == 10
        other_name = "behaviors" if name == "ratings" else "ratings"
        with pytest.raises(HfGrError, match=f"{other_name} are given, but this model reads none"):
            recommend({"history": history, name: good, other_name: good})
        answers = recommend({"history": history, name: good})
        assert answers == recommend({"history": ["i001", "i002"], name: [good[0], good[2]]})
        if context == "rating":
            assert answers != recommend({"history": history, name: other})
        else:  # what no training event has
            assert recommend({"history": history, name: other}) == recommend(
                {"history": history, name: ["unknown"] * 3}
            )


def test_save_pretrained_writes_a_repo_that_answers_alike(recommend, tmp_path):
    recommend.save_pretrained(tmp_path / "copy")
    copied = pipeline("generative-recommendation", model=str(tmp_path / "copy"))
    assert copied(["i001"]) == recommend(["i001"])
    with pytest.raises(HfGrError, match=r"takes a folder alone, not push_to_hub; .*hf_gr\.push_to_hub"):
        recommend.save_pretrained(tmp_path / "again", push_to_hub=True)
    assert not (tmp_path / "again").exists()


def test_a_model_made_on_the_spot_carries_nothing_of_the_working_folder(recommend, tmp_path, monkeypatch):
    (tmp_path / "quantizer").mkdir()
    (tmp_path / "quantizer" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    known = recommend.recommender
    model = copy.deepcopy(recommend.model)
    model.config.name_or_path = ""
    made = GenerativeRecommendationPipeline(
        model, recommend.tokenizer, catalog=known.catalog, vocabulary=known.vocabulary
    )
    made.save_pretrained(tmp_path / "made")
    assert not (tmp_path / "made" / "quantizer").exists()


def test_weights_and_catalog_must_belong_together(repo, tmp_path):
    folder = shutil.copytree(repo, tmp_path / "mixed")
    tiny_catalog(seed=1).save(folder)
    with pytest.raises(HfGrError, match=r"weights were made for catalog .* from one revision"):
        pipeline("generative-recommendation", model=str(folder))
    (folder / "vocabulary.json").unlink()
    with pytest.raises(HfGrError, match=r"vocabulary\.json"):
        pipeline("generative-recommendation", model=str(folder))


def test_requests_are_rows(recommend):
    catalog = recommend.recommender.catalog
    request = parse_request({"history": ["i003", "zz", "i001", "i003"], "allow": ["i002"]}, catalog)
    np.testing.assert_array_equal(request.history, [3, 1, 3])
    np.testing.assert_array_equal(request.allow, [2])
    assert (len(request.exclude), request.skipped, request.context) == (0, ("zz",), None)
