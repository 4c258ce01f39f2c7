import json
import os
import random
import signal
import threading
import time
import zlib
from collections import Counter
from multiprocessing import get_context

import numpy as np
import pytest
from interests.llm_server import Asked, LLMServer, Reply, answer, finding, last_words
from PIL import Image
from tiny import tiny_interactions, tiny_items
from tqdm import tqdm

from hf_gr.arguments import parse_config
from hf_gr.artifacts import fingerprint, read_json
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.errors import HfGrError
from hf_gr.interests import Interests, mining
from hf_gr.interests.answer_cache import AnswerCache
from hf_gr.interests.mining import MineConfig, mine


KEY = "sk-secret-7d1f00b5aa"


class WordEncoder:
    """Sums of random vectors of words."""

    pooling = "sum"

    def __init__(self, name):
        self.name = name

    def __call__(self, texts):
        return np.stack([sum(map(_vector, text.split()), np.zeros(16)) for text in texts]).astype(np.float32)


def _vector(word):
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=16)


@pytest.fixture(autouse=True)
def light(monkeypatch, tmp_path):
    monkeypatch.setattr(mining, "SentenceEncoder", WordEncoder)
    monkeypatch.setenv("HF_GR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def miner(server, model="m", **settings):
    given = {"kind": "openai", "model": model, "base_url": server.url, "timeout": 5, "first_wait": 0.01}
    return given | settings


def config(folder, out, miners=None, **settings):
    return MineConfig(str(folder), str(out), miners=miners, **settings)


def failures(out):
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]


def test_two_miners_at_once_agree_and_are_named(dataset_folder, tmp_path):
    def script(asked: Asked) -> str:
        first = asked.data["text"].split()[0]
        return answer(finding("shared joy", first, 0.5), finding(f"only of {asked.model}", first, 0.4))

    with LLMServer(script) as server:
        out = mine(config(dataset_folder, tmp_path / "mined", {"a": miner(server, "a"), "b": miner(server, "b")}))
        before = len(server.asked)
        assert mine(config(dataset_folder, out, {"a": miner(server, "a"), "b": miner(server, "b")})) == out
        assert len(server.asked) == before
    interests = Interests.load(out)
    rows = interests.items.table.filter(interests.items.table["item_id"].to_numpy() == "i000").to_pylist()
    by_name = {row["interest"]: row for row in rows}
    assert by_name["shared joy"]["models"] == ["a", "b"]
    assert by_name["shared joy"]["confidence"] > 0.5  # more than each of them said
    assert by_name["only of a"]["models"] == ["a"] and by_name["only of b"]["models"] == ["b"]
    data = InteractionDataset.load(dataset_folder)
    assert set(interests.items.table["item_id"].to_pylist()) == set(data.item_ids)
    assert set(interests.users.table["user_id"].to_pylist()) <= set(data.events.user_ids)
    assert failures(out) == [] and read_json(out / "manifest.json")["complete"]
    counts = read_json(out / "mining.json")["miners"]["a"]
    assert counts["answered"] == before / 2 and counts["not_asked"] == counts["unanswered"] == 0
    assert counts["tokens_in"] == 100 * before / 2


def test_a_history_is_its_training_part(dataset_folder, tmp_path):
    data = InteractionDataset.load(dataset_folder)
    with LLMServer() as server:
        mine(config(dataset_folder, tmp_path / "mined", {"m": miner(server)}, subjects=["users"], max_items=100))
    train = data.split().train
    told = {"\n".join(data.titles[item] for item in items[:-1]) for items in train if len(items) > 1}
    assert {asked.data["text"] for asked in server.asked} == told


def test_forced_runs_ask_nothing_and_write_the_same(dataset_folder, tmp_path):
    with LLMServer() as server:
        given = config(dataset_folder, tmp_path / "mined", {"m": miner(server)}, force=True, limit=5)
        out = mine(given)
        written, asked = fingerprint(out), len(server.asked)
        mine(given)
        assert len(server.asked) == asked == 10 and fingerprint(out) == written
        mine(config(dataset_folder, tmp_path / "other", {"n": miner(server)}, limit=7))  # under another name, and more
        assert len(server.asked) == 14


def _run(given):
    os.setsid()
    tqdm.set_lock(threading.RLock())  # the one that processes share would stay locked if this one is killed with it
    mine(given)


def _script(asked: Asked) -> Reply | str:
    """Slow, now and then wrong, the same answer for the same question."""
    mood = zlib.crc32(f"{asked.model}{asked.data}".encode())
    time.sleep(mood % 7 / 1000)
    if asked.attempt == 0 and mood % 10 == 0:
        return [Reply(drop=True), Reply(status=500, error={"message": "oops"}), Reply(raw=b"{")][mood % 3]
    return "no JSON" if mood % 5 == 0 else last_words(asked)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_is_killed_goes_on_to_the_same_file(dataset_folder, tmp_path, seed):
    draw = random.Random(seed)
    context = get_context("fork")
    with LLMServer(_script) as calm:
        miners = {name: miner(calm, name, concurrency=3) for name in ("a", "b")}
        whole = mine(config(dataset_folder, tmp_path / "whole", miners, answers=str(tmp_path / "whole.sqlite")))
    kept, kills = tmp_path / "killed.sqlite", 0
    with LLMServer(_script) as server:
        miners = {name: miner(server, name, concurrency=3) for name in ("a", "b")}
        given = config(dataset_folder, tmp_path / "killed", miners, answers=str(kept))
        while True:
            process = context.Process(target=_run, args=(given,))
            process.start()
            enough = len(server.asked) + draw.randrange(1, 120)
            while process.is_alive() and (len(server.asked) < enough or kills == 3):
                time.sleep(0.001)
            if not process.is_alive():
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            assert not (tmp_path / "killed").exists()
        assert process.exitcode == 0 and kills >= 2
    assert (whole / "interests.parquet").read_bytes() == (tmp_path / "killed" / "interests.parquet").read_bytes()
    assert (whole / "mining.json").read_bytes() == (tmp_path / "killed" / "mining.json").read_bytes()
    # An answer on its way when the process died was never had; nothing that was had is asked for twice.
    repeated = server.answered - calm.answered
    assert repeated.total() <= kills * 6 and not calm.answered - server.answered


def test_nothing_that_was_kept_when_a_run_was_killed_is_asked_again(dataset_folder, tmp_path):
    kept = tmp_path / "killed.sqlite"
    with LLMServer(_script) as server:
        given = config(dataset_folder, tmp_path / "killed", {"a": miner(server, "a")}, answers=str(kept))
        process = get_context("fork").Process(target=_run, args=(given,))
        process.start()
        while len(server.asked) < 40:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        time.sleep(0.1)
        had = sum(server.answered.values())
        with AnswerCache(kept) as cache:
            known = len(cache)
        assert had - 8 <= known <= had
        mine(given)
        final = sum(server.answered.values())
        with AnswerCache(kept) as cache:
            assert final - had == len(cache) - known  # each new answer is one that was not kept


def test_the_order_of_answers_does_not_matter(dataset_folder, tmp_path):
    written = []
    for turn in range(2):

        def script(asked: Asked, turn: int = turn) -> str:
            time.sleep(zlib.crc32(f"{turn}{asked.data}".encode()) % 20 / 1000)
            return last_words(asked)

        with LLMServer(script) as server:
            given = config(dataset_folder, tmp_path / f"{turn}", {"m": miner(server)}, answers=f"{tmp_path}/{turn}.db")
            written.append((mine(given) / "interests.parquet").read_bytes())
    assert written[0] == written[1]


def test_what_fails_is_listed_and_asked_again_where_it_may_help(dataset_folder, tmp_path, capsys):
    def script(asked: Asked) -> Reply | str:
        text = asked.data["text"]
        if text.startswith("title: Title 3\n"):
            return "I cannot."
        return (
            Reply(status=500, error={"message": "oops"}) if text.startswith("title: Title 5\n") else last_words(asked)
        )

    with LLMServer(script) as server:
        given = config(dataset_folder, tmp_path / "mined", {"m": miner(server, attempts=2)}, subjects=["items"])
        out = mine(given)
        assert [(line["miner"], line["kind"], line["id"]) for line in failures(out)] == [
            ("m", "item", "i003"),
            ("m", "item", "i005"),
        ]
        assert "neither of use" in failures(out)[0]["reason"] and "2 attempts" in failures(out)[1]["reason"]
        counts = read_json(out / "mining.json")["miners"]["m"]
        assert (counts["unreadable"], counts["unanswered"], counts["not_asked"]) == (1, 1, 0)
        assert "1 subjects have no answer yet; run the same command again" in capsys.readouterr().out
        before = len(server.asked)
        mine(given)
        assert Counter(asked.data["text"][:15] for asked in server.asked[before:]) == {"title: Title 5\n": 2}


def test_a_budget_ends_the_run_and_a_larger_one_goes_on(dataset_folder, tmp_path, capsys):
    prices = {"price_in": 1.0, "price_out": 4.0, "max_answer_tokens": 100}
    with LLMServer() as server:
        small = {"m": miner(server, **prices, max_cost=0.004), "k": {"kind": "keyphrase"}}
        out = mine(config(dataset_folder, tmp_path / "mined", small, subjects=["items"]))
        printed = capsys.readouterr().out
        assert "miner 'm' stopped: the next request could exceed the budget (max_cost 0.004)" in printed
        counts = read_json(out / "mining.json")["miners"]["m"]
        assert 0 < counts["cost"] <= 0.004 and counts["cost"] == pytest.approx(counts["answered"] * 180 / 1e6)
        assert counts["not_asked"] + counts["answered"] == 40
        assert not read_json(out / "manifest.json")["complete"]
        large = {"m": miner(server, **prices, max_cost=1.0), "k": {"kind": "keyphrase"}}
        mine(config(dataset_folder, out, large, subjects=["items"]))
        assert len(server.asked) == 40 and read_json(out / "manifest.json")["complete"]
        mine(config(dataset_folder, out, small, subjects=["items"]))  # complete is complete, whatever the budget
        assert "up to date" in capsys.readouterr().out


def test_a_wrong_key_is_one_line_and_leaves_what_there_was(dataset_folder, tmp_path):
    with LLMServer() as server:
        out = mine(config(dataset_folder, tmp_path / "mined", {"m": miner(server)}, limit=3))
    before = fingerprint(out)
    with LLMServer(lambda asked: Reply(status=401, error={"message": f"bad key {KEY}"})) as server:
        bad = config(dataset_folder, out, {"n": miner(server, "n")}, limit=3)
        with pytest.raises(HfGrError, match=r"no miner had an answer; 'n': .* answered 401 .*OPENAI_API_KEY") as error:
            mine(bad)
    assert fingerprint(out) == before and KEY not in str(error.value)


def test_a_server_that_fails_leaves_what_there_was(dataset_folder, tmp_path):
    with LLMServer() as server:
        out = mine(config(dataset_folder, tmp_path / "mined", {"m": miner(server)}, limit=2))
    before = fingerprint(out)
    with LLMServer(lambda asked: Reply(drop=True)) as server:
        bad = config(dataset_folder, out, {"n": miner(server, "n", attempts=2)}, limit=2)
        with pytest.raises(HfGrError, match="no miner had an answer; 'n': 2 attempts, the last: connection failed"):
            mine(bad)
    assert fingerprint(out) == before


def test_the_key_is_written_nowhere(dataset_folder, tmp_path, capfd):
    """Not even where a server sends it back in every way it can."""

    def script(asked: Asked) -> Reply | str:
        key = asked.headers["authorization"]
        if "Title 1\n" in asked.data["text"]:
            return Reply(status=400, error={"message": f"refused {key}"})
        if "Title 2\n" in asked.data["text"]:
            return Reply(status=500, error={"message": f"oops {key}"}, headers={"X-Key": key})
        if "Title 4\n" in asked.data["text"]:
            return f"no JSON but {key}"
        return answer(finding(f"liking {key}", "title"), finding("fine", "title"))

    with LLMServer(script) as server:
        mine(config(dataset_folder, tmp_path / "mined", {"m": miner(server, attempts=2)}, subjects=["items"]))
    assert all(asked.headers["authorization"] == f"Bearer {KEY}" for asked in server.asked)
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"answers.sqlite", "manifest.json", "failures.jsonl"} <= {file.name for file in files}
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def with_pictures(folder):
    items = tiny_items(4)
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(folder / "pictures" / "red.png")
    items = items.append_column("image", [[str(folder / "pictures" / "red.png"), None, None, None]])
    write_dataset(folder / "data", tiny_interactions(6, 4), items, source="Made for tests.")
    return folder / "data"


def test_pictures_go_to_miners_that_see(tmp_path):
    folder = with_pictures(tmp_path)
    with LLMServer() as server:
        miners = {"seer": miner(server, "seer"), "reader": miner(server, "reader", text_only=True)}
        mine(config(folder, tmp_path / "mined", miners, images=True))
    seen = [asked for asked in server.asked if not isinstance(asked.body["messages"][1]["content"], str)]
    assert [(asked.model, asked.data["text"].split("\n")[0]) for asked in seen] == [("seer", "title: Title 0")]
    with pytest.raises(HfGrError, match="text_only"):
        mine(config(folder, tmp_path / "mined", {"reader": miner(server, "reader", text_only=True)}, images=True))


def test_images_of_a_dataset_without_any(dataset_folder, tmp_path):
    with LLMServer() as server, pytest.raises(HfGrError, match="no column 'image'"):
        mine(config(dataset_folder, tmp_path / "mined", {"m": miner(server)}, images=True))
    assert not server.asked


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"miners": {}}, "there are no miners"),
        (
            {"miners": {"x": {"kind": "oracle"}}},
            "'x' needs settings with a `kind`: keyphrase, openai, tr",
        ),
        ({"miners": {"x": "keyphrase"}}, "miner 'x' needs settings"),
        ({"miners": {"x": {"kind": "openai"}}}, "miner 'x' needs the name of a model"),
        (
            {"miners": {"x": {"kind": "openai", "model": "m", "key": "s"}}},
            "miner 'x': openai has no key 'key'; it may have",
        ),
        ({"miners": {"x": {"kind": "openai", "model": "m", "attempts": 0}}}, "miner 'x': attempts is 0"),
        ({"miners": {"x": {"kind": "transformers", "model": "m", "batch_size": 0}}}, "miner 'x': batch_size is 0"),
        ({"miners": {"x": {"kind": "keyphrase", "ngram": [3, 1]}}}, r"miner 'x': ngram is \(3, 1\)"),
        ({"miners": {n: {"kind": "openai", "model": "m"} for n in "xy"}}, "'x' and 'y' ask the same model"),
        ({"subjects": ["items", "shops"]}, "name items, users or both"),
        ({"subjects": []}, "name items, users or both"),
        ({"threshold": 0.0}, "threshold is 0"),
        ({"max_interests": 0}, "max_interests is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"reviews": -1}, "reviews is -1"),
        ({"images": True}, "text_only"),
        ({"miners": {"x": {"kind": "openai", "model": "m", "api_key_env": "NO_SUCH_KEY"}}}, "NO_SUCH_KEY"),
        ({"miners": {"x": {"kind": "transformers", "model": "/no/model"}}}, "cannot load the model '/no/model'"),
    ],
)
def test_settings_that_make_no_sense(dataset_folder, tmp_path, settings, message):
    with pytest.raises(HfGrError, match=message) as error:
        mine(config(dataset_folder, tmp_path / "mined", **settings))
    assert "\n" not in str(error.value) and not (tmp_path / "mined").exists()


def test_the_command_line_and_yaml_name_miners(tmp_path):
    line = ["--dataset", "d", "--output_dir", "o"]
    assert parse_config(MineConfig, line).miners == {"keyphrase": {"kind": "keyphrase"}}
    given = parse_config(MineConfig, [*line, "--miners", "{m: {kind: openai, model: x, api_key_env: null}}"])
    assert given.miners == {"m": {"kind": "openai", "model": "x", "api_key_env": None}}
    file = tmp_path / "mine.yaml"
    file.write_text("dataset: d\noutput_dir: o\nminers:\n  m: {kind: openai, model: x}\nsubjects: [items]\n")
    found = parse_config(MineConfig, ["--config", str(file)])
    assert found.miners == {"m": {"kind": "openai", "model": "x"}} and found.subjects == ["items"]


def test_without_a_language_model(tmp_path):
    kinds = ["garden hose", "oak table", "red wine", "wool scarf", "tennis racket", "chess board"]
    items = tiny_items(12).append_column("description", [[f"A {kinds[row % 6]} for all." for row in range(12)]])
    write_dataset(tmp_path / "data", tiny_interactions(6, 12), items, source="Made for tests.")
    out = mine(config(tmp_path / "data", tmp_path / "mined", subjects=["items"], max_interests=2))
    found = Interests.load(out)
    assert all(models == ["keyphrase"] for models in found.table["models"].to_pylist())
    for names, kind in zip(found.of_items(items["item_id"].to_pylist()), kinds * 2, strict=True):
        assert 1 <= len(names) <= 2 and all(name in kind for name in names)
    assert not (tmp_path / "cache").exists()  # no file of answers where nothing was asked
