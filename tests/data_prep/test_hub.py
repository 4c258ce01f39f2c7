"""Datasets that `load_dataset` reads from a local folder."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import prepare_hub, prepare_table
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_our_own_folder_goes_round(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n01,007,5,4\n01,7,6,\n")
    (tmp_path / "items.csv").write_text('item_id,title,categories\n7,"a, b",x|y\n007,ü,\n')
    prepare_table(tmp_path / "first", tmp_path / "log.csv", tmp_path / "items.csv")
    prepare_hub(tmp_path / "second", str(tmp_path / "first"), config="interactions", items_config="items")
    first, second = (InteractionDataset.load(tmp_path / name) for name in ("first", "second"))
    assert second.items == first.items
    assert second.events.items.tolist() == first.events.items.tolist() == [1, 0]
    assert second.events.user_ids.tolist() == ["01"]


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
