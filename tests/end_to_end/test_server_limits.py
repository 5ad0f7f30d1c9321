"""Bad input, full queues, clients that leave, stall or never finish, and shutting down."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import httpx
import openai
import pytest
import torch
from http_server import PROBLEM, endless, endless_server, events, lab_server
from openai import OpenAI

from easd.config import load_config
from easd.engine.generate import make_engine, make_requests
from easd.serve import limits
from easd.serve.metrics import Metrics
from easd.serve.scheduler import Job, Scheduler

CHAT, COMPLETIONS, DECODE = "/v1/chat/completions", "/v1/completions", "/easd/decode"
MESSAGES = [{"role": "user", "content": PROBLEM}]


@pytest.fixture(scope="module")
def server():
    with lab_server({"max_body": 20_000, "max_queue": 40}) as running:
        yield running


def still_serves(server):
    return server.complete(seed=1, temperature=0).status_code == 200


def refusal(response, status, *words):
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


BAD = {
    "no JSON": (b"{'model': 1}", "not JSON"),
    "half of it": (b'{"model": "lab-c", "prompt": "1', "not JSON"),
    "nothing": (b"", "missing"),
    "a list": (b"[]", "valid dictionary"),
    "deep": (b"[" * 9_000, "not JSON"),
    "no UTF-8": (b'{"model": "\xff"}', "body"),
    "long number": (b'{"model": "lab-c", "prompt": "1", "seed": ' + b"9" * 9_000 + b"}", "body"),
    "half a pair": (b'{"model": "lab-c", "prompt": "\\ud800"}', "prompt"),
    "half a pair as key": (b'{"model": "lab-c", "prompt": "1", "\\ud800": 1}', "string"),
    "no number": (b'{"model": "lab-c", "prompt": "1", "temperature": NaN}', "temperature"),
}


@pytest.mark.parametrize(("body", "word"), BAD.values(), ids=BAD)
def test_bodies_that_cannot_be_read(server, body, word):
    headers = {"content-type": "application/json"}
    response = httpx.post(server.url + COMPLETIONS, content=body, headers=headers)
    refusal(response, 400, word)
    assert still_serves(server)


def test_a_body_that_does_not_say_that_it_is_json_is_refused(server):
    """So a foreign page cannot make a browser post without asking first."""
    body = json.dumps({"model": "lab-c", "prompt": PROBLEM})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        headers = {"content-type": kind}
        refusal(httpx.post(server.url + COMPLETIONS, content=body, headers=headers), 400)


WRONG = {
    "n": [0, -1, 129, 10**30, "1", 1.5, True],
    "max_tokens": [0, "8", 1000, 10**30],
    "temperature": [-1, 2.1, "hot", 0.001, [1]],
    "top_p": [0, 1.1, -1],
    "top_k": [-2, 1.5],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [3],
    "frequency_penalty": [-3],
    "repetition_penalty": [0, 11],
    "seed": [2**63, "x"],
    "stop": ["", [""], ["x"] * 17, ["x" * 257], 5],
    "stream": ["yes", 1],
    "stream_options": [{"usage": True}, 1],
    "logit_bias": [{"x": 1}, {"109": 1}, {"-1": 1}, {"1": 101}, {"\u0661": 1}, [1]],
    "speculative": [
        {"rule": "unknown"},
        {"rule": 1},
        {"tau_h": -1},
        {"tau_h": "much"},
        {"tau_o": 2},
        {"top_n": 0},
        {"redraw": "maybe"},
        {"gamma": 3},
        {"rule": "speculative", "tau_h": 1},
        "easd",
        {"rule": None},
        {"conditions": "overlap"},
    ],
    "tools": [[{"type": "function"}]],
    "response_format": [{"type": "json_object"}],
    "temperatur": [1],
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in WRONG.items() for v in values], ids=repr
)
def test_fields_that_do_not_fit(server, field, value):
    error = refusal(server.complete(**{field: value}), 400)
    assert error["type"] == "invalid_request_error"
    if field not in ("speculative", "max_tokens"):
        assert error["param"].split(".")[0] == field
    response = server.post(CHAT, {"model": "lab-c", "messages": MESSAGES, field: value})
    refusal(response, 400)


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [1, "x"], [200], [-1], ["a", 1], 5, {"a": 1}, "1 " * 64, ["1"] * 129]
)
def test_prompts_that_do_not_fit(server, prompt):
    refusal(server.complete(prompt), 400)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        [{"role": "user"}],
        [{"content": "1"}],
        [{"role": "robot", "content": "1"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": ""}],
        MESSAGES * 2,
    ],
)
def test_conversations_that_do_not_fit(server, messages):
    refusal(server.post(CHAT, {"model": "lab-c", "messages": messages}), 400)


def test_fields_that_ask_for_nothing_are_taken(server):
    nothing = {
        "tools": [],
        "response_format": {"type": "text"},
        "n": None,
        "echo": False,
        "user": "x",
    }
    assert server.complete(**nothing).status_code == 200


def test_more_texts_than_allowed_in_all(server):
    refusal(server.complete([PROBLEM] * 30, n=5), 400, "128 texts")
    refusal(server.complete(n=49), 400, "8 + 40")


def test_what_is_not_there(server):
    error = refusal(server.post(CHAT, {"model": "gpt-5", "messages": MESSAGES}), 404, "lab-c")
    assert error["code"] == "model_not_found"
    refusal(httpx.get(server.url + "/v1/models/gpt-5"), 404)
    refusal(httpx.get(server.url + "/v2"), 404)
    refusal(httpx.get(server.url + CHAT), 405)
    refusal(server.post("/health", {}), 405)


def test_openais_client_raises_its_own_errors(server):
    with OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="is not served here"):
            client.completions.create(model="gpt-5", prompt="1")
        with pytest.raises(openai.BadRequestError, match="rule 'x' is not known"):
            client.completions.create(
                model="lab-c", prompt="1", extra_body={"speculative": {"rule": "x"}}
            )


def test_the_key():
    with lab_server({"api_key": "s3cret é"}) as server:
        key = "Bearer s3cret é".encode()
        for path in (CHAT, COMPLETIONS, DECODE):
            for wrong in (None, b"Bearer", b"Bearer s3cret", b"Basic " + key[7:], b"\xff"):
                headers = [] if wrong is None else [(b"authorization", wrong)]
                error = refusal(httpx.post(server.url + path, content=b"{", headers=headers), 401)
                assert error["code"] == "invalid_api_key"
        for path in ("/v1/models", "/easd/rules"):
            refusal(httpx.get(server.url + path), 401)
            right = httpx.get(server.url + path, headers=[(b"authorization", key)])
            assert right.status_code == 200
        for path in ("/health", "/version", "/metrics", "/"):
            assert httpx.get(server.url + path).status_code == 200


def test_a_full_queue_says_when_to_try_again():
    with endless_server({"max_queue": 1}, batch_size=1) as server:
        with httpx.stream("POST", server.url + COMPLETIONS, json=long_text()) as first:
            lines = first.iter_lines()
            next(lines)
            with httpx.stream("POST", server.url + COMPLETIONS, json=long_text()):
                server.wait_for("easd_texts_waiting", 1)
                response = server.complete("w5")
                error = refusal(response, 429, "at most 1")
                assert error["type"] == "rate_limit_error"
                assert 1 <= int(response.headers["retry-after"]) <= 60
                assert server.metrics()["easd_refused_requests_total"] == 1
            server.wait_for("easd_texts_waiting", 0)
        assert server.complete("w5", max_tokens=3).status_code == 200


def long_text(**body):
    return {"model": "endless", "prompt": "w5 w6", "max_tokens": 2000, "stream": True, **body}


def quiet(server):
    """Waits until nothing runs, and sees that nothing does."""
    server.wait_for("easd_texts_running", 0)
    decoded = server.metrics()["easd_generation_tokens_total"]
    time.sleep(0.3)
    assert server.metrics()["easd_generation_tokens_total"] == decoded < 1500


@pytest.mark.parametrize("path", [COMPLETIONS, DECODE])
def test_a_client_that_leaves_its_stream_frees_its_slot(path):
    with endless_server(batch_size=1) as server:
        body = long_text()
        if path == DECODE:
            del body["stream"]
        with httpx.stream("POST", server.url + path, json=body) as stream:
            next(stream.iter_lines())
        quiet(server)
        assert server.complete("w5", max_tokens=3).status_code == 200


def test_a_client_that_leaves_before_its_answer_frees_its_slots():
    with endless_server(batch_size=2) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + COMPLETIONS, json=long_text(stream=False, n=5), timeout=0.5)
        quiet(server)
        assert server.metrics()["easd_texts_waiting"] == 0


def test_a_cancelled_job_is_gone_within_one_step():
    pair = endless()
    settings = load_config(None, {"batch_size": 2, "max_new_tokens": 500}).settings
    steps = []

    def job(watched=False):
        requests = make_requests(pair, [[5, 6]], settings)
        observe = (lambda record, place: steps.append(len(record.rows))) if watched else None
        return Job(requests, settings, observe)

    async def scenario():
        scheduler = Scheduler(
            lambda settings, rows: make_engine(pair, settings, num_rows=rows),
            num_rows=2,
            max_waiting=2,
            metrics=Metrics("endless", 4),
        )
        running = asyncio.create_task(scheduler.run())
        leaving, staying, next_one = job(), job(watched=True), job()
        for one in (leaving, staying, next_one):
            scheduler.submit(one)
        await leaving.updates.get()
        await staying.updates.get()
        assert next_one.updates.empty()
        scheduler.cancel(leaving)
        seen = len(steps)
        await next_one.updates.get()
        # One step was under way, and the next one has the newcomer.
        assert len(steps) - seen <= 2
        assert leaving.updates.qsize() <= 1
        assert steps[-1] == 2
        running.cancel()

    asyncio.run(scenario())


def test_models_that_break_fail_their_requests_alone(server):
    with endless_server() as broken:
        weight = next(endless().target.parameters())
        kept = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.fill_(float("nan"))
            refusal(broken.complete("w5", max_tokens=4), 500, "NaN")
            (error,) = events(broken.complete("w5", max_tokens=4, stream=True))
            assert "NaN" in error["error"]["message"]
        finally:
            with torch.no_grad():
                weight.copy_(kept)
        assert broken.complete("w5", max_tokens=4).status_code == 200


def test_an_observer_that_fails_fails_its_request_alone(monkeypatch):
    monkeypatch.setattr("easd.serve.decode_events.tokens_table", None)
    with endless_server(batch_size=2) as server:
        url = server.url + COMPLETIONS
        with httpx.stream("POST", url, json=long_text(max_tokens=100)) as other:
            lines = other.iter_lines()
            next(lines)
            told = events(server.post(DECODE, {"prompt": "w5", "max_tokens": 9}))
            assert [event["type"] for event in told] == ["run", "error"]
            assert [line for line in lines if line][-1] == "data: [DONE]"


def raw(server, *chunks):
    """A connection that has sent these bytes."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    for chunk in chunks:
        connection.sendall(chunk)
    return connection


def head(path=COMPLETIONS, *lines):
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *lines, "", ""]
    ).encode()


def read_all(connection):
    """Everything until the server hangs up."""
    with connection:
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


@pytest.mark.parametrize("announced", [True, False])
def test_bodies_that_are_too_large(server, announced):
    body = json.dumps({"model": "lab-c", "prompt": "1 " * 20_000}).encode()
    content = body if announced else iter([body[:10_000], body[10_000:]])
    headers = {"content-type": "application/json"}
    response = httpx.post(server.url + COMPLETIONS, content=content, headers=headers)
    refusal(response, 413, "20000 bytes")


def test_a_body_that_never_ends(monkeypatch):
    monkeypatch.setattr("easd.serve.app.BODY_SECONDS", 0.5)
    with lab_server() as server:
        begun = time.monotonic()
        silent = raw(server, head(COMPLETIONS, "Content-Length: 100"), b"{")
        assert still_serves(server)
        answer = read_all(silent)
        assert b" 408 " in answer.splitlines()[0]
        assert b'"type":"invalid_request_error"' in answer
        assert time.monotonic() - begun < 10
        dripping = raw(server, head(COMPLETIONS, "Transfer-Encoding: chunked"))
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < 10:
                dripping.sendall(b"1\r\n{\r\n")
                time.sleep(0.02)
        assert time.monotonic() - begun < 10
        dripping.close()
        assert still_serves(server)


def test_connections_that_ask_for_nothing(monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.5)
    with lab_server() as server:
        idle = [raw(server) for _ in range(20)] + [raw(server, b"POST / HTT")]
        assert still_serves(server)
        for connection in idle:
            assert read_all(connection) == b""


def test_garbage_instead_of_http(server):
    assert b" 400 " in read_all(raw(server, b"\x00\xff garbage\r\n\r\n"))
    assert still_serves(server)


def test_more_connections_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(limits, "most_connections", lambda: 30)
    with lab_server() as server:
        held = [raw(server) for _ in range(30)]
        with pytest.raises(httpx.TransportError):
            server.complete()
        for connection in held:
            connection.close()
        for _ in range(100):
            try:
                assert still_serves(server)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        else:
            raise AssertionError("the server does not serve any more")


def test_a_thousand_connections(server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    held = []
    try:
        for _ in range(1000):
            held.append(raw(server))
        assert still_serves(server)
    finally:
        for connection in held:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert still_serves(server)


def test_a_reader_that_stalls(monkeypatch):
    monkeypatch.setattr(limits, "STALLED_SECONDS", 0.5)
    with endless_server({"max_queue": 200}, batch_size=1, coupling="shared") as server:
        body = json.dumps({"prompt": "w5", "max_tokens": 1900}).encode()
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", server.port))
        stalled.sendall(head(DECODE, f"Content-Length: {len(body)}") + body)
        server.wait_for("easd_texts_running", 1)
        server.wait_for("easd_texts_running", 0)
        assert server.complete("w5", max_tokens=3).status_code == 200
        received = read_all(stalled)
        assert b'"type":"rows"' in received
        assert b'"type":"end"' not in received


def test_shutting_down_lets_what_runs_end_and_refuses_the_rest():
    with endless_server(batch_size=1) as server:
        url = server.url + COMPLETIONS
        with httpx.stream("POST", url, json=long_text(max_tokens=150)) as first:
            lines = first.iter_lines()
            next(lines)
            with httpx.stream("POST", url, json=long_text()) as second:
                server.wait_for("easd_texts_waiting", 1)
                with httpx.Client() as kept:
                    kept.get(server.url + "/health")
                    server.server.should_exit = True
                    (error,) = events(second)
                    assert error["error"]["code"] == "shutting_down"
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_what_does_not_end_in_time_is_ended_cleanly():
    with endless_server({"grace": 0.3}) as server:
        with httpx.stream("POST", server.url + COMPLETIONS, json=long_text()) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.server.should_exit = True
            last = [line for line in lines if line][-1]
        assert json.loads(last[6:])["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(sign):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EASD_API_KEY": "k"}
    command = [sys.executable, "-m", "easd", "serve", "--pair", "lab-c", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stderr.readline()
        assert line.startswith("lab-c at http://127.0.0.1:")
        url = line.split()[-1]
        assert httpx.get(url + "/health").json() == {"status": "ok"}
        assert httpx.get(url + "/v1/models").status_code == 401
        headers = {"Authorization": "Bearer k"}
        body = {"model": "lab-c", "prompt": PROBLEM, "n": 64, "stream": True}
        with httpx.stream("POST", url + COMPLETIONS, json=body, headers=headers) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(sign)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_command_says_what_does_not_do(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use" in refused("serve", "--pair", "lab", "--port", port)
    assert "cannot listen" in refused("serve", "--host", "203.0.113.1", "--port", 0)
    assert "cannot listen" in refused("serve", "--port", 70_000)
    assert "lossless only" in refused("serve", "--lossless-only", "--rule", "easd")
    assert "max_queue = 0" in refused("serve", "--max-queue", 0)
    assert "max_model_len = 1" in refused("serve", "--max-model-len", 1)
    assert "the API key is empty" in refused("serve", "--api-key", "")
    assert "'gamm' is not known" in refused("serve", "--rule", "gamm")
