"""MiniOneRec's three kinds of files, cut from known sequences as its scripts do."""

import csv
import json

import numpy as np
import pytest

from data_prep import prepare_minionerec, read_index
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError


SEQUENCES = {"A1": ["0", "2", "1", "2", "0"], "B": ["1", "0", "2"]}
ITEMS = {name: {"title": f"Item, {name}", "description": ["d", name]} for name in ("0", "1", "2", "3")}
INDEX = {"3": ["<a_3>", "<b_0>"], "0": ["<a_0>", "<b_255>"], "1": ["<a_1>", "<b_7>"], "2": ["<a_0>", "<b_8>"]}
NAMES = ("train", "valid", "test")


def write_files(folder, window, sequences=SEQUENCES, items=ITEMS, index=INDEX):
    """Rows of a user in order, the last two in valid and test; histories cut to the last `window` items."""
    parts = {name: [] for name in NAMES}
    for user, sequence in sequences.items():
        for n in range(1, len(sequence)):
            row = [user, str(sequence[max(0, n - window) : n]), sequence[n]]
            parts[NAMES[max(0, n - len(sequence) + 3)]].append([*row, "['<a_0>']"])
    for name, rows in parts.items():
        with open(folder / f"{name}.csv", "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerows([["user_id", "history_item_id", "item_id", "history_item_sid"], *rows])
    (folder / "items.json").write_text(json.dumps(items))
    (folder / "index.json").write_text(json.dumps(index))
    return [folder / f"{name}.csv" for name in NAMES]


@pytest.mark.parametrize("window", [2, 50])
def test_sequences_items_and_codes_come_back(tmp_path, window):
    files = write_files(tmp_path, window)
    for _ in range(2):  # the second time the folder is up to date
        codes = prepare_minionerec(tmp_path / "out", files, tmp_path / "items.json", tmp_path / "index.json")
        assert codes.dtype == np.int32
        assert codes.tolist() == [[0, 255], [1, 7], [0, 8], [3, 0]]
    data = InteractionDataset.load(tmp_path / "out")
    assert data.item_ids == ["0", "1", "2", "3"]
    assert data.titles[3] == "Item, 3"
    found = {
        user: [data.item_ids[i] for i in row] for user, row in zip(data.events.user_ids, data.events, strict=True)
    }
    assert found == SEQUENCES
    assert data.time == "position"


def test_without_an_index(tmp_path):
    files = write_files(tmp_path, 50)
    assert prepare_minionerec(tmp_path / "out", files, tmp_path / "items.json") is None


def test_missing_part_is_noticed(tmp_path):
    train, _, test = write_files(tmp_path, 50)
    with pytest.raises(HfGrError, match=r"train\.csv, test\.csv: a history of user 'A1' ends in '2', but the step"):
        prepare_minionerec(tmp_path / "out", [train, test], tmp_path / "items.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": {k: v for k, v in INDEX.items() if k != "1"}}, r"index\.json has no semantic ID for item '1'"),
        ({"index": INDEX | {"1": ["<a_1>"]}}, r"index\.json: item '1' has \['<a_1>'\], not 2 token"),
        ({"index": INDEX | {"0": ["a", "b"]}}, r"index\.json: item '0' has \['a', 'b'\]"),
        ({"index": INDEX | {"0": []}}, r"index\.json: item '0' has \[\]"),
        ({"index": []}, r"index\.json holds no JSON object"),
        ({"items": {"0": "x"}}, r"items\.json: item '0' is 'x'"),
        ({"items": {"0": {"title": "x"}}}, r"5 interaction.*--drop-unknown-items"),
    ],
)
def test_bad_files(tmp_path, change, message):
    files = write_files(tmp_path, 50, **change)
    with pytest.raises(HfGrError, match=message) as caught:
        prepare_minionerec(tmp_path / "out", files, tmp_path / "items.json", tmp_path / "index.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_empty_ids_are_refused(tmp_path, name):
    files = write_files(tmp_path, 50)
    lines = files[0].read_text().splitlines()
    place = lines[0].split(",").index(name)
    cells = next(csv.reader([lines[1]]))
    cells[place] = ""
    with files[0].open("a", newline="") as handle:
        csv.writer(handle).writerow(cells)
    with pytest.raises(HfGrError, match=rf"'{name}' is empty for user .* \(1 such row\(s\)\); fix or drop"):
        prepare_minionerec(tmp_path / "out", files, tmp_path / "items.json")


def test_index_rows_follow_the_ids_asked_for(tmp_path):
    write_files(tmp_path, 50)
    assert read_index(tmp_path / "index.json", ["3", "1"]).tolist() == [[3, 0], [1, 7]]
