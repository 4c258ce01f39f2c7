"""The batch job: every form of users, resumption, and what counts as the same job."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import pipeline

import hf_gr.batch
from hf_gr.batch import recommend_batch
from hf_gr.errors import HfGrError
from hf_gr.evaluation.predictions import read_predictions
from hf_gr.hub import save_repo
from hf_gr.vocabulary import add_vocabulary


USERS = [
    {"user_id": "ann", "history": ["i001", "i002"], "exclude": ["i003"], "allow": None},
    {"user_id": "7", "history": [], "exclude": None, "allow": ["i009", "i010"]},
    {"user_id": "cy", "history": ["i004"], "exclude": None, "allow": None},
    {"user_id": "di", "history": ["i030", "i031", "i032"], "exclude": ["i001", "i002"], "allow": None},
    {"user_id": "ed", "history": ["i011"], "exclude": None, "allow": None},
]
QUICK = {"top_k": 5, "num_beams": 6, "part_size": 2}


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("batch") / "model"
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10)
    save_repo(folder, model, tokenizer, catalog, vocabulary)
    return folder


@pytest.fixture
def users(tmp_path) -> Path:
    file = tmp_path / "users.parquet"
    pq.write_table(pa.Table.from_pylist(USERS), file)
    return file


@pytest.fixture
def searched(monkeypatch) -> list[int]:
    """Number of requests of every search."""
    sizes: list[int] = []
    answer_each = hf_gr.batch.answer_each

    def counting(recommender, requests, **settings):
        if not requests:  # settings are checked
            return answer_each(recommender, requests, **settings)
        if counting.stop_after is not None and len(sizes) >= counting.stop_after:
            raise KeyboardInterrupt
        sizes.append(len(requests))
        return answer_each(recommender, requests, **settings)

    counting.stop_after = None
    monkeypatch.setattr(hf_gr.batch, "answer_each", counting)
    return sizes


def earlier(out: Path) -> bytes:
    """Writes the result of an earlier job."""
    hf_gr.batch._write_whole([], out, "another key")
    return out.read_bytes()


def rows(file: Path) -> list[tuple]:
    return [(row["user_id"], row["item_ids"], row["titles"]) for row in pq.read_table(file).to_pylist()]


def test_a_row_for_every_user_as_the_pipeline_answers(repo, users, tmp_path):
    out = recommend_batch(repo, users, tmp_path / "new" / "out.parquet", **QUICK)
    recommend = pipeline("generative-recommendation", model=str(repo))
    for user, row in zip(USERS, pq.read_table(out).to_pylist(), strict=True):
        fields = {name: value for name, value in user.items() if name != "user_id" and value is not None}
        expected = recommend(fields, top_k=5, num_beams=6)
        assert row["user_id"] == user["user_id"]
        assert row["item_ids"] == [entry["item_id"] for entry in expected]
        assert row["titles"] == [entry["title"] for entry in expected]
        assert row["scores"] == pytest.approx([entry["score"] for entry in expected], abs=1e-4)
    assert [path.name for path in out.parent.iterdir()] == ["out.parquet"]  # no parts, no temporary files


def test_reflection_is_part_of_what_is_asked(repo, users, tmp_path):
    plain = rows(recommend_batch(repo, users, tmp_path / "out.parquet", **QUICK))
    found = rows(recommend_batch(repo, users, tmp_path / "out.parquet", **QUICK, reflection=0.9))
    recommend = pipeline("generative-recommendation", model=str(repo))
    answers = recommend(["i004"], top_k=5, num_beams=6, reflection=0.9)
    assert found != plain and found[2][1] == [entry["item_id"] for entry in answers]
    with pytest.raises(HfGrError, match="give a number between 0"):
        recommend_batch(repo, users, tmp_path / "new.parquet", **QUICK, reflection=7)
    assert not (tmp_path / "new.parquet.parts").exists()


BAD = [
    {"user_id": "ann", "history": ["i001", "i002"]},
    {"user_id": "bob", "history": ["I001"]},  # no id of which is known
    {"user_id": "cy", "history": ["i004", "zz"]},
    {"user_id": "di", "history": ["i005"], "category": "evn"},
    {"user_id": "ed", "history": []},
]


def test_a_bad_row_fails_alone(repo, tmp_path, caplog):
    jsonl, good = tmp_path / "users.jsonl", tmp_path / "good.jsonl"
    jsonl.write_text("".join(json.dumps(user) + "\n" for user in BAD))
    good.write_text("".join(json.dumps(BAD[row]) + "\n" for row in (0, 2, 4)))
    table = pq.read_table(recommend_batch(repo, jsonl, tmp_path / "out.parquet", **QUICK)).to_pylist()
    expected = rows(recommend_batch(repo, good, tmp_path / "good.parquet", **QUICK))
    assert [row["user_id"] for row in table] == [user["user_id"] for user in BAD]
    assert [(row["user_id"], row["item_ids"], row["titles"]) for row in table if row["error"] is None] == expected
    assert [bool(row["error"]) for row in table] == [False, True, False, True, False]
    assert "whose ids are written as 'i000'" in table[1]["error"] and "category 'evn'" in table[3]["error"]
    assert table[1]["item_ids"] == table[1]["scores"] == table[1]["titles"] == []
    assert "2 of 5 users have no answer; column 'error' says why" in caplog.text and "user 'bob': " in caplog.text
    strict = pq.read_table(recommend_batch(repo, jsonl, tmp_path / "s.parquet", strict=True, **QUICK)).to_pylist()
    assert [bool(row["error"]) for row in strict] == [False, True, True, True, False]


def test_where_nobody_can_be_answered_nothing_is_written(repo, users, tmp_path, monkeypatch):
    def broken(*_: object, **__: object):
        raise HfGrError("the model's scores are not finite")

    monkeypatch.setattr(hf_gr.batch.Recommender, "recommend", broken)
    with pytest.raises(HfGrError, match=r"users\.parquet, user 'ann': the model's scores are not finite"):
        recommend_batch(repo, users, tmp_path / "out.parquet", **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_settings_are_refused_before_a_part_is_written(repo, users, tmp_path):
    for settings in ({"top_k": 0}, {"num_beams": True}, {"batch_size": 0}, {"max_per_category": 0}):
        with pytest.raises(HfGrError, match=next(iter(settings))):
            recommend_batch(repo, users, tmp_path / "out.parquet", **settings)
    with pytest.raises(HfGrError, match="no item is of category 'evn'"):
        recommend_batch(repo, users, tmp_path / "out.parquet", defaults={"category": "evn"})
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_csv_and_jsonl_say_the_same(repo, users, tmp_path):
    expected = rows(recommend_batch(repo, users, tmp_path / "out.parquet", **QUICK))
    jsonl, csv = tmp_path / "users.jsonl", tmp_path / "users.csv"
    jsonl.write_text("".join(json.dumps(user) + "\n" for user in USERS))
    words = [[" ".join(user[name] or []) for name in ("history", "exclude", "allow")] for user in USERS]
    lines = [",".join([user["user_id"], *cells]) for user, cells in zip(USERS, words, strict=True)]
    csv.write_text("\n".join(["user_id,history,exclude,allow", *lines]) + "\n")
    frame = tmp_path / "frame.csv"
    pd.DataFrame(USERS).to_csv(frame, index=False)
    for file in (jsonl, csv, frame):
        assert rows(recommend_batch(repo, file, tmp_path / f"{file.name}.parquet", **QUICK)) == expected


def test_a_dataset_folder_gives_every_user(repo, dataset_folder, tmp_path):
    from hf_gr.dataset import InteractionDataset

    out = recommend_batch(repo, dataset_folder, tmp_path / "out.parquet", top_k=2, num_beams=2)
    dataset = InteractionDataset.load(dataset_folder)
    events = dataset.events
    with pytest.raises(HfGrError, match=r"was made by `hf-gr recommend` from whole histories, which hold what is to"):
        read_predictions(out, dataset, dataset.split().test)
    found = rows(out)
    assert [row[0] for row in found] == events.user_ids.tolist()
    recommend = pipeline("generative-recommendation", model=str(repo))
    history = [f"i{row:03d}" for row in next(iter(events))]
    assert found[0][1] == [entry["item_id"] for entry in recommend(history, top_k=2, num_beams=2)]


def test_a_killed_job_goes_on_where_it_stopped(repo, users, tmp_path, searched):
    whole = recommend_batch(repo, users, tmp_path / "whole.parquet", **QUICK)
    assert searched == [2, 2, 1]
    searched.clear()
    out, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    before = earlier(out)
    hf_gr.batch.answer_each.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        recommend_batch(repo, users, out, **QUICK)
    assert out.read_bytes() == before
    assert sorted(path.name for path in parts.iterdir()) == ["key.json", "part-00000.parquet"]
    (parts / ".part-00001.parquet.hf-gr-tmp").write_bytes(
        b"PAR1 half a part"
    )  # as a kill in the middle of writing leaves it
    hf_gr.batch.answer_each.stop_after = None
    searched.clear()
    recommend_batch(repo, users, out, **QUICK)
    assert searched == [2, 1]
    assert pq.read_table(out).equals(pq.read_table(whole))
    assert not parts.exists()


@pytest.mark.parametrize("change", ["users", "settings"])
def test_other_inputs_start_anew(repo, users, tmp_path, searched, change):
    out, changed = tmp_path / "out.parquet", dict(QUICK)
    hf_gr.batch.answer_each.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        recommend_batch(repo, users, out, **QUICK)
    hf_gr.batch.answer_each.stop_after = None
    searched.clear()
    if change == "users":
        pq.write_table(pa.Table.from_pylist([{**USERS[0], "user_id": "new"}, *USERS[1:]]), users)
    else:
        changed["top_k"] = 4
    recommend_batch(repo, users, out, **changed)
    assert searched == [2, 2, 1]
    assert rows(out)[0][0] == ("new" if change == "users" else "ann")
    assert len(rows(out)[0][1]) == changed["top_k"]


def test_a_finished_job_is_not_done_again(repo, users, tmp_path, searched):
    out = recommend_batch(repo, users, tmp_path / "out.parquet", **QUICK)
    searched.clear()
    assert recommend_batch(repo, users, out, **QUICK) == out
    assert searched == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.csv", "user_id,items\nann,i001\n", r"users\.csv has no column 'history' \(it has: user_id, items\)"),
        ("users.csv", "user_id,history\n", "holds no users"),
        ("users.csv", "", "cannot be read"),
        ("users.parquet", "not parquet", "cannot be read"),
        ("users.txt", "ann", r"neither \.parquet, \.csv nor \.jsonl"),
        ("users.csv", "user_id,history,history\nann,i001,i001\n", "has 2 columns 'history'; keep one"),
        (
            "users.csv",
            "user_id,history\nann,i001,i002\n",
            r"cannot be read \(CSV parse error: Expected 2 columns, got 3",
        ),
        ("users.csv", "user_id,history,allow\nann,i001,zz\n", r"users\.csv, user 'ann': allow is \['zz'\]"),
        ("users.csv", "user_id,history\nann,I1 I2\n", r"user 'ann': history is \['I1', 'I2'\].*written as 'i000'"),
        ("users.csv", "user_id,history\nann,['i001' 'i002']\n", "begins as a list and cannot be read as one"),
        ("users.jsonl", '{"user_id": "ann", "history": []}\n{', "line 2 is not JSON"),
        ("users.jsonl", "[1]\n", r"line 1 is \[1\] \(list\); write one object a line"),
        (
            "users.jsonl",
            '{"user_id": 7.0, "history": []}\n',
            r"row 0: user_id is 7\.0 \(float\); write every",
        ),
        ("users.jsonl", '{"history": []}\n', "has no column 'user_id'"),
        ("users.jsonl", '{"user_id": null, "history": []}\n', "row 0: user_id is None"),
        ("users.jsonl", '{"user_id": "\\ud800", "history": []}\n', "half a character"),
        ("users.jsonl", '{"user_id": "ann", "history": [1]}\n', "user 'ann': history holds 1"),
    ],
)
def test_bad_users_get_one_line_and_leave_the_old_result(repo, tmp_path, searched, name, content, message):
    file, out = tmp_path / name, tmp_path / "out.parquet"
    file.write_text(content)
    before = earlier(out)
    with pytest.raises(HfGrError, match=message) as caught:
        recommend_batch(repo, file, out, **QUICK)
    assert "\n" not in str(caught.value)
    assert (out.read_bytes(), searched) == (before, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out.parquet"])


def test_a_file_or_folder_of_parts_that_is_not_ours_stays(repo, users, tmp_path, searched):
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"mine": [1]}), table)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for file in (table, notes):
        before = file.read_bytes()
        with pytest.raises(HfGrError, match="exists, and this command did not write it"):
            recommend_batch(repo, users, file, **QUICK)
        assert file.read_bytes() == before
    parts = tmp_path / "out.parquet.parts"
    parts.mkdir()
    (parts / "part-00000.parquet").write_text("mine")
    with pytest.raises(HfGrError, match="holds other files"):
        recommend_batch(repo, users, tmp_path / "out.parquet", **QUICK)
    assert (parts / "part-00000.parquet").read_text() == "mine" and not searched
    (parts / "part-00000.parquet").rename(parts / "notes.txt")
    (parts / "key.json").write_text('"another job"')
    recommend_batch(repo, users, tmp_path / "out.parquet", **QUICK)
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]  # what is not a part stays


def test_a_link_is_followed(repo, users, tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "out.parquet"
    link.symlink_to(tmp_path / "disk" / "real.parquet")
    recommend_batch(repo, users, link, **QUICK)
    assert link.is_symlink() and rows(tmp_path / "disk" / "real.parquet")[0][0] == "ann"


def test_bad_places_and_ids(repo, users, tmp_path):
    with pytest.raises(HfGrError, match="does not exist"):
        recommend_batch(repo, tmp_path / "none.csv", tmp_path / "out.parquet")
    with pytest.raises(HfGrError, match="is the file of users"):
        recommend_batch(repo, users, users)
    with pytest.raises(HfGrError, match=r"out\.csv does not end in \.parquet"):
        recommend_batch(repo, users, tmp_path / "out.csv")
    with pytest.raises(HfGrError, match="neither a folder nor a reachable Hub repo"):
        recommend_batch("nobody/nothing", users, tmp_path / "out.parquet")
    pq.write_table(pa.Table.from_pylist([{"user_id": "ann", "history": ["zz", "i001"]}]), users)
    with pytest.raises(HfGrError, match="'zz'"):
        recommend_batch(repo, users, tmp_path / "out.parquet", strict=True)
    assert len(rows(recommend_batch(repo, users, tmp_path / "out.parquet", **QUICK))[0][1]) == 5
