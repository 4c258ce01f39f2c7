import asyncio
import time
from collections import Counter

import pytest
from interests.llm_server import Asked, LLMServer, Reply, answer, finding, last_words

from hf_gr.interests import asking
from hf_gr.interests.answer_cache import AnswerCache
from hf_gr.interests.asking import Asker, ask_all, cost
from hf_gr.interests.interviews import Interview, Manner, hear_kept
from hf_gr.interests.miners.endpoint import Endpoint, EndpointSettings
from hf_gr.interests.subjects import Subject


def subjects(count):
    return [Subject("item", f"i{place}", f"title: thing number{place}") for place in range(count)]


@pytest.fixture
def cache(tmp_path):
    with AnswerCache(tmp_path / "answers.sqlite") as cache:
        yield cache


def asker(server, cache, count=4, model="m", **settings):
    given = {"api_key_env": None, "timeout": 5, "first_wait": 0.01, "concurrency": 4} | settings
    own = EndpointSettings(model, server.url, **given)
    manner = Manner(model, 3, False, own.options)
    interviews = [Interview(subject, manner) for subject in subjects(count)]
    hear_kept(interviews, cache)
    made = Asker(model, Endpoint(own, 3), interviews, cache)
    made.interviews = interviews
    return made


def texts(server):
    return Counter(asked.data["text"] for asked in server.asked)


def test_everything_is_asked_once_and_a_second_run_asks_nothing(cache):
    with LLMServer() as server:
        first = asker(server, cache, 12)
        ask_all([first])
        second = asker(server, cache, 12)
        ask_all([second])
    assert set(texts(server).values()) == {1} and len(server.asked) == 12
    assert server.most_on_their_way <= 4
    assert (first.requests, second.requests) == (12, 0)
    for one, other in zip(first.interviews, second.interviews, strict=True):
        assert one.finished and one.findings == other.findings != []
        assert one.findings[0].interest == f"liking {one.subject.text.split()[-1]}"


def test_an_answer_that_cannot_be_read_is_asked_for_once_more(cache):
    def script(asked: Asked) -> str:
        if "number0" in asked.data["text"]:
            return "no idea"
        return last_words(asked) if asked.again or "number1" not in asked.data["text"] else "{broken"

    with LLMServer(script) as server:
        first = asker(server, cache, 3)
        ask_all([first])
        second = asker(server, cache, 3)
        ask_all([second])
    assert sorted(texts(server).values()) == [1, 2, 2] and second.requests == 0
    for made in (first, second):  # the second knows it of the cache alone
        lost, repaired, plain = made.interviews
        assert (
            lost.finished and not lost.findings and lost.failure.startswith("two answers, neither of use: there is no")
        )
        assert repaired.failure is None and repaired.findings and len(repaired.answers) == 2
        assert plain.failure is None and len(plain.answers) == 1
    again = next(asked for asked in server.asked if asked.again and "number1" in asked.data["text"])
    assert again.data["your_answer"] == "{broken" and "no JSON object" in again.data["error"]


def test_an_answer_that_was_cut_off_is_called_so(cache):
    cut = Reply('{"steps": "and then', usage={"prompt_tokens": 50, "completion_tokens": 30})
    with LLMServer(lambda asked: cut) as server:
        made = asker(server, cache, 1, max_answer_tokens=30)
        ask_all([made])
    assert made.interviews[0].failure.endswith("no JSON object in the answer; it was cut off after 30 tokens")
    assert server.asked[1].data["error"].endswith("it was cut off after 30 tokens")


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(drop=True),
        Reply(status=500, error={"message": "oops"}),
        Reply(status=429, headers={"Retry-After": "0.05"}, error={"message": "slow down"}),
        Reply(raw=b'{"choices": [{"mess'),
        Reply(hang=1.5),
    ],
    ids=["drop", "500", "429", "broken", "hang"],
)
def test_trouble_that_passes_loses_nothing(cache, trouble):
    with LLMServer(lambda asked: trouble if asked.attempt < 2 else last_words(asked)) as server:
        made = asker(server, cache, 5, timeout=0.5 if trouble.hang else 10)  # a busy machine answers late
        ask_all([made])
    assert all(interview.findings for interview in made.interviews)
    assert set(texts(server).values()) == {3} and set(server.answered.values()) == {1}


def test_trouble_of_every_kind_at_once(cache):
    """Every third request goes wrong in another way, and one subject always does."""
    kinds = [
        Reply(drop=True),
        Reply(status=503, error={"message": "busy"}),
        Reply(status=429, headers={"Retry-After": "0.02"}, error={"message": "slow down"}),
        Reply(raw=b"<html>"),
    ]

    def script(asked: Asked) -> Reply | str:
        place = int(asked.data["text"].split("number")[1])
        if place == 3:
            return Reply(status=500, error={"message": "oops"})
        return kinds[place // 3 % 4] if place % 3 == 0 and asked.attempt == 0 else last_words(asked)

    with LLMServer(script) as server:
        made = asker(server, cache, 40, attempts=3)
        ask_all([made])
        again = asker(server, cache, 40, attempts=1)
        asked_before = len(server.asked)
        ask_all([again])
    failed = [interview.subject.id for interview in made.interviews if interview.failure]
    assert failed == ["i3"]
    assert made.interviews[3].failure == "3 attempts, the last: status 500 (oops)" and not made.interviews[3].finished
    assert all(interview.findings for interview in made.interviews if interview.subject.id != "i3")
    assert max(server.answered.values()) == 1 and made.stop is None
    assert len(server.asked) - asked_before == 1  # what failed by transport alone is asked again


def test_the_wait_that_the_server_asks_for_holds_for_all(cache):
    at = []

    def script(asked: Asked) -> Reply | str:
        at.append(time.monotonic())
        if len(at) == 1:
            return Reply(status=429, headers={"Retry-After": "0.6"}, error={"message": "slow down"})
        return last_words(asked)

    with LLMServer(script) as server:
        ask_all([asker(server, cache, 4, concurrency=1)])
    assert at[1] - at[0] >= 0.6 and len(at) == 5


def test_waits_grow_and_failures_that_come_together_count_once(cache, monkeypatch):
    waits = []
    monkeypatch.setattr(asking.random, "uniform", lambda low, high: 1.0)
    with LLMServer(lambda asked: Reply(status=500, error={"message": "oops"})) as server:
        made = asker(server, cache, 20, concurrency=4, attempts=50, stop_after=5, first_wait=0.04)
        began = time.monotonic()
        ask_all([made])
        waits.append(time.monotonic() - began)
    assert 0.04 + 0.08 + 0.16 + 0.32 <= waits[0] < 5
    assert "failed 5 times in a row, the last: status 500 (oops)" in made.stop and server.url in made.stop
    assert len(server.asked) <= 5 * 4
    assert not any(interview.finished or interview.failure for interview in made.interviews)


def test_a_server_that_is_gone_is_left_alone(cache):
    with LLMServer() as server:
        pass
    made = asker(server, cache, 500, stop_after=4, attempts=2)
    began = time.monotonic()
    ask_all([made])
    assert time.monotonic() - began < 10
    assert "failed 4 times in a row" in made.stop and "run the same command again" in made.stop
    assert sum(interview.failure is not None for interview in made.interviews) < 30


def test_a_wrong_key_stops_at_once_and_other_miners_go_on(cache):
    wrong = Reply(status=401, error={"message": "bad key"})
    with LLMServer(lambda asked: wrong if asked.model == "bad" else last_words(asked)) as server:
        bad, good = asker(server, cache, 30, "bad"), asker(server, cache, 30, "good")
        ask_all([bad, good])
    assert "answered 401 (bad key)" in bad.stop and good.stop is None
    assert sum(asked.model == "bad" for asked in server.asked) <= 4
    assert all(interview.findings for interview in good.interviews)
    assert not any(interview.failure for interview in bad.interviews)  # not asked, which another run makes up for


def test_subjects_that_are_refused_are_failures_until_too_many_are(cache):
    refused = Reply(status=400, error={"message": "flagged"})
    with LLMServer(lambda asked: refused if asked.data["text"].endswith("number2") else last_words(asked)) as server:
        made = asker(server, cache, 8, schema=False)
        ask_all([made])
    assert [i.failure for i in made.interviews if i.failure] == ["status 400 (flagged)"] and made.stop is None
    assert texts(server)["title: thing number2"] == 1
    with LLMServer(lambda asked: refused) as server:
        made = asker(server, cache, 50, "n", schema=False, stop_after=6, concurrency=2)
        ask_all([made])
    assert "refused 6 subjects in a row" in made.stop and len(server.asked) <= 8


def test_requests_per_minute(cache):
    with LLMServer() as server:
        began = time.monotonic()
        ask_all([asker(server, cache, 6, requests_per_minute=600)])
        assert 0.5 <= time.monotonic() - began < 3


def test_no_request_starts_beyond_the_budget_in_tokens(cache):
    usage = {"prompt_tokens": 900, "completion_tokens": 100}
    with LLMServer(lambda asked: Reply(last_words(asked), usage=usage)) as server:
        caps = {"max_tokens_total": 12_000, "max_answer_tokens": 200}
        made = asker(server, cache, 30, **caps)
        most = sum(
            Endpoint(EndpointSettings("m", api_key_env=None, **caps), 3).most_tokens(made.interviews[0].question())
        )
        ask_all([made])
        asked = len(server.asked)
        assert 12_000 - most - 1000 < asked * 1000 <= 12_000
        assert "could exceed the budget (max_tokens_total 12000)" in made.stop
        assert sum(interview.finished for interview in made.interviews) == asked
        assert not any(interview.failure for interview in made.interviews)
        again = asker(server, cache, 30, **caps)  # what is kept counts: the cap does not start anew
        ask_all([again])
        assert len(server.asked) == asked and again.stop == made.stop
        ask_all([asker(server, cache, 30, max_tokens_total=10**6, max_answer_tokens=200)])
    assert len(server.asked) == 30 and max(texts(server).values()) == 1


def test_no_request_starts_beyond_the_budget_in_money(cache):
    usage = {"prompt_tokens": 1000, "completion_tokens": 200}
    prices = {"price_in": 2.0, "price_out": 10.0, "max_cost": 0.05, "max_answer_tokens": 300}
    with LLMServer(lambda asked: Reply(last_words(asked), usage=usage)) as server:
        made = asker(server, cache, 30, **prices)
        ask_all([made])
    spent = len(server.asked) * (1000 * 2 + 200 * 10) / 1e6
    assert 0.035 < spent <= 0.05 and "max_cost 0.05" in made.stop
    assert cost(EndpointSettings("m", **prices), 1_000_000, 100_000) == pytest.approx(3.0)


def test_attempts_that_hang_count_with_all_they_could_have_cost(cache):
    with LLMServer(lambda asked: Reply(hang=1)) as server:
        made = asker(server, cache, 2, timeout=0.1, concurrency=1, attempts=4, stop_after=40, max_tokens_total=8_000)
        ask_all([made])
    assert "budget" in str(made.stop) and 1 <= len(server.asked) <= 3


def test_it_runs_where_a_loop_runs_already(cache):
    async def notebook() -> Asker:
        made = asker(server, cache, 2)
        ask_all([made])
        return made

    with LLMServer() as server:
        assert all(interview.finished for interview in asyncio.run(notebook()).interviews)


def test_answers_may_come_in_any_order(cache):
    def script(asked: Asked) -> str:
        time.sleep(0.002 * (hash(asked.data["text"]) % 20))
        return answer(finding("x", asked.data["text"].split()[-1]))

    with LLMServer(script) as server:
        made = asker(server, cache, 20, concurrency=8)
        ask_all([made])
    assert [i.findings[0].evidence for i in made.interviews] == [f"number{place}" for place in range(20)]
