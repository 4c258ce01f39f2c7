import os
import signal
import sqlite3
import time
from multiprocessing import get_context

import pytest

from hf_gr.errors import HfGrError
from hf_gr.interests.answer_cache import Answer, AnswerCache, digest
from hf_gr.interests.subjects import Subject


CUP, BOB = Subject("item", "1", "Cup"), Subject("user", "1", "Cup")


def test_answers_are_found_by_model_question_and_subject(tmp_path):
    file = tmp_path / "deep" / "answers.sqlite"
    with AnswerCache(file) as cache:
        cache.keep("m", [("q", CUP, Answer("yes", 5, 2)), ("q", BOB, Answer("", 6, 0))])
    with AnswerCache(file) as cache:
        assert cache.get("m", "q", CUP) == Answer("yes", 5, 2)
        assert cache.get("m", "q", BOB) == Answer("", 6, 0)
        assert (
            cache.get("n", "q", CUP)
            is cache.get("m", "p", CUP)
            is cache.get("m", "q", Subject("item", "2", ""))
            is None
        )
        assert len(cache) == 2


def test_the_digest_hangs_on_messages_and_options():
    messages = [{"role": "user", "content": "Cup"}]
    keys = {
        digest(messages, {}),
        digest([{"role": "user", "content": "Cap"}], {}),
        digest(messages, {"temperature": 0}),
        digest(messages * 2, {}),
    }
    assert len(keys) == 4
    assert digest(messages, {"a": 1, "b": 2}) == digest(list(messages), {"b": 2, "a": 1})


def _write(file, count):
    with AnswerCache(file) as cache:
        for place in range(100_000):
            cache.keep("m", [("q", Subject("item", str(place), ""), Answer("text" * 50, 1, 1))])
            count.value = place + 1


def test_what_was_kept_survives_a_kill(tmp_path):
    context = get_context("fork")
    count = context.Value("i", 0)
    process = context.Process(target=_write, args=(tmp_path / "a.sqlite", count))
    process.start()
    while count.value < 50:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        assert count.value <= len(cache) <= count.value + 1
        assert all(cache.get("m", "q", Subject("item", str(place), "")) for place in range(count.value))
        cache.keep("m", [("q", CUP, Answer("on it goes", 1, 1))])


def test_batches_are_kept_whole_or_not_at_all(tmp_path):
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        with pytest.raises(HfGrError, match="cannot keep answers"):
            cache.keep("m", [("q", CUP, Answer("fine", 1, 1)), ("q", BOB, Answer(None, 1, 1))])
        assert len(cache) == 0
        cache.keep("m", [("q", CUP, Answer("fine", 1, 1))])
        assert len(cache) == 1


def test_two_processes_may_share_the_file(tmp_path):
    with AnswerCache(tmp_path / "a.sqlite") as one, AnswerCache(tmp_path / "a.sqlite") as other:
        one.keep("m", [("q", CUP, Answer("a", 1, 1))])
        other.keep("m", [("q", BOB, Answer("b", 1, 1))])
        assert one.get("m", "q", BOB) == Answer("b", 1, 1)


def test_another_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.sqlite").write_text("this is a text and no database, and long enough to tell" * 30)
    with pytest.raises(HfGrError, match=r"a\.sqlite cannot hold answers"):
        AnswerCache(tmp_path / "a.sqlite")
    with pytest.raises(HfGrError, match="cannot hold answers"):
        AnswerCache(tmp_path)


def test_questions_are_kept_as_digests(tmp_path):
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.keep("m", [(digest([{"content": "secret text"}], {}), CUP, Answer("a", 1, 1))])
    rows = sqlite3.connect(tmp_path / "a.sqlite").execute("SELECT * FROM answers").fetchall()
    assert "secret" not in str(rows)
