import math

import numpy as np
import pytest

from hf_gr.dataset import Cases, Histories
from hf_gr.evaluation.baselines import ItemKNN, Popularity, popularity_order, tuned_knn
from hf_gr.evaluation.metrics import hit_rate, ndcg, target_ranks


NUM_ITEMS = 15


def histories(*rows) -> Histories:
    items = np.array([item for row in rows for item in row], np.int64)
    ptr = np.cumsum([0, *map(len, rows)])
    return Histories(np.array([f"u{n}" for n in range(len(rows))], dtype=object), ptr, items, np.arange(len(items)))


def random_histories(seed, users=25):
    random = np.random.default_rng(seed)
    return histories(*(random.integers(NUM_ITEMS - 2, size=random.integers(1, 8)).tolist() for _ in range(users)))


def dense_knn(train, queries, top_k, neighbors, window, exclude_seen):
    """The same method with loops over a dense matrix."""
    order = popularity_order(train, NUM_ITEMS).tolist()
    place = {item: rank for rank, item in enumerate(order)}
    takers = [sum(i in h for h in train) for i in range(NUM_ITEMS)]
    similarity = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for a in range(NUM_ITEMS):
        for b in range(NUM_ITEMS):
            if a != b:
                both = sum(
                    any(
                        h[x] == a and h[y] == b and (window is None or abs(x - y) <= window)
                        for x in range(len(h))
                        for y in range(len(h))
                    )
                    for h in train
                )
                similarity[a, b] = both / math.sqrt(takers[a] * takers[b]) if both else 0
    for a in range(NUM_ITEMS):
        best = sorted(range(NUM_ITEMS), key=lambda b: (-similarity[a, b], place[b]))[:neighbors]
        similarity[a, [b for b in range(NUM_ITEMS) if b not in best]] = 0
    lists = []
    for history in queries:
        score = np.zeros(NUM_ITEMS)
        for age, item in enumerate(reversed(history.tolist())):
            score += similarity[item] / (1 + age)
        ranked = sorted(range(NUM_ITEMS), key=lambda i: (-round(score[i], 12), place[i]))
        ranked = [i for i in ranked if not (exclude_seen and i in history)][:top_k]
        lists.append(ranked + [-1] * (top_k - len(ranked)))
    return np.array(lists)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize(("neighbors", "exclude_seen"), [(4, False), (100, True)])
def test_item_knn_equals_the_dense_reference(window, neighbors, exclude_seen):
    train, queries = random_histories(0), random_histories(1)
    model = ItemKNN(train, NUM_ITEMS, neighbors=neighbors, window=window, exclude_seen=exclude_seen)
    for top_k in (3, NUM_ITEMS, NUM_ITEMS + 3):
        expected = dense_knn(train, queries, top_k, neighbors, window, exclude_seen)
        scores_agree = (model.recommend(queries, top_k) == expected).mean(axis=1)
        assert (scores_agree == 1).all()


def test_recent_events_weigh_more():
    train = histories([0, 1], [0, 1], [2, 3], [2, 3])
    model = ItemKNN(train, 4)
    assert model.recommend(histories([0, 2]), 4)[0].tolist()[0] == 3
    assert model.recommend(histories([2, 0]), 4)[0].tolist()[0] == 1


def test_an_empty_history_and_an_unknown_item_get_the_popular_ones():
    train = histories([3, 1], [3, 1], [3, 2])
    lists = ItemKNN(train, 6).recommend(histories([], [5]), 6)
    popular = Popularity(train, 6).recommend(histories([], [5]), 6)
    assert popular[0, :3].tolist() == [3, 1, 2] and sorted(popular[0]) == list(range(6))
    assert lists.tolist() == popular.tolist() == [popular[0].tolist()] * 2


def test_popularity_leaves_out_what_was_seen_and_pads():
    train = histories([3, 1], [3, 1], [3, 2])
    lists = Popularity(train, 4, exclude_seen=True).recommend(histories([3, 2], [], [0, 1, 2, 3]), 3)
    assert lists.tolist() == [[1, 0, -1], [3, 1, 2], [-1, -1, -1]]
    assert lists.dtype == np.int64


def test_training_without_a_pair_still_answers():
    lists = ItemKNN(histories([0], [1]), 3, window=2).recommend(histories([0]), 3)
    assert sorted(lists[0]) == [0, 1, 2] and lists[0, 2] == 2


def test_equal_popularity_is_in_no_order_of_the_catalog():
    """All items equal: the lists are no better for those whose targets stand first in the catalog."""
    train, targets = histories(range(2000)), np.random.default_rng(0).integers(100, size=400)
    cases = histories(*[[1999]] * 400)
    for baseline in (Popularity(train, 2000), ItemKNN(train, 2000, window=1)):
        hits = hit_rate(target_ranks(baseline.recommend(cases, 50), targets), 50)
        assert hits.mean() < 0.2


def test_settings_come_from_validation(monkeypatch):
    """Everyone walks on two steps at a time past a distraction: only a window of two or more sees the walk."""
    random = np.random.default_rng(0)
    rows = [[item for step in range(6) for item in ((u + step) % 40, 40 + random.integers(60))] for u in range(300)]
    train, known = histories(*[row[:-4] for row in rows]), histories(*[row[:-4] for row in rows])
    validation = Cases(known, np.array([row[-4] for row in rows]))
    model, trials = tuned_knn(train, validation, 100)
    assert [(t.window, t.neighbors) for t in trials[:5]] == [(w, 100) for w in (None, 1, 2, 5, 10)]
    best = max(trials, key=lambda trial: trial.validation)
    assert (model.window, model.neighbors) == (best.window, best.neighbors) and best.window != 1
    for trial in trials:
        alone = ItemKNN(train, 100, window=trial.window, neighbors=trial.neighbors)
        ranks = target_ranks(alone.recommend(known, 10), validation.targets)
        assert trial.validation == pytest.approx(ndcg(ranks, 10).mean())
    expected = ItemKNN(train, 100, window=model.window, neighbors=model.neighbors)
    assert np.array_equal(model.recommend(known, 20), expected.recommend(known, 20))


def test_blocks_of_users_and_entries_change_nothing(monkeypatch):
    train, queries = random_histories(0, 60), random_histories(1, 60)
    whole = ItemKNN(train, NUM_ITEMS, exclude_seen=True).recommend(queries, 5)
    monkeypatch.setattr("hf_gr.evaluation.baselines._BLOCK", 7)
    monkeypatch.setattr("hf_gr.neighbors._CELLS", 1)
    assert np.array_equal(ItemKNN(train, NUM_ITEMS, exclude_seen=True).recommend(queries, 5), whole)


def test_where_nobody_repeats_the_history_does_not_head_the_lists():
    """Users take five of the ten items of a kind, none twice. An item that were its own neighbour would come first."""
    random = np.random.default_rng(0)
    rows = [10 * random.integers(20) + random.permutation(10)[:5] for _ in range(2000)]
    model = ItemKNN(histories(*rows), 200)
    first = model.recommend(histories(*[row[:4] for row in rows]), 1)[:, 0]
    assert np.mean([item in row[:4] for item, row in zip(first, rows, strict=True)]) < 0.05
    assert np.mean([item // 10 == row[0] // 10 for item, row in zip(first, rows, strict=True)]) == 1
    assert model._similarity.diagonal().sum() == 0
