"""Categories of codes against counting items one by one."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from hf_gr.catalog import SidCatalog
from hf_gr.categories import category_names, code_categories, code_profiles, item_categories


def world(categories: list[list[str]], codes: list[list[int]]) -> SidCatalog:
    ids = [f"i{row}" for row in range(len(categories))]
    column = pa.array(categories, pa.list_(pa.string()))
    return SidCatalog.from_codes(
        np.array(codes), pa.table({"item_id": ids, "title": ids, "categories": column}), (3, 2)
    )


def test_codes_against_counting():
    random = np.random.default_rng(0)
    names = [["shop", *random.choice(list("abc"), random.integers(3)).tolist()] for _ in range(40)]
    codes = np.stack([random.integers(2, size=40), random.integers(2, size=40)], 1)  # code 2 of the first is unused
    catalog = world(names, codes.tolist())
    own, known = item_categories(catalog), category_names(catalog)
    shared = {name for name in known if sum(name in one for one in names) > 20}
    telling = [next((name for name in one if name not in shared), None) for one in names]
    assert "shop" in shared and [known[number] if number >= 0 else None for number in own] == telling
    for level, (majority, profile) in enumerate(zip(code_categories(catalog), code_profiles(catalog), strict=True)):
        for code in range(catalog.codebook_sizes[level]):
            votes = Counter(telling[row] for row in range(40) if codes[row, level] == code and telling[row])
            counts = np.array([votes[name] for name in known], float)
            length = np.linalg.norm(counts)
            assert profile[code] == pytest.approx(counts / length if length else counts, abs=1e-6)
            best = max(votes.values(), default=0)
            expected = min((known.index(name) for name, count in votes.items() if count == best), default=-1)
            assert majority[code] == expected


def test_without_categories_there_are_none():
    catalog = world([[], [], []], [[0, 0], [1, 1], [2, 0]])
    assert item_categories(catalog).tolist() == [-1, -1, -1] and category_names(catalog) == []
    assert [found.tolist() for found in code_categories(catalog)] == [[-1, -1, -1], [-1, -1]]
    assert [found.shape for found in code_profiles(catalog)] == [(3, 0), (2, 0)]
