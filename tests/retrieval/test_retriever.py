"""Rankings against brute force, filters, and what is refused."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import tiny_items

from hf_gr.dataset import Cases, Histories
from hf_gr.errors import HfGrError
from hf_gr.retrieval import BSARecConfig, BSARecModel, Retriever
from hf_gr.retrieval.retriever import target_places


ITEMS, MAX_HISTORY = 30, 6


@pytest.fixture
def retriever() -> Retriever:
    torch.manual_seed(0)
    config = BSARecConfig(ITEMS, 16, max_history=MAX_HISTORY, initializer_range=0.5)
    return Retriever(BSARecModel(config), tiny_items(ITEMS))


@pytest.fixture
def histories() -> Histories:
    """Of 0 to 9 events, more than a row holds."""
    random, lengths = np.random.default_rng(0), np.arange(10)
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    return Histories(np.arange(10).astype(str), ptr, random.integers(0, ITEMS, ptr[-1]), np.arange(ptr[-1]))


def plain_scores(retriever: Retriever, history: np.ndarray) -> np.ndarray:
    """log-probability of every item, one history at a time."""
    row = torch.tensor([[ITEMS, *history[-MAX_HISTORY:]]])
    with torch.no_grad():
        logits = retriever.model(row).last_hidden_state[0, -1] @ retriever.model.items.weight[:ITEMS].T
    return logits.log_softmax(0).numpy()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_answers_are_the_best_of_all_items(retriever, histories, batch_size):
    items, scores = retriever.recommend(histories, top_k=7, batch_size=batch_size)
    assert items.shape == scores.shape == (10, 7) and items.dtype == np.int64 and scores.dtype == np.float32
    for history, found, score in zip(histories, items, scores, strict=True):
        expected = plain_scores(retriever, history)
        assert found.tolist() == np.argsort(-expected)[:7].tolist()
        assert np.allclose(score, np.sort(expected)[::-1][:7], atol=1e-5)


def test_filters_are_honoured(retriever, histories):
    only = np.array([1, 4, 5, 8, 20, 21])
    exclude = [np.array([4, 20])] * 5 + [np.array([], np.int64)] * 5
    items, scores = retriever.recommend(histories, top_k=6, exclude=exclude, only=only)
    for row, (history, found, score) in enumerate(zip(histories, items, scores, strict=True)):
        allowed = [item for item in only if item not in exclude[row]]
        ranked = sorted(allowed, key=lambda item: -plain_scores(retriever, history)[item])
        assert found.tolist() == ranked + [-1] * (6 - len(ranked))
        assert np.isneginf(score[len(ranked) :]).all() and np.isfinite(score[: len(ranked)]).all()


def test_more_than_there_is_is_padded(retriever, histories):
    items, scores = retriever.recommend(histories, top_k=ITEMS + 3)
    assert (np.sort(items[:, :ITEMS]) == np.arange(ITEMS)).all()
    assert (items[:, ITEMS:] == -1).all() and np.isneginf(scores[:, ITEMS:]).all()


def test_places_of_targets(retriever, histories):
    targets = np.random.default_rng(1).integers(0, ITEMS, 10)
    found = target_places(retriever.model, Cases(histories, targets), batch_size=3)
    for history, target, place in zip(histories, targets, found, strict=True):
        scores = plain_scores(retriever, history)
        assert place == (scores > scores[target]).sum()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"exclude": [np.array([1])]}, "exclude has 1 entries for 10 histories"),
        ({"exclude": [np.array([ITEMS])] * 10}, "outside 0 to 29"),
        ({"only": np.array([-1])}, "outside 0 to 29"),
    ],
)
def test_what_is_refused(retriever, histories, given, message):
    with pytest.raises(HfGrError, match=message):
        retriever.recommend(histories, **given)


def test_a_folder_that_is_none_is_refused(tmp_path, retriever):
    with pytest.raises(HfGrError, match=r"knows 30 items, but its table holds 29"):
        Retriever(retriever.model, tiny_items(29))
    retriever.model.save_pretrained(tmp_path)
    with pytest.raises(HfGrError, match=r"items\.parquet is missing"):
        Retriever.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(HfGrError, match="is not a dense retriever"):
        Retriever.from_pretrained(tmp_path)


def test_items_travel_with_the_model(tmp_path, retriever, histories):
    retriever.model.save_pretrained(tmp_path)
    pq.write_table(retriever.items, tmp_path / "items.parquet")
    again = Retriever.from_pretrained(tmp_path)
    assert again.item_ids == retriever.item_ids
    assert np.array_equal(again.recommend(histories).items, retriever.recommend(histories).items)
