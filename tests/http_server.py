"""The project's own server on a real socket, in a thread of the test's process."""

import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import httpx
from models import llama_pair, word_tokenizer

from easd.config import RunConfig, load_config
from easd.engine.pair import Pair
from easd.pairs.loading import load_pair
from easd.serve.app import App
from easd.serve.run import http_server
from easd.serve.serving import Serving

PROBLEM = "82 + 7 - 8 - 11 + 27 ?"
CHAT, COMPLETIONS, DECODE = "/v1/chat/completions", "/v1/completions", "/easd/decode"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that listens.

    Attributes:
        app: what it serves.
        server: uvicorn's.
        port: where it listens.
    """

    app: App
    server: object
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: object, **named) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **named)

    def stream(self, path: str, body: object):
        """A context in which the answer to a request comes as it is made."""
        return httpx.stream("POST", self.url + path, json=body, timeout=60)

    def complete(self, prompt: str = PROBLEM, **body) -> httpx.Response:
        """A completion of the one model there is."""
        return self.post("/v1/completions", {"model": self.app.pair.name, "prompt": prompt, **body})

    def metrics(self) -> dict[str, float]:
        """Metrics by name and labels."""
        lines = httpx.get(self.url + "/metrics", timeout=60).text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        label = re.compile(r'(?<=[{,])model_name="[^"]*",?')
        return {
            label.sub("", name).replace(",}", "}").removesuffix("{}"): float(value)
            for name, value in pairs
        }

    def wait_for(self, metric: str, value: float) -> None:
        """Waits until a metric has a value."""
        for _ in range(500):
            if self.metrics()[metric] == value:
                return
            time.sleep(0.02)
        raise AssertionError(f"{metric} is {self.metrics()[metric]}, not {value}")


@contextmanager
def running(pair: Pair, config: RunConfig, *, grace: float = 30.0, **options):
    """Serves a pair until the block is left."""
    app = App(pair, Serving(config=config, **options))
    server = http_server(app, grace=grace)
    taken = socket.create_server(("127.0.0.1", 0))
    # What the system buffers for clients that do not read would hold a whole text.
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    thread = threading.Thread(target=server.run, args=([taken],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server died while it started"
            time.sleep(0.01)
        yield Running(app=app, server=server, port=taken.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@cache
def lab() -> Pair:
    return load_pair("lab-c")


def lab_server(options=None, **settings):
    """The lab pair, whose texts end by themselves after some twenty tokens."""
    return running(lab(), load_config(None, {"pair": "lab-c", **settings}), **(options or {}))


@cache
def endless() -> Pair:
    """A random pair whose texts end at no token, 2048 tokens long."""
    target, draft = llama_pair()
    tokenizer = deepcopy(word_tokenizer())
    tokenizer.eos_token = None
    return Pair(name="endless", target=target, draft=draft, tokenizer=tokenizer)


def endless_server(options=None, **settings):
    config = load_config(None, {"target": "endless", "draft": "endless", **settings})
    return running(endless(), config, **(options or {}))


def events(response: httpx.Response) -> list[dict]:
    """The events of a stream, without OpenAI's end mark."""
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


def still_serves(server) -> bool:
    """Whether a plain request is answered."""
    return server.complete(seed=1, temperature=0).status_code == 200


def refusal(response: httpx.Response, status: int, *words: str) -> dict:
    """The one error of a response, which must be in OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    for word in words:
        assert word in error["message"]
    return error


def long_text(**body):
    """The body of a text of the endless pair that does not end soon."""
    return {"model": "endless", "prompt": "w5 w6", "max_tokens": 2000, "stream": True, **body}
