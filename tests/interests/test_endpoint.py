import asyncio
import json
import time

import pytest
from interests.llm_server import Asked, LLMServer, Reply, answer, finding

from hf_gr.errors import HfGrError
from hf_gr.interests.answer_cache import Answer
from hf_gr.interests.miners.endpoint import (
    IMAGE_TOKENS,
    Endpoint,
    EndpointSettings,
    EndpointStopped,
    SubjectRefused,
    TryLater,
)
from hf_gr.interests.prompts import first_question
from hf_gr.interests.subjects import Subject


KEY = "sk-test-4f9a77c1d2e3"
QUESTION = first_question(Subject("item", "1", "Cup"), 3)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(server: LLMServer, times: int = 1, **settings) -> Answer:
    async def run() -> Answer:
        async with Endpoint(EndpointSettings("m", server.url, **{"timeout": 5} | settings), 3) as endpoint:
            for _ in range(times):
                found = await endpoint.answer(QUESTION)
            return found

    return asyncio.run(run())


def test_a_request_is_that_of_the_api():
    with LLMServer(lambda asked: Reply("hello", usage={"prompt_tokens": 7, "completion_tokens": 2})) as server:
        assert ask(server, max_answer_tokens=55) == Answer("hello", 7, 2)
    (asked,) = server.asked
    form = asked.body.pop("response_format")
    assert form["type"] == "json_schema" and form["json_schema"]["schema"]["required"] == ["steps", "interests"]
    assert asked.body == {"model": "m", "messages": QUESTION, "max_tokens": 55, "temperature": 0}
    assert asked.headers["authorization"] == f"Bearer {KEY}"


def test_a_request_of_other_fields_and_without_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    more = {"reasoning_effort": "low", "seed": 3}
    with LLMServer() as server:
        ask(server, schema=False, api_key_env=None, limit_field="max_completion_tokens", parameters=more)
    assert server.asked[0].body == {"model": "m", "messages": QUESTION, "max_completion_tokens": 1000, **more}


def test_a_server_that_does_not_count_is_taken_to_use_all_it_can():
    with LLMServer(lambda asked: Reply("four", usage=None)) as server:
        found = ask(server)
    assert found.tokens_out == 4
    assert found.tokens_in > sum(len(message["content"]) for message in QUESTION)


def test_pictures_count_in_the_budget():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    seen = [QUESTION[0], {"role": "user", "content": [{"type": "text", "text": QUESTION[1]["content"]}, picture]}]
    endpoint = Endpoint(EndpointSettings("m", max_answer_tokens=9), 3)
    (plain, nine), (with_picture, _) = endpoint.most_tokens(QUESTION), endpoint.most_tokens(seen)
    assert nine == 9 and with_picture == plain + IMAGE_TOKENS


def test_a_server_that_takes_no_schema_is_asked_without_from_then_on():
    def script(asked: Asked) -> Reply:
        if "response_format" in asked.body:
            return Reply(status=400, error={"message": "response_format is not supported"})
        return Reply("plain")

    with LLMServer(script) as server:
        assert ask(server, times=3).text == "plain"
    assert ["response_format" in asked.body for asked in server.asked] == [True, False, False, False]


def test_a_refused_request_does_not_blame_the_schema():
    error = {"message": "flagged by the content filter", "code": "content_filter"}
    refused = pytest.raises(SubjectRefused, match=r"status 400 \(flagged by the content filter\)")
    with LLMServer(lambda asked: Reply(status=400, error=error)) as server, refused:
        ask(server)
    assert ["response_format" in asked.body for asked in server.asked] == [True, False]


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (401, {"message": f"Incorrect API key provided: {KEY}."}, "OPENAI_API_KEY"),
        (403, {"message": "no access"}, "OPENAI_API_KEY"),
        (404, {"message": "Not Found"}, "check base_url and the model's name 'm'"),
        (400, {"message": "The model `m` does not exist"}, "check base_url and the model's name 'm'"),
        (400, {"message": "no", "param": "model"}, "check base_url and the model's name 'm'"),
        (400, {"message": "Server is pinned to 'n'; requested 'm'."}, "check base_url and the model's name 'm'"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "no credit"),
        (400, {"message": "Unsupported parameter", "param": "max_tokens"}, "limit_field, which is 'max_tokens'"),
        (400, {"message": "Unsupported value", "param": "temperature"}, "change 'temperature' in the miner's"),
    ],
)
def test_what_goes_wrong_for_all_stops_the_miner(status, error, remedy):
    with (
        LLMServer(lambda asked: Reply(status=status, error=error)) as server,
        pytest.raises(EndpointStopped) as stopped,
    ):
        ask(server)
    line = str(stopped.value)
    assert line.startswith(f"{server.url} answered {status} (") and remedy in line and "\n" not in line
    assert KEY not in line
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reply", "reason", "unsettled"),
    [
        (Reply(drop=True), "connection failed", True),
        (Reply(hang=3), r"no answer within 0\.4 s", True),
        (Reply(raw=b'{"choices": ['), "no chat completion", True),
        (Reply(raw=b"<html>busy</html>", headers={"Content-Type": "text/html"}), "no chat completion", True),
        (Reply(raw=b"[]"), "no chat completion", True),
        (Reply(raw=b"[" * 100_000), "no chat completion", True),
        (Reply(raw=b'{"choices": [], "error": {"code": 502}}'), "no chat completion", True),
        (Reply(raw=b'{"choices": [{"message": {"content": [1]}}]}'), "no chat completion", True),
        (Reply(status=500, raw=b"oops"), "status 500", False),
        (Reply(status=503, error={"message": "loading\nmodel"}), r"status 503 \(loading model\)", False),
        (Reply(status=429, error={"message": "slow down"}), "status 429", False),
    ],
)
def test_what_may_go_well_next_time(reply, reason, unsettled):
    with LLMServer(lambda asked: reply) as server, pytest.raises(TryLater, match=reason) as later:
        ask(server, timeout=0.4 if reply.hang else 20)
    assert later.value.unsettled is unsettled and later.value.wait is None


def test_bytes_that_drip_are_a_hang():
    """A time-out that starts anew with every byte would never end."""
    with (
        LLMServer(lambda asked: Reply("slow", drip=0.05)) as server,
        pytest.raises(TryLater, match="no answer within"),
    ):
        ask(server, timeout=0.5)


def test_nobody_there():
    with LLMServer() as server:
        pass
    with pytest.raises(TryLater, match="connection failed"):
        ask(server)


@pytest.mark.parametrize(("header", "wait"), [("7", 7.0), ("0.25", 0.25), ("-3", 0.0), ("soon", None), ("nan", None)])
def test_the_wait_that_a_server_asks_for(header, wait):
    reply = Reply(status=429, headers={"Retry-After": header}, error={"message": "slow down"})
    with LLMServer(lambda asked: reply) as server, pytest.raises(TryLater) as later:
        ask(server)
    assert later.value.wait == wait


def test_a_wait_may_be_a_date():
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    reply = Reply(status=503, headers={"Retry-After": date}, error={"message": "down"})
    with LLMServer(lambda asked: reply) as server, pytest.raises(TryLater) as later:
        ask(server)
    assert 50 < later.value.wait <= 60


def test_a_wait_of_hours_stops_the_miner():
    reply = Reply(status=429, headers={"Retry-After": "7200"}, error={"message": "daily limit"})
    with LLMServer(lambda asked: reply) as server, pytest.raises(EndpointStopped, match="wants 7200 s of rest"):
        ask(server)


def test_a_key_that_is_sent_back_is_struck_out():
    with LLMServer(lambda asked: answer(finding(asked.headers["authorization"], "Cup"))) as server:
        found = ask(server)
    assert KEY not in found.text and "[key]" in json.loads(found.text)["interests"][0]["interest"]


def test_halves_of_characters_are_replaced():
    body = rb'{"choices": [{"message": {"content": "a\ud800b"}}]}'
    with LLMServer(lambda asked: Reply(raw=body)) as server:
        assert ask(server).text == "a?b"


def test_a_missing_key_is_said_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with LLMServer() as server, pytest.raises(HfGrError, match="set the environment variable OPENAI_API_KEY, or"):
        ask(server)
    assert not server.asked
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00e9\u00e8")
    with LLMServer() as server, pytest.raises(HfGrError, match="no header can carry") as error:
        ask(server)
    assert "\u00e9" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "no http"),
        ({"base_url": "http://me:hidden@host/v1"}, "must hold no credentials"),
        ({"base_url": "http://host/v1?key=hidden"}, "must hold no credentials"),
        ({"api_key_env": "sk-hidden"}, "must be the name of an environment variable"),
        ({"limit_field": "length"}, "limit_field is 'length'"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"attempts": 2.5}, r"attempts is 2\.5"),
        ({"timeout": "long"}, "timeout is 'long'"),
        ({"requests_per_minute": -1}, "requests_per_minute is -1"),
        ({"max_cost": 1.0}, "needs price_in and price_out"),
        ({"parameters": {"messages": []}}, "parameters must be"),
        ({"parameters": "hot"}, "parameters must be"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(HfGrError, match=message) as error:
        EndpointSettings("m", **settings)
    assert "\n" not in str(error.value) and "hidden" not in str(error.value)
