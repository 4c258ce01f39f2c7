"""Limits of requests: one place, whichever way a request comes."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from searching import recursive
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer

import hf_gr
from hf_gr.batch import recommend_batch
from hf_gr.decoding import Recommender
from hf_gr.decoding.session import recommend_many
from hf_gr.errors import HfGrError
from hf_gr.hub import save_repo
from hf_gr.limits import NO_LIMITS, Limits, whole
from hf_gr.pipeline import GenerativeRecommendationPipeline
from hf_gr.requests import parse_request
from hf_gr.vocabulary import add_vocabulary


SMALL = Limits(history=3, ids=3, query=10, top_k=4, num_beams=8, batch_size=2)
TOO_MUCH = {  # of each limit a request, settings, and what is told
    "history": ({"history": ["i001"] * 4}, {}, "history has a length of 4, above the limit of 3"),
    "exclude": ({"exclude": ["i001"] * 5}, {}, "exclude has a length of 5, above the limit of 3"),
    "allow": ({"allow": [f"i{row:03d}" for row in range(4)]}, {}, "allow has a length of 4, above the limit of 3"),
    "query": ({"query": "something calm"}, {}, "query has a length of 14, above the limit of 10"),
    "top_k": ({}, {"top_k": 5}, "top_k is 5, above the limit of 4"),
    "num_beams": ({}, {"num_beams": 9}, "num_beams is 9, above the limit of 8"),
    "batch_size": ({}, {"batch_size": 3}, "batch_size is 3, above the limit of 2"),
}
QUICK = {"top_k": 4, "num_beams": 8, "batch_size": 2}


@pytest.fixture(scope="module")
def pipe() -> GenerativeRecommendationPipeline:
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5)
    return GenerativeRecommendationPipeline(model, tokenizer, catalog=catalog, vocabulary=vocabulary, limits=SMALL)


@pytest.mark.parametrize("case", TOO_MUCH)
def test_the_pipeline_and_batches(case, pipe, tmp_path):
    request, settings, message = TOO_MUCH[case]
    request, settings = {"history": ["i001"]} | request, QUICK | settings
    with pytest.raises(HfGrError, match=rf"^{message}; ask for less, or .*Limits\(\w+=…\)"):
        pipe(request, **settings)
    assert len(pipe({"history": ["i001"]}, **QUICK)) == 4
    model = tmp_path / "model"
    recommender = pipe.recommender
    save_repo(model, pipe.model, pipe.tokenizer, recommender.catalog, recommender.vocabulary)
    pq.write_table(pa.Table.from_pylist([{"user_id": "ann"} | request]), tmp_path / "users.parquet")
    with pytest.raises(HfGrError, match=message):
        recommend_batch(model, tmp_path / "users.parquet", tmp_path / "out.parquet", limits=SMALL, **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "users.parquet"]


def histories(rows: list[list[int]]) -> hf_gr.Histories:
    items = np.array([item for row in rows for item in row], np.int64)
    ptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return hf_gr.Histories(np.array(["u"] * len(rows), object), ptr, items, np.arange(len(items)))


def test_the_recommender(pipe):
    recommend = pipe.recommender.recommend
    with pytest.raises(HfGrError, match="top_k is 5, above"):
        recommend(histories([[1]]), top_k=5, num_beams=8)
    with pytest.raises(HfGrError, match="num_beams is 9, above"):
        recommend(histories([[1]]), top_k=4, num_beams=9)
    with pytest.raises(HfGrError, match="the batch has a length of 3, above the limit of 2"):
        recommend(histories([[1]] * 3), top_k=4, num_beams=8)
    with pytest.raises(HfGrError, match="a history has a length of 4, above the limit of 3"):
        recommend(histories([[1] * 4]), top_k=4, num_beams=8)
    with pytest.raises(HfGrError, match="a list of items has a length of 41, above the limit of 3"):
        recommend(histories([[1]]), top_k=4, num_beams=8, exclude=[np.zeros(41, np.int64)])
    with pytest.raises(HfGrError, match="a query has a length of 14, above"):
        recommend(histories([[1]]), top_k=4, num_beams=8, queries=["something calm"])
    with pytest.raises(HfGrError, match=r"histories are \['i001'\] \(list\); give Histories of catalog rows"):
        recommend(["i001"])
    with pytest.raises(HfGrError, match=r"swap is given 'folder' \(str\); give SidCatalog\.load\(folder\)"):
        pipe.recommender.swap("folder")


def test_sessions():
    recommender = recursive_recommender(replace(SMALL, history=2))
    with pytest.raises(HfGrError, match="history has a length of 3, above the limit of 2"):
        recommender.session(["i001"] * 3)
    session = recommender.session(["i001", "i002"])
    for settings, message in (
        ({"top_k": 5}, "top_k is 5, above"),
        ({"top_k": True}, r"top_k is True \(bool\)"),
        ({"num_beams": 9}, "num_beams is 9, above"),
        ({"exclude": ["i001"] * 4}, "exclude has a length of 4, above"),
        ({"allow": ["i001"] * 4}, "allow has a length of 4, above"),
    ):
        with pytest.raises(HfGrError, match=message):
            session.recommend(**({"top_k": 4, "num_beams": 8} | settings))
    with pytest.raises(HfGrError, match="the batch has a length of 3, above"):
        recommend_many([session] * 3, 4, num_beams=8)


def recursive_recommender(limits: Limits) -> Recommender:
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5)
    model, vocabulary = recursive(model, vocabulary, catalog)
    return Recommender(model, tokenizer, catalog, vocabulary, limits=limits)


def test_whole_numbers():
    assert [whole("n", value) for value in (1, np.int64(5), np.uint8(7))] == [1, 5, 7]
    for value in (0, -1, True, np.True_, 1.0, "3", None, np.float64(2), [2]):
        with pytest.raises(HfGrError, match=r"n is .*; give a whole number of at least 1"):
            whole("n", value)
    assert NO_LIMITS.number("num_beams", 10**9) == 10**9


def test_a_list_without_end_is_not_read_to_its_end():
    def endless():
        while True:
            yield "i001"

    with pytest.raises(HfGrError, match="history has a length of 4, above the limit of 3"):
        parse_request({"history": endless()}, tiny_catalog(), limits=SMALL)


def test_frozen_dataclasses_of_arrays_are_compared_as_objects():
    """`==` of two of them would be that of arrays, which has no truth value, and `hash` would raise."""
    arrays = ("ndarray", "Tensor", "pa.Table", "Histories")
    wrong = []
    for file in Path(hf_gr.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                fields = [ast.unparse(line.annotation) for line in node.body if isinstance(line, ast.AnnAssign)]
                holds = any(name in annotation for annotation in fields for name in arrays)
                if holds and any("frozen=True" in mark and "eq=False" not in mark for mark in marks):
                    wrong.append(f"{file.name}: {node.name}")
    assert not wrong
    catalog = tiny_catalog()
    assert catalog == catalog and catalog != tiny_catalog() and hash(catalog) == hash(catalog)
