import math

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from hf_gr.catalog import SidCatalog
from hf_gr.quantizers import clusters
from hf_gr.quantizers.clusters import largest_clusters, telling_words


WORDS = ["bread", "cake", "nail", "sale"]
COUNTS = np.array([[1, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])


def test_words_are_weighed_as_the_formula_says():
    classes = np.array([4, 4, 4, 1, 1])
    by_class = {4: [3, 1, 0, 2], 1: [0, 0, 2, 2]}
    frequency, mean = [3, 1, 2, 4], 10 / 2
    expected = {}
    for number, counts in by_class.items():
        weights = {
            word: count / sum(counts) * math.log(1 + mean / total)
            for word, count, total in zip(WORDS, counts, frequency, strict=True)
            if count > 1  # cake is the word of one item
        }
        expected[number] = sorted(weights, key=lambda word: -weights[word])
    assert expected == {4: ["bread", "sale"], 1: ["nail", "sale"]}
    found = telling_words(sp.csr_array(COUNTS), classes, WORDS, [4, 1, 3])
    assert found == [expected[4], expected[1], []]
    assert telling_words(sp.csr_array(COUNTS), classes, WORDS, [1], top=1) == [["nail"]]


def catalog_of(titles: list[str], codes: list[list[int]], **columns: list) -> SidCatalog:
    ids = [f"i{row}" for row in range(len(titles))]
    items = pa.table({"item_id": ids, "title": titles} | columns)
    sizes = [9] * len(codes[0])
    return SidCatalog.from_codes(np.array(codes), items, sizes, popularity=np.arange(len(titles)))


TITLES = ["red shoe", "blue shoe", "old shoe", "green tea", "black tea", "red kettle"]
CODES = [[5, 1], [5, 1], [5, 0], [2, 3], [2, 3], [7, 0]]


def test_clusters_come_by_size_with_their_words_and_most_popular_titles():
    first, second, third = largest_clusters(catalog_of(TITLES, CODES))
    assert [cluster.prefix for cluster in (first, second, third)] == [(5,), (2,), (7,)]
    assert [cluster.items for cluster in (first, second, third)] == [3, 2, 1]
    assert (first.words, second.words, third.words) == (["shoe"], ["tea"], [])
    assert first.titles == ["old shoe", "blue shoe", "red shoe"]
    assert [(inner.prefix, inner.items, inner.words) for inner in first.below] == [
        ((5, 1), 2, ["shoe"]),
        ((5, 0), 1, []),
    ]
    assert largest_clusters(catalog_of(TITLES, CODES), top=1, below=1)[0].below[0].prefix == (5, 1)


def test_words_below_a_code_are_those_of_its_own_items():
    titles, codes = ["oak desk", "elm desk", "wax lamp", "tin lamp"], [[0, 1], [0, 1], [3, 1], [3, 1]]
    found = largest_clusters(catalog_of(titles, codes))
    assert [cluster.below[0].words for cluster in found] == [["desk"], ["lamp"]]


def test_with_vectors_the_most_typical_titles_come_first():
    vectors = np.array([[1, 0], [1, 0.2], [1, -2], [0, 1], [0, 1], [1, 1]], np.float32)
    first = largest_clusters(catalog_of(TITLES, CODES), vectors)[0]
    units = vectors[:3] / np.linalg.norm(vectors[:3], axis=1, keepdims=True)
    order = np.argsort(-units @ units.mean(0))
    assert first.titles == [TITLES[row] for row in order] == ["red shoe", "blue shoe", "old shoe"]


def test_categories_and_descriptions_are_read_and_a_word_counts_once_an_item():
    catalog = catalog_of(
        ["a", "b", "c", "d"],
        [[0], [0], [1], [1]],
        categories=[["Garden"], ["Garden"], None, []],
        description=["spade", None, "bulb bulb bulb", "lamp"],
    )
    first, second = largest_clusters(catalog)
    assert first.words == ["garden"] and first.below == []
    assert second.words == []  # bulb is the word of one item, however often


def test_titles_without_a_word_tell_nothing():
    found = largest_clusters(catalog_of(["1", "22", "3"], [[0, 0], [0, 1], [1, 0]]))
    assert [cluster.words for cluster in found] == [[], []]
    assert found[0].titles == ["22", "1"]


@pytest.mark.parametrize("read", [3, 5])
def test_of_large_catalogs_a_sample_is_read(read: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clusters, "_READ", read)
    titles = ["old shoe"] * 8 + ["green tea"] * 4
    codes = [[5, 1]] * 8 + [[2, 3]] * 4
    found = largest_clusters(catalog_of(titles, codes), seed=1)
    assert [cluster.items for cluster in found] == [8, 4]
    assert set(found[0].words) == {"old", "shoe"}
    assert set(found[1].words) <= {"green", "tea"}
