"""Every MovieLens release in miniature, as folder and as zip."""

import zipfile

import pytest

from data_prep import prepare_movielens
from data_prep.filters import FilterOptions
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError


FLAGS = "0|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|1"  # Action, Western
UNKNOWN = "1" + "|0" * 18
RELEASES = {
    "100k": {
        "u.data": "1\t20\t5\t881250949\n1\t3\t1\t881250949\n",
        "u.item": f"20|Matrix, The (1999)|01-Jan-1999||http://x|{FLAGS}\n3|Misérables, Les (1995)|||http://y|{UNKNOWN}\n",
    },
    "1m": {
        "ratings.dat": "1::20::5::881250949\n1::3::1::881250949\n",
        "movies.dat": "20::Matrix, The (1999)::Action|Western\n3::Misérables, Les (1995)::(no genres listed)\n",
    },
    "latest": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,20,5.0,881250949\n1,3,1.0,881250949\n",
        "movies.csv": 'movieId,title,genres\n20,"Matrix, The (1999)",Action|Western\n'
        '3,"Misérables, Les (1995)",(no genres listed)\n',
    },
    "recbole": {
        "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t20\t5\t881250949\n1\t3\t1\t881250949\n",
        "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "20\tMatrix, The\t1999\tAction Western\n3\tMisérables, Les\t1995\tunknown\n",
    },
}


def write_release(folder, name):
    folder.mkdir()
    for file, content in RELEASES[name].items():
        (folder / file).write_bytes(content.encode("latin-1" if name in ("100k", "1m") else "utf-8"))
    return folder


@pytest.mark.parametrize("name", RELEASES)
def test_every_release_gives_the_same_folder(tmp_path, name):
    prepare_movielens(tmp_path / "out", write_release(tmp_path / "ml", name))
    data = InteractionDataset.load(tmp_path / "out")
    assert data.item_ids == ["20", "3"]
    assert data.titles == ["Matrix, The (1999)", "Misérables, Les (1995)"]
    assert data.categories == [["Action", "Western"], []]
    assert data.events.items.tolist() == [0, 1]  # a tie in time keeps the file's order
    assert data.events.ratings.tolist() == [5, 1]
    assert data.events.timestamps.tolist() == [881250949_000_000] * 2
    assert data.time == "timestamp"


def test_zip_and_min_rating(tmp_path):
    folder = write_release(tmp_path / "ml", "1m")
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"ml-1m/{file.name}")
    prepare_movielens(tmp_path / "out", tmp_path / "ml-1m.zip", options=FilterOptions(min_rating=4))
    assert InteractionDataset.load(tmp_path / "out").item_ids == ["20"]


def test_bad_folders(tmp_path):
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(HfGrError, match=r"note\.txt is neither a folder nor a zip"):
        prepare_movielens(tmp_path / "out", tmp_path / "note.txt")
    with pytest.raises(HfGrError, match=r"holds none of ml-100k\.inter, u\.data"):
        prepare_movielens(tmp_path / "out", tmp_path)
    folder = write_release(tmp_path / "ml", "100k")
    (folder / "u.item").write_text("20|Matrix\n")
    with pytest.raises(HfGrError, match=r"u\.item: \['20', 'Matrix'\] has 2 fields, not 24"):
        prepare_movielens(tmp_path / "out", folder)
    (folder / "u.item").unlink()
    with pytest.raises(HfGrError, match=r"u\.item is not a file"):
        prepare_movielens(tmp_path / "out", folder)
