"""Datasets that `load_dataset` reads from a local folder."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import prepare_hub, prepare_table
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.errors import HfGrError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_our_own_folder_goes_round(tmp_path):
    log = "user_id,item_id,timestamp,rating,session_id,dwell\n01,007,5,4,0,3\n01,7,6,,00,\n"
    (tmp_path / "log.csv").write_text(log)
    (tmp_path / "items.csv").write_text('item_id,title,categories\n7,"a, b",x|y\n007,ü,\n')
    prepare_table(tmp_path / "first", tmp_path / "log.csv", tmp_path / "items.csv", keep=["dwell"])
    given = {"config": "interactions", "items_config": "items", "keep": ["dwell"]}
    prepare_hub(tmp_path / "second", str(tmp_path / "first"), **given)
    first, second = (InteractionDataset.load(tmp_path / name) for name in ("first", "second"))
    assert second.items == first.items
    assert second.events.items.tolist() == first.events.items.tolist() == [1, 0]
    assert second.events.user_ids.tolist() == ["01"]
    assert second.events.sessions.tolist() == first.events.sessions.tolist() == ["0", "00"]
    assert second.events.columns == first.events.columns == pa.table({"dwell": [3, None]})


SHOWN = "user_id,item_id,timestamp,clicked,slot\na,x,5,1,2\na,x,2,0,1\nnobody,x,1,1,1\n"


@pytest.mark.parametrize("time", ["timestamp", "position"])
def test_users_and_exposures_are_read_as_the_table_route_reads_them(tmp_path, time):
    """First from CSV files under names of their own, then round from the folder that was written."""
    texts = {"interactions": "user_id,item_id,timestamp\na,x,3\na,y,6\n", "shown": SHOWN}
    texts["people"] = "uid,age,zip\na,31,007\nghost,,7\n"
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, text in texts.items():
        (raw / f"{name}.csv").write_text(text.replace("timestamp", time))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in texts)
    (raw / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    files = [raw / "interactions.csv", None, raw / "people.csv", raw / "shown.csv"]
    prepare_table(tmp_path / "table", *files, user_columns={"user_id": "uid"})
    given = {"config": "interactions", "users_config": "people", "exposures_config": "shown"}
    prepare_hub(tmp_path / "hub", str(raw), **given, user_columns={"user_id": "uid"})
    given = {"config": "interactions", "items_config": "items", "users_config": "users"}
    prepare_hub(tmp_path / "round", str(tmp_path / "hub"), **given, exposures_config="exposures")
    wanted = InteractionDataset.load(tmp_path / "table")
    assert wanted.time == time and wanted.users.num_rows == 1 and wanted.exposures["slot"].to_pylist() == [1, 2]
    for name in ("hub", "round"):
        found = InteractionDataset.load(tmp_path / name)
        assert (found.time, found.users, found.exposures) == (time, wanted.users, wanted.exposures), name
        assert found.events.timestamps.tolist() == wanted.events.timestamps.tolist()


def test_a_map_without_its_config_is_refused(tmp_path):
    for name in ("user", "exposure"):
        with pytest.raises(HfGrError, match=rf"--{name}-column maps .* {name}s, but .*; give --{name}s-config NAME"):
            prepare_hub(tmp_path / "out", str(tmp_path), **{f"{name}_columns": {"user_id": "x"}})


def test_column_map_splits_and_categoricals(tmp_path):
    (tmp_path / "raw").mkdir()
    for split, user in (("train", "a"), ("test", "b")):
        table = {"uid": pa.array([user]).dictionary_encode(), "item": pa.array([12]), "when": pa.array([1.5e12])}
        pq.write_table(pa.table(table), tmp_path / "raw" / f"{split}.parquet")
    columns = {"user_id": "uid", "item_id": "item", "timestamp": "when"}
    prepare_hub(tmp_path / "out", str(tmp_path / "raw"), split="train+test", columns=columns)
    data = InteractionDataset.load(tmp_path / "out")
    assert (data.events.user_ids.tolist(), data.item_ids) == (["a", "b"], ["12"])
    assert data.events.timestamps.tolist() == [1_500_000_000_000_000] * 2


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.csv.gz"])
def test_text_files_are_read_as_text(tmp_path, name):
    """As `prepare table` reads the same file: zeros in front, long numbers, words for nothing in a title, quotes."""
    delimiter = "\t" if ".tsv" in name else ","
    log = [("user_id", "item_id", "timestamp"), ("0012", "007", "5"), ("12", "7", "6"), ("0012", "1e5", "7")]
    log += [("9007199254740993", "true", "8"), ("9007199254740992", "2020-01-01", "9")]
    items = [("item_id", "title"), *((item, f"{item} None") for _, item, _ in log[1:])]
    for folder, rows in (("log", log), ("items", items)):
        (tmp_path / folder).mkdir()
        with (gzip.open if name.endswith(".gz") else open)(tmp_path / folder / name, "wt") as handle:
            handle.writelines(delimiter.join(row) + "\n" for row in rows)
    prepare_table(tmp_path / "table", tmp_path / "log" / name, tmp_path / "items" / name)
    prepare_hub(tmp_path / "hub", str(tmp_path / "log"), items_dataset=str(tmp_path / "items"))
    one, other = (InteractionDataset.load(tmp_path / folder) for folder in ("table", "hub"))
    assert one.items == other.items and one.item_ids == ["007", "7", "1e5", "true", "2020-01-01"]
    assert one.events.user_ids.tolist() == other.events.user_ids.tolist()
    assert one.events.items.tolist() == other.events.items.tolist()
    assert one.events.timestamps.tolist() == other.events.timestamps.tolist()


@pytest.mark.parametrize("card", [True, False])
def test_our_own_folder_says_what_its_times_are(tmp_path, card):
    """With or without its card; times of 1970 are taken for microseconds, not for the seconds that they look like."""
    events = pa.table({"user_id": ["u"] * 3, "item_id": ["a", "b", "a"], "timestamp": [3, 5, 7_000_000]})
    for time in ("timestamp", "position"):
        write_dataset(
            tmp_path / time, events, pa.table({"item_id": ["a", "b"], "title": ["A", "B"]}), source="", time=time
        )
        if not card:
            (tmp_path / time / "README.md").unlink()
            (tmp_path / time / "items.parquet").rename(tmp_path / f"{time}.parquet")
        prepare_hub(tmp_path / "out", str(tmp_path / time), config="interactions" if card else None)
        data = InteractionDataset.load(tmp_path / "out")
        assert data.time == time and data.events.timestamps.tolist() == [3, 5, 7_000_000]


def test_bad_datasets(tmp_path):
    with pytest.raises(
        HfGrError, match=r"dataset .*nowhere \(config default, split train\) cannot be loaded"
    ) as caught:
        prepare_hub(tmp_path / "out", str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "train.csv").write_text("user,item_id\nu,i\n")
    with pytest.raises(HfGrError, match="has no column 'user_id'"):
        prepare_hub(tmp_path / "out", str(tmp_path / "raw"))
    with pytest.raises(HfGrError, match="split trian"):
        prepare_hub(tmp_path / "out", str(tmp_path / "raw"), split="trian")
