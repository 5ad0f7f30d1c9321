"""An OpenAI-compatible server over the project's engine, and a proxy that spoils what passes it.

Both listen on real sockets in threads of the test's process.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from transformers.utils import logging as hf_logging

from easd import load_pair
from easd.config import parse_rule
from easd.engine.generate import generate
from easd.engine.settings import Settings
from easd.errors import EasdError

Fault = Callable[["_Handler"], None]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.answer(self)

    def do_POST(self) -> None:
        self.server.answer(self)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def reply(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        pass  # A client that went away is what some tests are about.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class LabServer(_Threads):
    """Serves a lab pair; `speculative` in a request names its rule unless `plain`."""

    def __init__(self, *, plain: bool = False, key: str | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        hf_logging.disable_progress_bar()  # Commands under test must say one line and no more.
        self.pair = load_pair("lab-a", device="cpu")
        self.plain, self.key = plain, key
        self.models = ["lab"]
        self.decoding = threading.Lock()
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.under_way = self.most_under_way = 0

    def answer(self, handler: _Handler) -> None:
        body = handler.body()
        if self.key and handler.headers.get("authorization") != f"Bearer {self.key}":
            return handler.reply(401, {"error": {"message": "wrong key"}})
        path = handler.path.removeprefix("/v1")
        if path == "/models":
            return handler.reply(200, {"data": [{"id": name} for name in self.models]})
        if path == "/version":
            return handler.reply(200, {"version": "0.0-test"})
        if path not in ("/chat/completions", "/completions"):
            return handler.reply(404, {"detail": "Not Found"})
        request = json.loads(body)
        self.seen.append((path, request))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            with self.decoding:
                found = self.complete(request, chat=path == "/chat/completions")
            self.under_way -= 1
            return handler.reply(200, found)
        except EasdError as error:
            self.under_way -= 1
            return handler.reply(400, {"error": {"message": str(error)}})

    def complete(self, request: dict[str, Any], *, chat: bool) -> dict[str, Any]:
        asked = {} if self.plain else dict(request.get("speculative") or {})
        rule = parse_rule({"name": asked.pop("rule", "speculative"), **asked})
        prompt = request["messages"][-1]["content"] if chat else request["prompt"]
        settings = Settings(
            rule=rule,
            temperature=request["temperature"],
            top_p=request["top_p"],
            seed=request["seed"],
            max_new_tokens=request["max_tokens"],
        )
        (text,) = generate(
            self.pair.target,
            self.pair.draft,
            [prompt],
            tokenizer=self.pair.tokenizer,
            settings=settings,
        )
        counts = text.counts
        usage: dict[str, Any] = {
            "prompt_tokens": len(text.prompt_ids),
            "completion_tokens": len(text.token_ids),
        }
        if not self.plain:
            usage["completion_tokens_details"] = {
                "target_forwards": counts.blocks,
                "drafted_tokens": counts.proposed,
                "examined_tokens": counts.examined,
                "accepted_tokens": counts.accepted,
                "penalised_tokens": counts.penalised,
            }
        written = {"message": {"content": text.text}} if chat else {"text": text.text}
        reason = "length" if text.finish_reason == "length" else "stop"
        return {"choices": [{**written, "finish_reason": reason}], "usage": usage}


@dataclass
class Faults:
    """Which requests for texts are spoiled: `plan` by number, counted from 0."""

    plan: dict[int, Fault] = field(default_factory=dict)
    otherwise: Fault | None = None
    count: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> Fault | None:
        with self.lock:
            fault = self.plan.get(self.count, self.otherwise)
            self.count += 1
            if fault is not None:
                self.hits[fault.__name__] += 1
            return fault


class Proxy(_Threads):
    """Passes requests on, but for those that its faults take."""

    def __init__(self, behind: str, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.faults = behind.removesuffix("/v1"), faults

    def answer(self, handler: _Handler) -> None:
        body = handler.body()
        fault = self.faults.next() if handler.command == "POST" else None
        if fault is not None:
            return fault(handler)
        request = urllib.request.Request(
            self.behind + handler.path, data=body or None, method=handler.command
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return handler.reply(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return handler.reply(error.code, error.read())


def too_many(handler: _Handler) -> None:
    handler.reply(429, {"error": {"message": "too many requests"}}, Retry_After="1")


def broken(handler: _Handler) -> None:
    handler.reply(500, b"<html>Internal Server Error</html>")


def hang(handler: _Handler) -> None:
    time.sleep(5)


def drop(handler: _Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(2)


def half(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    drop(handler)


def garbage(handler: _Handler) -> None:
    handler.reply(200, b'{"choices": [{"text": ')


def nested(handler: _Handler) -> None:
    handler.reply(200, b"[" * 100_000)


def refused_in_depth(handler: _Handler) -> None:
    handler.reply(400, b"[" * 100_000)


def other_json(handler: _Handler) -> None:
    handler.reply(200, {"choices": []})


@contextmanager
def running(server: _Threads) -> Iterator[Any]:
    """The server, listening."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
