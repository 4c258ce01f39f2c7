import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_gr.errors import HfGrError
from hf_gr.interests import Interests
from hf_gr.interests.table import SCHEMA


def row(item=None, user=None, interest="hiking", confidence=0.5, label=None):
    return {
        "item_id": item, "user_id": user, "interest": interest, "evidence": "…", "confidence": confidence,
        "models": ["a"], "label": label, "probability": None if label is None else float(label),
    }  # fmt: skip


def interests(*rows):
    return Interests(pa.Table.from_pylist(list(rows), SCHEMA))


MIXED = (
    row("1", interest="tea", confidence=0.2, label=True),
    row("1", interest="calm", confidence=0.6, label=False),
    row("2", interest="tea", confidence=0.5, label=True),
    row(user="u", interest="calm", confidence=0.9, label=True),
)


def test_saved_and_loaded_by_folder_and_by_file(tmp_path):
    found = interests(*MIXED)
    file = found.save(tmp_path)
    assert Interests.load(tmp_path).table.equals(found.table)
    assert Interests.load(file).table.equals(found.table)


def test_items_users_and_accepted():
    found = interests(*MIXED)
    assert len(found.items) == 3 and len(found.users) == 1
    assert found.of_items(["2", "1", "none"]) == [["tea"], ["calm", "tea"], []]
    assert found.accepted.of_items(["1"]) == [["tea"]]
    assert found.of_users(["u", "v"]) == [["calm"], []]
    assert len(interests(row("1"), row("2")).accepted) == 2  # nothing is labelled, so nothing is turned down


def test_matrix_and_quality_against_counting_by_hand():
    found = interests(*MIXED)
    assert found.names == ["calm", "tea"]
    assert found.matrix(["1", "2", "3"]).toarray().tolist() == [[1, 1], [0, 1], [0, 0]]
    assert np.allclose(found.quality(["1", "2", "3"]), [0.2 / 0.8, 1.0, 0.0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("1", user="u")], "row 0 must name either an item or a user"),
        ([row("1"), row()], "row 1 must name either an item or a user"),
        ([row("1", confidence=1.5)], "the confidence in row 0 is 1.5"),
        ([row("1"), row("2", confidence=None)], "the confidence in row 1 is"),
    ],
)
def test_rows_that_break_the_rules(tmp_path, rows, message):
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "interests.parquet")
    with pytest.raises(HfGrError, match=message):
        Interests.load(tmp_path)


def test_missing_broken_and_foreign_files(tmp_path):
    with pytest.raises(HfGrError, match="is missing; write it with `hf-gr mine`"):
        Interests.load(tmp_path)
    (tmp_path / "interests.parquet").write_text("no")
    with pytest.raises(HfGrError, match="is not a Parquet file"):
        Interests.load(tmp_path)
    pq.write_table(pa.table({"item_id": ["1"]}), tmp_path / "interests.parquet")
    with pytest.raises(HfGrError, match="has no column 'user_id'"):
        Interests.load(tmp_path)
