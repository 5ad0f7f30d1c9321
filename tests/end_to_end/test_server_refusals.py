"""Requests that the server refuses: what cannot be read, does not fit, or is not there."""

import json

import httpx
import openai
import pytest
from http_server import CHAT, COMPLETIONS, DECODE, PROBLEM, lab_server, refusal, still_serves
from openai import OpenAI

MESSAGES = [{"role": "user", "content": PROBLEM}]


@pytest.fixture(scope="module")
def server():
    with lab_server({"max_body": 20_000, "max_queue": 40}) as running:
        yield running


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
