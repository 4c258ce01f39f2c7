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


def test_places_of_targets_are_those_in_the_answered_lists(retriever, histories):
    """Validation and test have one definition."""
    targets = np.random.default_rng(1).integers(0, ITEMS, 10)
    found = target_places(retriever.model, Cases(histories, targets), batch_size=3)
    lists = retriever.recommend(histories, top_k=ITEMS).items
    assert [row[place] for row, place in zip(lists, found, strict=True)] == targets.tolist()


def users_at_random(count: int) -> Histories:
    random = np.random.default_rng(2)
    ptr = np.arange(count + 1) * 3
    return Histories(np.arange(count).astype(str), ptr, random.integers(0, ITEMS, ptr[-1]), np.arange(ptr[-1]))


def test_a_model_whose_scores_are_all_equal_hits_by_chance(retriever):
    """A dead model: HR@k is k / items for every target, wherever it stands in the catalog."""
    for parameter in retriever.model.parameters():
        torch.nn.init.zeros_(parameter)
    many = users_at_random(3000)
    for target in (0, ITEMS - 1):
        ranks = target_places(retriever.model, Cases(many, np.full(3000, target)), batch_size=500)
        lists = retriever.recommend(many, top_k=ITEMS)
        assert np.array_equal(ranks, np.nonzero(lists.items == target)[1])
        assert (np.sort(lists.items, axis=1) == np.arange(ITEMS)).all() and np.allclose(lists.scores, -np.log(ITEMS))
        assert np.mean(ranks < 10) == pytest.approx(10 / ITEMS, abs=0.03)
        assert np.mean(ranks < 1) == pytest.approx(1 / ITEMS, abs=0.02)


def test_half_of_those_on_a_level_with_the_target_stand_before_it(retriever, monkeypatch):
    scores = torch.tensor([3.0, 2.0, 2.0, 2.0, 2.0, *[1.0] * (ITEMS - 5)])
    monkeypatch.setattr(
        "hf_gr.retrieval.retriever.log_probabilities", lambda model, histories: scores.repeat(len(histories), 1)
    )
    many = users_at_random(2000)
    ranks = target_places(retriever.model, Cases(many, np.full(2000, 3)), batch_size=300)
    assert set(ranks) == {1, 2, 3, 4} and ranks.mean() == pytest.approx(2.5, abs=0.1)
    three = retriever.recommend(many, top_k=3).items  # equal ones on both sides of the end
    assert (three[:, 0] == 0).all() and set(three[:, 1:].ravel()) == {1, 2, 3, 4}
    assert np.mean(three[:, 1] == 4) == pytest.approx(0.25, abs=0.04)
    alone = users_at_random(1)
    assert np.array_equal(retriever.recommend(alone).items, retriever.recommend(many).items[:1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_stop_the_run(retriever, histories, value):
    with torch.no_grad():
        retriever.model.items.weight[3] = value
    with pytest.raises(HfGrError, match="scores are not finite, so they rank nothing"):
        retriever.recommend(histories)
    with pytest.raises(HfGrError, match="lower learning_rate"):
        target_places(retriever.model, Cases(histories, np.zeros(10, np.int64)), batch_size=3)


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
