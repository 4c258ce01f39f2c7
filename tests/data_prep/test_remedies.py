"""Every option that a message of `hf-gr prepare` names is an option of that command."""

import ast
import json
import re
from pathlib import Path

import pytest
import typer

import data_prep
from data_prep.cli import app
from hf_gr.errors import HfGrError


COMMANDS = typer.main.get_command(app).commands
OPTION = re.compile(r"--[a-z][a-z-]+")
LOG = "user_id,item_id,timestamp\n"
REVIEW = {"reviewerID": "u", "asin": "a", "overall": 5, "unixReviewTime": 1}
MINI = {"train.csv": "user_id,history_item_id,item_id\nu,\"['1']\",2\n", "items.json": '{"1": {"title": "x"}}'}
SESSIONS = {"s.csv": "session_id,item_ids\ns,a b\n"}
RATINGS = {
    "ml/ratings.csv": "userId,movieId,rating,timestamp\n1,2,3,4\n",
    "ml/movies.csv": "movieId,title,genres\n2,x,y\n",
}
AMAZON = {"r.json": json.dumps(REVIEW), "m.json": json.dumps({"asin": "b", "title": "x"})}


def options(command: str) -> set[str]:
    return {name for parameter in COMMANDS[command].params for name in (*parameter.opts, *parameter.secondary_opts)}


CASES = [
    ("table", {"t.csv": "a,b\nu,a\n"}, "t.csv"),
    ("table", {"t.csv": "user_id,item_id\nu,a\n"}, "t.csv"),
    ("table", {"t.csv": LOG + ",a,1\n"}, "t.csv"),
    ("table", {"t.csv": LOG + "u,a,-5\n"}, "t.csv"),
    ("table", {"t.csv": LOG + "u,a,20200101\n"}, "t.csv"),
    ("table", {"t.csv": LOG + "u,a,45000\n"}, "t.csv"),
    ("table", {"t.csv": LOG + "u,a,1\nu,a,1700000000000\n"}, "t.csv"),
    ("table", {"t.csv": LOG + "u,a,2020-01-01\n"}, "t.csv --time-unit s"),
    ("table", {"t.csv": "user_id,item_id,position\nu,a,1\n"}, "t.csv --any-year"),
    ("table", {"t.csv": LOG + "u,a,1\n"}, "t.csv --column title=x"),
    ("table", {"t.csv": LOG + "u,a,1\n"}, "t.csv --drop-unknown-items"),
    ("table", {"t.csv": LOG + "u,a,1\n"}, "t.csv --min-rating 4"),
    ("table", {"t.csv": "user_id,item_id,timestamp,rating\nu,a,1,3\n"}, "t.csv --min-rating 4"),
    ("table", {"t.csv": LOG + "u,a,1\n"}, "t.csv --min-user-events 3"),
    ("table", {"t.csv": LOG + "u,a,1\n"}, "t.csv --k-core 3"),
    ("table", {"t.csv": LOG + "u,a,1\n", "i.csv": "item_id\nb\n"}, "t.csv --items i.csv"),
    ("table", {"t.csv": LOG + "u,a,1\n", "i.csv": "item_id\nb\n"}, "t.csv --items i.csv --drop-unknown-items"),
    ("table", {"t.csv": LOG + "u,a,1\n", "i.csv": "id\nb\n"}, "t.csv --items i.csv"),
    ("hub", {"d/t.csv": "a,b\nu,a\n"}, "d"),
    ("hub", {"d/t.csv": LOG + ",a,1\n"}, "d"),
    ("hub", {"d/t.csv": LOG + "u,a,-5\n"}, "d"),
    ("hub", {"d/t.csv": LOG + "u,a,1\n"}, "d --column title=x"),
    ("hub", {"d/t.csv": LOG + "u,a,1\n"}, "d --min-user-events 3"),
    ("amazon", {"r.json": '{"reviewer": 1}'}, "r.json"),
    ("amazon", {"r.json": json.dumps(REVIEW | {"asin": ""})}, "r.json"),
    ("amazon", {"r.json": json.dumps(REVIEW | {"unixReviewTime": 10**12})}, "r.json"),
    ("amazon", {"r.json": json.dumps(REVIEW | {"unixReviewTime": "soon"})}, "r.json"),
    ("amazon", AMAZON, "r.json"),
    ("amazon", AMAZON, "r.json --metadata m.json"),
    ("movielens", {"ml/ratings.csv": "userId,movieId,rating,timestamp\n,2,3,4\n", "ml/movies.csv": "x"}, "--path ml"),
    ("movielens", RATINGS, "--path ml --min-rating 4"),
    ("movielens", RATINGS | {"ml/movies.csv": "movieId,title,genres\n3,x,y\n"}, "--path ml"),
    ("sessions", {"s.csv": "session,items\ns,a\n"}, "s.csv"),
    ("sessions", SESSIONS, "s.csv --k-core 3"),
    ("sessions", SESSIONS | {"i.csv": "item_id\nb\n"}, "s.csv --items i.csv"),
    ("sessions", SESSIONS | {"i.csv": "id\nb\n"}, "s.csv --items i.csv"),
    ("minionerec", {"train.csv": "user\nu\n", "items.json": "{}"}, "train.csv --items items.json"),
    ("minionerec", MINI, "train.csv --items items.json"),
]


@pytest.mark.parametrize(("command", "files", "line"), CASES)
def test_the_remedies_of_a_refusal_are_options_of_the_command(tmp_path, monkeypatch, command, files, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(HfGrError) as caught:
        app([command, *line.split(), "--out", "out"], standalone_mode=False)
    message = str(caught.value)
    assert set(OPTION.findall(message)) <= options(command), message
    assert "=THEIR_NAME" not in message or "--column" in message or "--item-column" in message
    for name in ("k_core", "min_user_events", "drop_unknown_items", "min_rating", "time_unit"):
        assert name not in message


def test_no_text_of_the_sources_names_an_option_that_no_command_has():
    known = set().union(*(options(command) for command in COMMANDS))
    for file in Path(data_prep.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert set(OPTION.findall(node.value)) <= known, f"{file.name}: {node.value}"
