"""A server of the Chat Completions API on loopback that answers by a script, and counts what it was asked."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request, taken apart.

    Attributes:
        body: All of it.
        model: Whom it is for.
        data: The JSON object in the user's message: kind, text and, if asked again, your_answer and error.
        attempt: How many requests with this model and data came before.
        headers: Lower-case names.
    """

    body: dict[str, Any]
    model: str
    data: dict[str, str]
    attempt: int
    headers: dict[str, str]

    @property
    def again(self) -> bool:
        return "your_answer" in self.data


@dataclass(frozen=True)
class Reply:
    """What the server does: sends text as the model's answer, or another status or body; or drops the connection.

    `hang` are seconds before the answer, `drip` seconds between its bytes.
    """

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    raw: bytes | None = None
    drop: bool = False
    hang: float = 0.0
    drip: float = 0.0
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 20})


def finding(interest: str, evidence: str, confidence: float = 0.9) -> dict[str, Any]:
    return {"interest": interest, "evidence": evidence, "confidence": confidence}


def answer(*findings: dict[str, Any]) -> str:
    return json.dumps({"steps": "thought", "interests": list(findings)})


def last_words(asked: Asked) -> str:
    """A sound answer: an interest named after the last word of the text."""
    word = asked.data["text"].split()[-1]
    return answer(finding(f"liking {word}", word), finding("things", asked.data["text"].split()[0].strip(":"), 0.4))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Clients that are killed break their connections; that is no news."""


class LLMServer:
    """Runs from `with` to its end.

    Attributes:
        asked: Requests in the order of their arrival.
        answered: How often each (model, user's message) was answered with a completion, and in time.
    """

    def __init__(self, script: Callable[[Asked], Reply | str] = last_words) -> None:
        self.asked: list[Asked] = []
        self.answered: Counter[tuple[str, str]] = Counter()
        self.on_their_way = self.most_on_their_way = 0
        self._script = script
        self._seen: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> "LLMServer":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        content = body["messages"][1]["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        key = (body["model"], text)
        with self._lock:
            attempt = self._seen[key]
            self._seen[key] += 1
            headers = {name.lower(): value for name, value in handler.headers.items()}
            asked = Asked(body, body["model"], json.loads(text), attempt, headers)
            self.asked.append(asked)
            self.on_their_way += 1
            self.most_on_their_way = max(self.most_on_their_way, self.on_their_way)
        try:
            reply = self._script(asked)
            self._send(handler, Reply(reply) if isinstance(reply, str) else reply, key)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
        finally:
            with self._lock:
                self.on_their_way -= 1

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply, key: tuple[str, str]) -> None:
        if reply.hang:
            self._stop.wait(reply.hang)
        if reply.drop:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        completion = {
            "id": "x",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": key[0],
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply.text}}
            ],
        }
        if reply.usage is not None:
            completion["usage"] = reply.usage
        data = json.dumps(completion if reply.error is None else {"error": reply.error}).encode()
        data = data if reply.raw is None else reply.raw
        if reply.status == 200 and reply.raw is None and not reply.hang + reply.drip:
            with self._lock:
                self.answered[key] += 1
        handler.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if reply.drip:
            for place in range(len(data)):
                handler.wfile.write(data[place : place + 1])
                if self._stop.wait(reply.drip):
                    return
        else:
            handler.wfile.write(data)
