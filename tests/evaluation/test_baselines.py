import math

import numpy as np
import pytest

from hf_gr.dataset import Histories, popularity
from hf_gr.evaluation.baselines import ItemKNN, Popularity


NUM_ITEMS = 15


def histories(*rows) -> Histories:
    items = np.array([item for row in rows for item in row], np.int64)
    ptr = np.cumsum([0, *map(len, rows)])
    return Histories(np.array([f"u{n}" for n in range(len(rows))], dtype=object), ptr, items, np.arange(len(items)))


def random_histories(seed, users=25):
    random = np.random.default_rng(seed)
    return histories(*(random.integers(NUM_ITEMS - 2, size=random.integers(1, 8)).tolist() for _ in range(users)))


def dense_knn(train, queries, top_k, neighbours, window, exclude_seen):
    """The same method with loops over a dense matrix."""
    order = sorted(range(NUM_ITEMS), key=lambda i: (-popularity(train, NUM_ITEMS)[i], i))
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
        best = sorted(range(NUM_ITEMS), key=lambda b: (-similarity[a, b], place[b]))[:neighbours]
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
@pytest.mark.parametrize(("neighbours", "exclude_seen"), [(4, False), (100, True)])
def test_item_knn_equals_the_dense_reference(window, neighbours, exclude_seen):
    train, queries = random_histories(0), random_histories(1)
    model = ItemKNN(train, NUM_ITEMS, neighbours=neighbours, window=window, exclude_seen=exclude_seen)
    for top_k in (3, NUM_ITEMS, NUM_ITEMS + 3):
        expected = dense_knn(train, queries, top_k, neighbours, window, exclude_seen)
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
    assert popular.tolist() == [[3, 1, 2, 0, 4, 5]] * 2
    assert lists.tolist() == popular.tolist()


def test_popularity_leaves_out_what_was_seen_and_pads():
    train = histories([3, 1], [3, 1], [3, 2])
    lists = Popularity(train, 4, exclude_seen=True).recommend(histories([3, 2], [], [0, 1, 2, 3]), 3)
    assert lists.tolist() == [[1, 0, -1], [3, 1, 2], [-1, -1, -1]]
    assert lists.dtype == np.int64


def test_training_without_a_pair_still_answers():
    lists = ItemKNN(histories([0], [1]), 3, window=2).recommend(histories([0]), 3)
    assert lists.tolist() == [[0, 1, 2]]
