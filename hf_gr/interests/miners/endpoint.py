"""Any server that speaks the Chat Completions API: hosted models, vLLM, llama.cpp, `transformers serve`."""

import asyncio
import json
import math
import os
import re
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

from ...errors import HfGrError
from ..answer_cache import Answer
from ..prompts import Message, answer_schema


MAX_RETRY_AFTER = 600.0  # seconds; a server that wants more is left alone in this run
IMAGE_TOKENS = 4096  # room for a picture in the budget: more than hosted models count
_LATER = {408, 409, 425, 429}  # and 5xx: what may go well next time
_NEVER = {401, 402, 403, 404, 405}  # what goes wrong for every subject
_NEVER_CODES = {"model_not_found", "insufficient_quota", "invalid_api_key"}
_WRONG_MODEL = re.compile(
    r"model.{0,120}(not found|not exist|not available|unknown)|(unknown|invalid|no such) model|pinned to", re.I | re.S
)


@dataclass
class EndpointSettings:
    """Settings of a miner of kind `openai`.

    Attributes:
        model: Name of the model there. Answers are kept under it, so models that differ need names that differ.
        base_url: The endpoint; it ends in `/v1` as a rule.
        api_key_env: Environment variable that holds the key; `None` for a server that wants none.
        concurrency: Requests on their way at a time.
        requests_per_minute: Started at most; no limit if `None`.
        timeout: Seconds until an attempt counts as hanging.
        attempts: Of one request, at most.
        stop_after: So many failures in a row (those of requests that were on their way together count once), or
            refusals of subjects, stop the miner.
        first_wait: Seconds to wait after a first failure; twice that after the next, and so on up to 30.
        max_answer_tokens: Length of an answer, at most.
        limit_field: What the server calls that; newer hosted models want `max_completion_tokens`.
        schema: Whether to ask for the JSON schema. Answers are checked in any case.
        parameters: Further fields of the request, such as `temperature`.
        text_only: Whether pictures are kept from it.
        max_tokens_total: Of all answers that go into the result, kept ones too: nothing is asked beyond.
        max_cost: The same in money, by `price_in` and `price_out` per million tokens.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = "OPENAI_API_KEY"
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 120.0
    attempts: int = 8
    stop_after: int = 10
    first_wait: float = 0.5
    max_answer_tokens: int = 1000
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    schema: bool = True
    parameters: dict[str, Any] = field(default_factory=lambda: {"temperature": 0})
    text_only: bool = False
    max_tokens_total: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HfGrError(f"base_url {_bare(self.base_url)!r} is no http(s) address; give one that ends in /v1.")
        if parts.username is not None or parts.query or parts.fragment:
            raise HfGrError(
                f"base_url {_bare(self.base_url)!r} must hold no credentials and no query; put the key into an "
                "environment variable and name that in api_key_env."
            )
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(self.api_key_env)):
            raise HfGrError("api_key_env must be the name of an environment variable, not the key itself.")
        if self.limit_field not in ("max_tokens", "max_completion_tokens"):
            raise HfGrError(f"limit_field is {self.limit_field!r}; use max_tokens or max_completion_tokens.")
        for name in ("concurrency", "attempts", "stop_after", "max_answer_tokens"):
            check_number(name, vars(self)[name], whole=True)
        for name in ("timeout", "first_wait"):
            check_number(name, vars(self)[name])
        for name in ("requests_per_minute", "max_tokens_total", "max_cost"):
            if vars(self)[name] is not None:
                check_number(name, vars(self)[name])
        for name in ("price_in", "price_out"):
            if vars(self)[name] is not None:
                check_number(name, vars(self)[name], zero=True)
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise HfGrError("max_cost needs price_in and price_out, the prices of a million tokens; give both.")
        taken = {"model", "messages", "stream", "n", "response_format", "max_tokens", "max_completion_tokens"}
        if not isinstance(self.parameters, dict) or taken & self.parameters.keys():
            raise HfGrError(f"parameters must be fields of the request other than {', '.join(sorted(taken))}.")

    @property
    def kept_as(self) -> str:
        """The model's name in the cache."""
        return self.model

    @property
    def options(self) -> dict[str, Any]:
        """What shapes an answer beside model and messages."""
        return {"max_answer_tokens": self.max_answer_tokens, "schema": self.schema, "parameters": self.parameters}

    def api_key(self) -> str | None:
        """The key. Raises [`HfGrError`] if it should be in the environment and is not."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise HfGrError(
                f"the key for {self.base_url} is missing: set the environment variable {self.api_key_env}, or "
                "api_key_env: null for a server that wants none."
            )
        if not key.isascii() or not key.isprintable():
            raise HfGrError(f"the key in {self.api_key_env} has characters that no header can carry; set it again.")
        return key


class EndpointStopped(Exception):
    """Something that goes wrong for every subject; the message is for the user."""


class SubjectRefused(Exception):
    """The server does not take this request, and would not take it again."""


class TryLater(Exception):
    """An attempt that failed and may go well next time.

    Attributes:
        wait: Seconds that the server asks for, if it says.
        unsettled: Whether the model may have worked, and be paid, for it.
    """

    def __init__(self, reason: str, wait: float | None = None, unsettled: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.unsettled = unsettled


class Endpoint:
    """A model behind the Chat Completions API. One attempt a call: [`Asker`] decides on further ones.

    (The client's own retries would pass by the limits of rate and budget, and could not hold back other requests.)

    Args:
        settings: What to ask, and where.
        max_interests: For the schema.
    """

    def __init__(self, settings: EndpointSettings, max_interests: int) -> None:
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise HfGrError("miners of kind openai need the client: pip install 'hf-gr[llm]'.") from None

        self.settings = settings
        self.schema_refused = False
        self._schema = answer_schema(max_interests)
        self._key = settings.api_key()
        self._client = AsyncOpenAI(
            api_key=self._key or "none", base_url=settings.base_url, max_retries=0, timeout=settings.timeout
        )

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._client.close()

    def most_tokens(self, messages: list[Message]) -> tuple[int, int]:
        """What a request can cost at most, in tokens read and written: no tokenizer makes more tokens than bytes."""
        read = 0
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            read += sum(len(part["text"].encode()) if part["type"] == "text" else IMAGE_TOKENS for part in parts) + 16
        return read, self.settings.max_answer_tokens

    async def answer(self, messages: list[Message]) -> Answer:
        """One attempt.

        Raises:
            EndpointStopped: If no request can go well.
            SubjectRefused: If this one cannot.
            TryLater: If another attempt may.
        """
        with_schema = self.settings.schema and not self.schema_refused
        try:
            return await self._attempt(messages, with_schema)
        except SubjectRefused:
            if not with_schema:
                raise
        found = await self._attempt(messages, False)  # goes well: it was the schema that the server did not take
        self.schema_refused = True
        return found

    async def _attempt(self, messages: list[Message], with_schema: bool) -> Answer:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            async with asyncio.timeout(self.settings.timeout):  # the client's own starts anew with every byte
                response = await self._client.chat.completions.with_raw_response.create(
                    **self._request(messages, with_schema)
                )
        except (TimeoutError, APITimeoutError):
            raise TryLater(f"no answer within {self.settings.timeout:g} s", unsettled=True) from None
        except APIStatusError as error:
            raise self._status(error.status_code, error.body, error.response.headers.get("retry-after")) from None
        except APIConnectionError as error:
            cause = " ".join(str(error.__cause__ or error).split()) or "closed"
            raise TryLater(self._clean(f"connection failed ({cause})"), unsettled=True) from None
        return self._read(response.content, messages)

    def _request(self, messages: list[Message], with_schema: bool) -> dict[str, Any]:
        settings = self.settings
        request: dict[str, Any] = {"model": settings.model, "messages": messages}
        request[settings.limit_field] = settings.max_answer_tokens
        if with_schema:
            form = {"name": "interests", "schema": self._schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        if settings.parameters:
            request["extra_body"] = settings.parameters
        return request

    def _read(self, content: bytes, messages: list[Message]) -> Answer:
        try:
            body = json.loads(content)
            text = body["choices"][0]["message"]["content"] or ""
            text = self._clean(text.encode("utf-8", "replace").decode())
            usage = body.get("usage") or {}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise TryLater("what it sent is no chat completion", unsettled=True) from None
        most = self.most_tokens(messages)[0], len(text.encode())  # for servers that do not count
        return Answer(text, _count(usage, "prompt_tokens", most[0]), _count(usage, "completion_tokens", most[1]))

    def _status(self, status: int, body: object, retry_after: str | None) -> Exception:
        error = body.get("error", body) if isinstance(body, dict) else body
        facts = error if isinstance(error, dict) else {"message": error}
        said = self._clean(" ".join(str(facts.get("message") or facts.get("detail") or error or "no reason").split()))
        said = said if len(said) <= 200 else f"{said[:200]}…"
        parameter = facts.get("param")
        where = f"{self.settings.base_url} answered {status} ({said})"
        wrong_model = status in (400, 422) and _WRONG_MODEL.search(said)
        wrong_setting = status in (400, 422) and parameter in self._request([], False).keys() - {"messages"} | (
            self.settings.parameters.keys()
        )
        if status in _NEVER or facts.get("code") in _NEVER_CODES or wrong_model or wrong_setting:
            return EndpointStopped(f"{where}; {self._remedy(status, bool(wrong_model), str(parameter))}")
        if status in _LATER or status >= 500:
            wait = _seconds(retry_after)
            if wait is not None and wait > MAX_RETRY_AFTER:
                return EndpointStopped(f"{where} and wants {wait:.0f} s of rest; run the same command again then.")
            return TryLater(f"status {status} ({said})", wait)
        return SubjectRefused(f"status {status} ({said})")

    def _remedy(self, status: int, wrong_model: bool, parameter: str) -> str:
        if status in (401, 403):
            return f"check the key in the environment variable {self.settings.api_key_env} and what it may use."
        if status in (402, 429):
            return "the account has no credit left: add some."
        if status in (404, 405) or wrong_model or parameter == "model":
            return f"check base_url and the model's name {self.settings.model!r}."
        if parameter in ("max_tokens", "max_completion_tokens"):
            return f"change limit_field, which is {self.settings.limit_field!r}."
        return f"change {parameter!r} in the miner's parameters."

    def _clean(self, text: str) -> str:
        """Without the key, which a server may send back."""
        return text.replace(self._key, "[key]") if self._key else text


def _count(usage: dict[str, Any], name: str, otherwise: int) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and 0 <= value < 2**40 else otherwise


def _seconds(retry_after: str | None) -> float | None:
    """Of a `Retry-After` header: seconds, or a date."""
    if retry_after is None:
        return None
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            wait = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    return max(wait, 0.0) if math.isfinite(wait) else None


def _bare(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url).split("?")[0].split("#")[0]


def check_number(name: str, value: object, *, whole: bool = False, zero: bool = False) -> None:
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not math.isfinite(value) or value < 0 or (value == 0 and not zero):  # type: ignore[arg-type,operator]
        raise HfGrError(f"{name} is {value!r}; give a {'whole ' if whole else ''}number above 0.")
