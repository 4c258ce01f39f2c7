"""Removed items are no answers and stay in histories, whichever way the history comes."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from searching import recursive
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer

from hf_gr.batch import recommend_batch
from hf_gr.dataset import Histories
from hf_gr.hub import save_repo
from hf_gr.pipeline import GenerativeRecommendationPipeline
from hf_gr.vocabulary import add_vocabulary


REMOVED = ["i003", "i011"]
HISTORY = ["i003", "i004", "i011"]


@pytest.mark.parametrize("form", ["flat", "recursive"])
def test_every_way_reads_the_same_history(form, tmp_path):
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5)
    if form == "recursive":
        model, vocabulary = recursive(model, vocabulary, catalog)
    left = catalog.removed(REMOVED)
    pipe = GenerativeRecommendationPipeline(model, tokenizer, catalog=left, vocabulary=vocabulary)
    answers = pipe(HISTORY, top_k=5, strict=True)
    items, scores = [answer["item_id"] for answer in answers], [answer["score"] for answer in answers]
    assert not set(items) & set(REMOVED)
    assert scores != pytest.approx([answer["score"] for answer in pipe(["i004"], top_k=5)], abs=1e-4)
    # The rows that evaluation hands over.
    rows = np.array([left.row_of[item_id] for item_id in HISTORY], np.int64)
    history = Histories(np.array(["u"], object), np.array([0, 3]), rows, np.arange(3))
    found, found_scores = pipe.recommender.recommend(history, top_k=5)
    assert [left.item_ids[row] for row in found[0]] == items and found_scores[0] == pytest.approx(scores, abs=1e-4)
    # A batch.
    save_repo(tmp_path / "model", model, tokenizer, left, vocabulary)
    pq.write_table(pa.table({"user_id": ["ann"], "history": [HISTORY]}), tmp_path / "users.parquet")
    out = recommend_batch(tmp_path / "model", tmp_path / "users.parquet", tmp_path / "out.parquet", top_k=5)
    assert pq.read_table(out)["item_ids"].to_pylist() == [items]
    # A session, of models that have them.
    if form == "recursive":
        session = pipe.recommender.session(HISTORY).recommend(5)
        assert [item for item, _ in session] == items
        assert [score for _, score in session] == pytest.approx(scores, abs=1e-4)


def test_they_may_be_left_out_and_are_never_the_only_answers():
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5)
    left = catalog.removed(REMOVED)
    pipe = GenerativeRecommendationPipeline(model, tokenizer, catalog=left, vocabulary=vocabulary)
    request = {"history": HISTORY, "exclude_seen": True}
    assert {"i004", *REMOVED}.isdisjoint(answer["item_id"] for answer in pipe(request, top_k=40))
    assert [a["item_id"] for a in pipe({"history": HISTORY, "allow": [*REMOVED, "i001"]}, strict=True)] == ["i001"]
    assert pipe([{"history": [], "allow": REMOVED}])[0].keys() == {"error"}
    swapped = pipe.recommender.snapshot()
    swapped.swap(replace(left, live=np.ones(40, bool)))
    assert swapped.catalog.live.all()
