"""Starting and shutting down: signals, texts that still run, and the command itself."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from http_server import COMPLETIONS, PROBLEM, endless_server, events, long_text


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
