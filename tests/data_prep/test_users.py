"""Users and exposures beside the log: what is kept of them, and one line for what does not fit."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import FilterOptions, prepare_table
from hf_gr.artifacts import read_json
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError


LOG = "uid,item_id,timestamp\na,x,10\na,y,20\nb,x,30\nc,z,40\n"
USERS = "uid,age,plan,zip\na,31,,007\nb,,pro,7\nghost,9,x,1\n"
SHOWN = "who,item_id,timestamp,clicked,slot\nb,x,25,0,2\na,y,19,1,1\na,x,9,0,3\nghost,x,1,0,1\na,nowhere,1,0,1\n"


def prepared(folder: Path, log: str = LOG, users: str = USERS, shown: str = SHOWN, **given) -> InteractionDataset:
    for name, text in (("log", log), ("users", users), ("shown", shown)):
        (folder / f"{name}.csv").write_text(text)
    given = {"columns": {"user_id": "uid"}, "exposure_columns": {"user_id": "who"}, "time_unit": "s"} | given
    files = [folder / "log.csv", None, folder / "users.csv", folder / "shown.csv"]
    prepare_table(folder / "out", *files, **given)
    return InteractionDataset.load(folder / "out")


def test_users_and_exposures_of_the_folder_are_kept_with_their_columns(tmp_path, capsys):
    data = prepared(tmp_path)
    assert data.users.to_pylist() == [
        {"user_id": "a", "age": 31, "plan": None, "zip": "007"},
        {"user_id": "b", "age": None, "plan": "pro", "zip": "7"},
    ]
    frame = pd.read_csv(tmp_path / "shown.csv").rename(columns={"who": "user_id"})
    frame = frame[frame.user_id.isin(["a", "b", "c"]) & frame.item_id.isin(["x", "y", "z"])]
    frame = frame.sort_values(["user_id", "timestamp"]).assign(timestamp=lambda f: f.timestamp * 10**6)
    assert data.exposures.to_pylist() == frame.assign(clicked=frame.clicked == 1).to_dict("records")
    out = capsys.readouterr().out
    assert "users: 3 -> 2 rows of users and items in the folder" in out and "exposures: 5 -> 3 rows" in out
    counts = read_json(tmp_path / "out" / "manifest.json")["counts"]
    assert {name: counts[name] for name in ("described_users", "undescribed_users", "exposures", "clicks")} == {
        "described_users": 2,
        "undescribed_users": 1,
        "exposures": 3,
        "clicks": 1,
    }
    assert counts["users_without_events"] == 0


def test_filters_of_the_log_are_filters_of_the_tables(tmp_path):
    data = prepared(tmp_path, options=FilterOptions(min_user_events=2))
    assert data.users["user_id"].to_pylist() == ["a"]
    assert data.exposures.select(["user_id", "item_id"]).to_pylist() == [
        {"user_id": "a", "item_id": "x"},
        {"user_id": "a", "item_id": "y"},
    ]


def test_another_table_of_users_makes_the_folder_anew(tmp_path, capsys):
    prepared(tmp_path)
    prepared(tmp_path)
    assert "up to date" in capsys.readouterr().out
    assert prepared(tmp_path, users=USERS + "c,1,,2\n").users.num_rows == 3


def test_positions_order_exposures_as_they_order_the_log(tmp_path):
    log, shown = LOG.replace("timestamp", "position"), SHOWN.replace("timestamp", "position")
    data = prepared(tmp_path, log=log, shown=shown, time_unit="auto")
    assert data.time == "position" and data.exposures["timestamp"].to_pylist() == [9, 19, 25]
    with pytest.raises(HfGrError, match=r"shown\.csv has timestamps, but the interactions have positions; give both"):
        prepared(tmp_path, log=log, time_unit="auto")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"users": USERS + "a,1,,1\n"}, r"users\.csv: user_id 'a' stands in rows 0 and 3 .*; keep one row for a user"),
        ({"users": USERS + ",1,,1\n"}, r"users\.csv: 'user_id' is empty in row 3; fill it or drop the row"),
        ({"users": "name\na\n"}, r"users\.csv has no column 'uid' .*; map it: --user-column user_id=THEIR_NAME"),
        (
            {"users": "uid,user_id\na,b\n"},
            r"users\.csv has a column 'user_id', a name that is taken; rename or remove",
        ),
        ({"users": "uid\nnobody\n"}, r"no row of the users is of a user and an item of the folder; are the ids"),
        (
            {"shown": "who,item_id,timestamp\na,x,1\n"},
            r"shown\.csv has no column 'clicked' .*--exposure-column clicked=",
        ),
        (
            {"shown": SHOWN + "a,x,1,maybe,1\n"},
            r"exposures: column 'clicked' holds '(0|1|maybe)'; give true or false, or 1 or 0",
        ),
        ({"shown": SHOWN + "a,x,1,2,1\n"}, r"exposures: column 'clicked' holds 2; give true or false, or 1 or 0"),
        ({"shown": SHOWN + "a,x,1,,1\n"}, r"exposures: 'clicked' is empty in row 0; fill it or drop the row"),
        (
            {"shown": SHOWN + "a,x,soon,1,1\n"},
            r"shown\.csv: column 'timestamp' holds 'soon', which is not a number or",
        ),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, given, message):
    with pytest.raises(HfGrError, match=message) as error:
        prepared(tmp_path, **given)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_map_without_its_table_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    for name in ("user", "exposure"):
        with pytest.raises(HfGrError, match=rf"--{name}-column maps a column of the {name}s, .*; give --{name}s FILE"):
            prepare_table(tmp_path / "out", tmp_path / "log.csv", **{f"{name}_columns": {"user_id": "x"}})


def test_tables_in_parquet_keep_their_types(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    users = pa.table({"user_id": ["c", "a"], "score": pa.array([1.5, None], pa.float32())})
    pq.write_table(users, tmp_path / "users.parquet")
    columns = {"user_id": "uid"}
    given = {"users": tmp_path / "users.parquet", "user_columns": {"user_id": "user_id"}, "columns": columns}
    prepare_table(tmp_path / "out", tmp_path / "log.csv", **given, time_unit="s")
    assert InteractionDataset.load(tmp_path / "out").users == users
