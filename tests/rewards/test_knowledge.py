from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_catalog, tiny_interactions, tiny_items

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.embedding import ItemVectors
from hf_gr.embedding.store import items_fingerprint
from hf_gr.errors import HfGrError
from hf_gr.interests import Interests
from hf_gr.interests.table import SCHEMA
from hf_gr.rewards import ItemKnowledge, Rollouts, exact, prefix, ranking


def test_rollouts_know_which_are_items_and_which_are_hits():
    rollouts = Rollouts(np.array([[3, -1, 5]]), np.array([[5, 3]]), np.zeros((1, 3)))
    assert rollouts.target.tolist() == [[5]]
    assert rollouts.valid.tolist() == [[True, False, True]]
    assert rollouts.hits.tolist() == [[False, False, True]]
    assert Rollouts(np.array([[-1]]), np.array([[-1]]), np.zeros((1, 1))).hits.tolist() == [[False]]


def test_rewards_of_the_answer_alone_compute_nothing_else(world):
    items, rollouts = replace(world.items), world.rollouts(0)
    given = set(vars(items))
    for reward in (exact, ranking):
        reward(rollouts, items)
    assert set(vars(items)) == given
    prefix(rollouts, items)
    assert set(vars(items)) == given | {"codes"}


def test_codes_and_categories_are_the_catalogs(world):
    assert world.items.codes.tolist() == world.codes and world.items.codes.dtype == np.int64
    assert world.items.categories == world.categories


def test_without_embeddings_vectors_are_made_of_codes(make_items):
    vectors = [np.array([[3, 0], [0, 0]], np.float32), np.array([[0, 4], [0, 0]], np.float32)]
    items = make_items([[0, 0], [0, 1], [1, 1]], (2, 2), code_vectors=vectors)
    assert items.vectors == pytest.approx(np.array([[0.6, 0.8], [1, 0], [0, 0]]))
    assert items.vectors.dtype == np.float32


def test_a_digit_has_no_part_in_vectors(make_items):
    vectors = [np.array([[3, 0], [0, 5]], np.float32), np.array([[0, 9], [9, 0]], np.float32)]
    items = make_items([[0, 0], [0, 1], [1, 0]], (2, 2), code_vectors=vectors, collisions="digit")
    assert items.vectors == pytest.approx(np.array([[1, 0], [1, 0], [0, 1]]))


def test_embeddings_go_before_codes(make_items, tmp_path):
    codes = [np.ones((2, 2), np.float32)]
    given = np.array([[0, 2], [3, 4]], np.float32)
    for info in ({}, {"items_fingerprint": items_fingerprint(["i0", "i1"])}):
        ItemVectors(given, info).save(tmp_path)
        items = make_items([[0], [1]], (2,), code_vectors=codes, embeddings=tmp_path)
        assert items.vectors == pytest.approx(np.array([[0, 1], [0.6, 0.8]]))


@pytest.mark.parametrize(
    ("rows", "info"), [(3, {}), (2, {"items_fingerprint": items_fingerprint(["i1", "i0"])})], ids=["other", "order"]
)
def test_vectors_of_other_items_are_refused(make_items, tmp_path, rows, info):
    ItemVectors(np.ones((rows, 2), np.float32), info).save(tmp_path)
    items = make_items([[0], [1]], (2,), embeddings=tmp_path)
    with pytest.raises(HfGrError, match=f"vectors of {rows} items, but not of the 2 items of the catalog, in their"):
        _ = items.vectors


def test_items_without_any_vectors_say_what_to_give(make_items):
    with pytest.raises(HfGrError, match="no code vectors; name the folder of `hf-gr embed` as embeddings"):
        _ = make_items([[0], [1]], (2,)).vectors


def test_together_is_symmetric_between_0_and_1_and_empty_on_the_diagonal(world):
    together = world.items.together.toarray()
    assert together == pytest.approx(together.T)
    assert together.min() == 0 and 0 < together.max() <= 1 and not together.diagonal().any()


def test_an_item_of_one_neighbour_is_wholly_together_with_it(make_items):
    items = make_items([[row] for row in range(3)], (3,), train=[[0, 1], [0, 1]])
    assert items.together.toarray() == pytest.approx(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]))
    assert items.popularity.tolist() == [2, 2, 0]


def test_the_first_telling_category_is_the_items(make_items):
    categories = [["shop", "b"], ["shop", "a", "b"], ["b", "a"], ["shop"], ["shop", "c"], []]
    items = make_items([[row] for row in range(6)], (6,), categories=categories)
    assert items.category_names == ["a", "b", "c", "shop"]
    assert items.category.tolist() == [1, 0, 1, -1, 2, -1]  # "b" is on just half of them, "shop" on more


def test_a_repeated_category_counts_once(make_items):
    items = make_items([[row] for row in range(4)], (4,), categories=[["a", "a"], ["a", "a"], ["b"], []])
    assert items.category.tolist() == [0, 0, 1, -1]
    assert items.interests.toarray().tolist() == [[1, 0], [1, 0], [0, 1], [0, 0]]
    assert items.rarity == pytest.approx(np.log([2, 4]))


def test_token_category_is_that_of_most_carriers(world):
    category = world.items.category.tolist()
    for level, found in enumerate(world.items.token_category):
        assert found.shape == (world.items.catalog.codebook_sizes[level],) and found.dtype == np.int64
        for code, name in enumerate(found.tolist()):
            carriers = [row for row in range(len(world)) if world.codes[row][level] == code]
            votes = Counter(category[row] for row in carriers if category[row] >= 0)
            assert name == (min(votes, key=lambda index: (-votes[index], index)) if votes else -1)


def test_without_categories_tokens_have_none(make_items):
    items = make_items([[0, 0], [1, 1]], (2, 3))
    assert [found.tolist() for found in items.token_category] == [[-1, -1], [-1, -1, -1]]


MINED = [("i0", "tea", 0.2, True), ("i0", "calm", 0.6, False), ("i1", "tea", 0.5, True), ("new", "sport", 0.9, True)]


def mined(rows=MINED) -> Interests:
    columns = dict(zip(("item_id", "interest", "confidence", "label"), zip(*rows, strict=True), strict=True))
    empty = {name: [None] * len(rows) for name in SCHEMA.names}
    return Interests(pa.table({name: list(column) for name, column in (empty | columns).items()}, SCHEMA))


def test_mined_interests_stand_in_for_categories(make_items):
    plain = make_items([[0], [1], [0]], (2,), categories=[["x"], ["x"], ["y"]])
    assert plain.quality.tolist() == [1, 1, 1] and plain.interests.toarray().tolist() == [[1, 0], [1, 0], [0, 1]]
    items = ItemKnowledge.of(plain.catalog, plain.train, interests=mined())
    assert items.mined.names == ["sport", "tea"]  # calm was turned down
    assert items.interests.toarray().tolist() == [[0, 1], [0, 1], [0, 0]]
    assert items.quality == pytest.approx([0.2 / 0.8, 1, 0])
    assert items.rarity == pytest.approx([np.log(3), np.log(3 / 2)])  # nobody has sport
    assert items.category.tolist() == plain.category.tolist()  # categories stay what they are


def test_interests_of_another_catalog_are_refused(make_items):
    plain = make_items([[0], [1]], (2,))
    with pytest.raises(HfGrError, match="the interests name no item of the catalog"):
        ItemKnowledge.of(plain.catalog, plain.train, interests=mined(MINED[-1:]))


def test_events_of_another_catalog_are_refused(make_items):
    with pytest.raises(HfGrError, match=r"item rows 1 to 7, but the catalog has 2 items; align the dataset"):
        make_items([[0], [1]], (2,), train=[[1, 7]])


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_held_out_events_teach_nothing(tmp_path, split):
    table, catalog = tiny_interactions(), tiny_catalog()
    users = np.array(table["user_id"].to_pylist())
    times = table["timestamp"].to_numpy() + 20 * np.unique(users, return_inverse=True)[1]  # one user after another
    table = table.set_column(2, "timestamp", pa.array(times))
    if split == "temporal":
        held_out = times >= np.sort(times)[int(0.8 * len(times))]
    else:
        later = (users == users[:, None]) & (times > times[:, None])
        held_out = later.sum(axis=1) < 2
    ids = np.array(table["item_id"].to_pylist())
    rewritten = np.where(held_out, "i000", ids)
    assert (rewritten != ids).any()
    known = [
        knowledge(tmp_path / name, table, column, catalog, split) for name, column in [("a", ids), ("b", rewritten)]
    ]
    assert known[0].popularity.tolist() == known[1].popularity.tolist()
    assert (known[0].together != known[1].together).nnz == 0
    counts = Counter(ids[~held_out].tolist())
    assert known[0].popularity.tolist() == [counts[name] for name in catalog.item_ids]


def knowledge(folder, table: pa.Table, ids: np.ndarray, catalog: SidCatalog, split: str) -> ItemKnowledge:
    write_dataset(
        folder, table.set_column(1, "item_id", pa.array(ids.tolist())), tiny_items(), source="Made for tests."
    )
    return ItemKnowledge.of(catalog, InteractionDataset.load(folder).split(split).train)
