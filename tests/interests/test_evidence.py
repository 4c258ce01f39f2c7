import numpy as np
import pytest

from hf_gr.dataset import Histories
from hf_gr.interests import evidence as module
from hf_gr.interests.evidence import gather_evidence, next_items, sampled_negatives


NUM_ITEMS = 30


def histories(seed=0, users=25):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, users)
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    items = np.minimum(random.geometric(0.1, ptr[-1]) - 1, NUM_ITEMS - 1)  # some are popular, some taken twice
    names = np.array([f"u{user}" for user in range(users)], dtype=object)
    return Histories(names, ptr, items, np.arange(ptr[-1]))


def unit(random, *shape):
    vectors = random.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def world(seed=0):
    """Histories, interests' vectors and owners, items' vectors; some items and users have none, one is unknown."""
    random, train = np.random.default_rng([seed, 1]), histories(seed)
    owners = np.concatenate([random.integers(0, NUM_ITEMS, 70), random.integers(0, len(train), 30), [-1]])
    of_user = np.arange(101) >= 70
    mixed = random.permutation(101)
    return train, unit(random, 101, 6), owners[mixed], of_user[mixed], unit(random, NUM_ITEMS, 6)


def by_hand(train, interests, owners, of_user, items, horizon, drawn):
    found = []
    for user in range(len(train)):
        start, end = train.ptr[user], train.ptr[user + 1]
        own = set(train.items[start:end])
        for event in range(start, end):
            item = train.items[event]
            following = [other for other in train.items[event + 1 : min(event + 1 + horizon, end)] if other != item]
            negatives = [other for other in drawn[event] if other not in own]
            if not following or not negatives:
                continue
            for row in range(len(interests)):
                mine = owners[row] == user and event == end - 2 if of_user[row] else owners[row] == item
                if mine:
                    near = np.mean([interests[row] @ items[other] for other in following])
                    far = np.mean([interests[row] @ items[other] for other in negatives])
                    found.append((row, user, event, near > far))
    return sorted(found)


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_evidence_is_that_of_a_loop_over_everything(horizon, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    given = world()
    found = gather_evidence(*given[1:4], given[4], given[0], horizon=horizon, negatives=5, seed=3)
    drawn, _ = sampled_negatives(given[0], NUM_ITEMS, 5, 3)
    expected = by_hand(*given, horizon, drawn)
    got = sorted(zip(found.rows, found.users, found.events, found.labels, strict=True))
    assert got == expected
    assert len(expected) > 100 and 0.2 < found.labels.mean() < 0.8
    assert given[3][found.rows].any() and not given[3][found.rows].all()


def test_the_next_items_stay_inside_the_history():
    train = Histories(np.array(["a", "b"], object), np.array([0, 4, 6]), np.array([1, 2, 2, 3, 4, 5]), np.arange(6))
    following, counts = next_items(train, 2)
    lists = [row[kept].tolist() for row, kept in zip(following, counts, strict=True)]
    assert lists == [[2, 2], [3], [3], [], [5], []]


def test_negatives_are_drawn_by_popularity_outside_the_users_history():
    train = histories(2, users=60)
    drawn, counts = sampled_negatives(train, NUM_ITEMS, 200, 0)
    user_of = np.repeat(np.arange(len(train)), train.lengths)
    own = [set(train.items[train.ptr[user] : train.ptr[user + 1]]) for user in range(len(train))]
    for event in range(len(drawn)):
        assert [item not in own[user_of[event]] for item in drawn[event]] == counts[event].tolist()
    share = np.bincount(drawn.ravel(), minlength=NUM_ITEMS) / drawn.size
    assert share == pytest.approx(np.bincount(train.items, minlength=NUM_ITEMS) / len(train.items), abs=0.01)
    assert np.array_equal(drawn, sampled_negatives(train, NUM_ITEMS, 200, 0)[0])
    assert not np.array_equal(drawn, sampled_negatives(train, NUM_ITEMS, 200, 1)[0])


def test_counts_average_a_row_over_its_users():
    given = world(4)
    found = gather_evidence(*given[1:4], given[4], given[0], horizon=2, negatives=5, seed=0)
    positive, count = found.counts(101)
    for row in range(101):
        assert positive[row] == found.labels[found.rows == row].sum()
        assert count[row] == (found.rows == row).sum()
    chosen = np.arange(len(given[0])) % 3 == 0
    part, rest = found.of(chosen), found.of(~chosen)
    assert len(part) + len(rest) == len(found) and not set(part.users) & set(rest.users)


def test_nothing_follows_so_there_is_no_evidence():
    train = Histories(np.array(["a", "b"], object), np.array([0, 1, 2]), np.array([0, 1]), np.arange(2))
    vectors = np.eye(2, dtype=np.float32)
    found = gather_evidence(vectors, np.arange(2), np.zeros(2, bool), vectors, train, horizon=1, negatives=3, seed=0)
    assert len(found) == 0 and found.labels.dtype == bool
