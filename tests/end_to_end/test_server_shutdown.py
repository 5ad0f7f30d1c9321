"""Starting and shutting down: signals, texts that still run, and the command itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest
from http_server import COMPLETIONS, PROBLEM, endless_server, events, long_text

from easd.serve import scheduler


def test_shutting_down_lets_what_runs_end_and_refuses_the_rest(monkeypatch):
    advance, steps = scheduler._advance, []
    with endless_server(batch_size=1) as server:

        def held(*arguments):
            """No step after the first until the server closes, so the text cannot end before."""
            while steps and server.app.scheduler.accepting:
                time.sleep(0.01)
            steps.append(arguments)
            return advance(*arguments)

        monkeypatch.setattr(scheduler, "_advance", held)
        with server.stream(COMPLETIONS, long_text(max_tokens=50)) as first:
            lines = first.iter_lines()
            next(lines)
            with server.stream(COMPLETIONS, long_text()) as second:
                server.wait_for("easd_texts_waiting", 1)
                with httpx.Client() as kept:
                    kept.get(server.url + "/health", timeout=60)
                    server.server.should_exit = True
                    (error,) = events(second)
                    assert error["error"]["code"] == "shutting_down"
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_one_signal_waits_for_the_chunk_of_a_long_prompt_and_no_longer(monkeypatch):
    """A text that has no token yet is refused as soon as the running step is over."""
    steps = []

    def chunk(engine, cancelled, *_):
        steps.append(engine)
        for request in cancelled:
            engine.cancel(request)
        time.sleep(0.5)
        return []

    monkeypatch.setattr(scheduler, "_advance", chunk)
    with endless_server() as server, server.stream(COMPLETIONS, long_text()) as stream:
        server.wait_for("easd_texts_running", 1)
        server.server.should_exit = True
        (error,) = events(stream)
        assert error["error"]["code"] == "shutting_down"
        taken = len(steps)
    assert len(steps) <= taken + 1  # the one that drops the text


def test_a_second_signal_ends_the_command_at_once():
    """Even within a step that takes minutes, and without a word."""
    code = (
        "import time; from easd.cli import main; from easd.serve import scheduler\n"
        "scheduler._advance = lambda *arguments: time.sleep(600)\n"
        "main(['serve', '--pair', 'lab-c', '--port', '0'])"
    )
    with _command(["-c", code]) as (process, url):
        body = {"model": "lab-c", "prompt": PROBLEM, "stream": True}
        with httpx.stream("POST", url + COMPLETIONS, json=body, timeout=60):
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 128 + signal.SIGTERM
        assert process.stderr.read() == ""


def test_what_does_not_end_in_time_is_ended_cleanly():
    with endless_server({"grace": 0.3}) as server:
        with server.stream(COMPLETIONS, long_text()) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.server.should_exit = True
            last = [line for line in lines if line][-1]
        assert json.loads(last[6:])["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(sign):
    command = ["-m", "easd", "serve", "--pair", "lab-c", "--port", "0"]
    with _command(command, EASD_API_KEY="k") as (process, url):
        assert httpx.get(url + "/health", timeout=60).json() == {"status": "ok"}
        assert httpx.get(url + "/v1/models", timeout=60).status_code == 401
        headers = {"Authorization": "Bearer k"}
        body = {"model": "lab-c", "prompt": PROBLEM, "n": 64, "stream": True}
        asked = {"json": body, "headers": headers, "timeout": 60}
        with httpx.stream("POST", url + COMPLETIONS, **asked) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(sign)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""


@contextmanager
def _command(arguments, **environment):
    """A process that serves lab-c, and its address."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    try:
        line = process.stderr.readline()
        assert line.startswith("lab-c at http://127.0.0.1:")
        yield process, line.split()[-1]
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
