import numpy as np
import pytest
from scipy import sparse

from hf_gr import neighbors
from hf_gr.neighbors import largest_in_rows


@pytest.mark.parametrize("cells", [1, 2**22])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_the_largest_values_are_those_of_a_sorted_list(k: int, cells: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbors, "_CELLS", cells)
    random = np.random.default_rng(k)
    for _ in range(20):
        dense = random.integers(-2, 4, random.integers(1, 9, 2)) / 3  # many ties, and some rows without a positive one
        columns, values = largest_in_rows(sparse.csr_array(dense), k)
        for row, all_values in enumerate(dense.tolist()):
            expected = sorted((-value, column) for column, value in enumerate(all_values) if value > 0)[:k]
            missing = k - len(expected)
            assert columns[row].tolist() == [column for _, column in expected] + [-1] * missing
            assert values[row].tolist() == pytest.approx([-value for value, _ in expected] + [0] * missing)


def test_sums_that_differ_in_their_last_digits_are_ties():
    scores = sparse.csr_array([[0.3, 0.1 + 0.2, 0.3 + 1e-6]])
    assert scores.data[1] > scores.data[0]
    assert largest_in_rows(scores, 3)[0].tolist() == [[2, 0, 1]]


def test_no_rows_and_no_entries():
    assert largest_in_rows(sparse.csr_array((0, 4)), 2)[0].shape == (0, 2)
    assert largest_in_rows(sparse.csr_array((2, 4)), 2)[0].tolist() == [[-1, -1], [-1, -1]]
