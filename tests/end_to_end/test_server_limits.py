"""Full queues, clients that leave, stall or never finish, and models that break."""

import contextlib
import json
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
import torch
from http_server import (
    COMPLETIONS,
    DECODE,
    endless,
    endless_server,
    events,
    lab_server,
    long_text,
    refusal,
    still_serves,
)

from easd.serve import limits
from easd.serve.serving import Reader, Serving


@pytest.fixture(scope="module")
def server():
    with lab_server({"max_body": 20_000, "max_queue": 40}) as running:
        yield running


def test_a_full_queue_says_when_to_try_again():
    with endless_server({"max_queue": 1}, batch_size=1) as server:
        with server.stream(COMPLETIONS, long_text()) as first:
            lines = first.iter_lines()
            next(lines)
            with server.stream(COMPLETIONS, long_text()):
                server.wait_for("easd_texts_waiting", 1)
                response = server.complete("w5")
                error = refusal(response, 429, "at most 1")
                assert error["type"] == "rate_limit_error"
                assert 1 <= int(response.headers["retry-after"]) <= 60
                assert server.metrics()["easd_refused_requests_total"] == 1
            server.wait_for("easd_texts_waiting", 0)
        assert server.complete("w5", max_tokens=3).status_code == 200


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
        with server.stream(path, body) as stream:
            next(stream.iter_lines())
        quiet(server)
        assert server.complete("w5", max_tokens=3).status_code == 200


def test_a_client_that_leaves_before_its_answer_frees_its_slots():
    with endless_server(batch_size=2) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + COMPLETIONS, json=long_text(stream=False, n=5), timeout=0.5)
        quiet(server)
        assert server.metrics()["easd_texts_waiting"] == 0


def test_while_a_prompt_is_tokenized_the_server_answers_others(monkeypatch):
    reading, go_on = threading.Event(), threading.Event()
    prompts = Reader.prompts

    def slow(self, given):
        reading.set()
        assert go_on.wait(60)
        return prompts(self, given)

    monkeypatch.setattr(Reader, "prompts", slow)
    with endless_server() as server, ThreadPoolExecutor(1) as thread:
        answer = thread.submit(server.complete, "w5", max_tokens=3)
        try:
            assert reading.wait(60)
            assert httpx.get(server.url + "/health", timeout=60).status_code == 200
        finally:
            go_on.set()
        assert answer.result().status_code == 200


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
    with (
        endless_server(batch_size=2) as server,
        server.stream(COMPLETIONS, long_text(max_tokens=100)) as other,
    ):
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
        [
            f"POST {path} HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/json",
            *lines,
            "",
            "",
        ]
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


def test_the_page_names_the_limits():
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    page = " ".join(text.split())
    assert f"the body took longer than {limits.BODY_SECONDS:g} seconds" in page
    assert f"send no request within {limits.HEAD_SECONDS:g} seconds are closed" in page
    assert f"its connection is closed after {limits.STALLED_SECONDS:g} seconds" in page
    default = {field.name: field.default for field in fields(Serving)}
    assert f"more than `--max-body` bytes ({default['max_body'] >> 20} MiB)" in page
    assert f"Up to `--max-queue` texts ({default['max_queue']}) wait" in page


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


def stalled(server):
    """A connection whose client asks for a long text and does not read."""
    body = json.dumps({"prompt": "w5", "max_tokens": 1900}).encode()
    connection = socket.socket()
    connection.settimeout(120)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(head(DECODE, f"Content-Length: {len(body)}") + body)
    server.wait_for("easd_texts_running", 1)
    return connection


def test_a_reader_that_stalls(monkeypatch):
    monkeypatch.setattr(limits, "STALLED_SECONDS", 0.5)
    with endless_server({"max_queue": 200}, batch_size=1, coupling="shared") as server:
        waiting = stalled(server)
        server.wait_for("easd_texts_running", 0)
        assert server.complete("w5", max_tokens=3).status_code == 200
        received = read_all(waiting)
        assert b'"type":"rows"' in received
        assert b'"type":"end"' not in received


def test_a_reader_that_goes_on_is_not_cut_off(monkeypatch):
    monkeypatch.setattr(limits, "STALLED_SECONDS", 1000)
    with (
        endless_server({"max_queue": 200}, batch_size=1, coupling="shared") as server,
        stalled(server) as reading,
    ):
        connections = server.server.server_state.connections
        while not (timers := [one._writing_timer for one in [*connections] if one._writing_timer]):
            time.sleep(0.02)
        while not timers[0].cancelled():
            assert reading.recv(65536)
