"""Requests that the server refuses: what cannot be read, does not fit, or is not there."""

import json
import time
from dataclasses import fields, replace

import httpx
import openai
import pytest
from http_server import (
    CHAT,
    COMPLETIONS,
    DECODE,
    PROBLEM,
    endless_server,
    lab_server,
    refusal,
    still_serves,
)
from openai import OpenAI

from easd.core.rules import RULES
from easd.engine.settings import Settings
from easd.fields import described
from easd.serve.requests import SAMPLING

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


def error_of(server, path=COMPLETIONS, **body):
    """The error that a body gets: its field is named, and nothing is repeated at length."""
    response = server.post(path, {"model": "lab-c", **body})
    assert len(response.content) < 1500
    assert " at 0x" not in response.text
    return refusal(response, 400)


HUGE = [10**30, 10**400, -(10**400)]
RULE_FIELDS = [
    ({"rule": name, field.name: value}, field.name)
    for name, kind in RULES.items()
    for field in described(kind).values()
    if field.kind in (int, float)
    for value in (HUGE if field.kind is int else HUGE[1:])
]
HOSTILE_RULES = [
    ({"top_n": 2**40}, "top_n"),
    ({"rule": "fly", "window": 2**40}, "window"),
    ({"conditions": ["overlap"] * 900}, "conditions"),
    ({"conditions": ["x" * 9000]}, "conditions"),
    ({"redraw": "x" * 9000}, "redraw"),
    ({"rule": "x" * 9000}, "rule"),
    ({"x" * 9000: 1}, "no field"),
    ({"name": "target"}, "no field 'name'"),
    ({"rule": "easd", "name": "target"}, "no field 'name'"),
]


@pytest.mark.parametrize(("asked", "word"), RULE_FIELDS + HOSTILE_RULES, ids=lambda v: str(v)[:40])
def test_no_field_of_a_rule_takes_more_than_it_can_hold(server, asked, word):
    error = error_of(server, prompt="1", speculative=asked)
    assert word in error["message"]
    assert error["param"] == "speculative"


def content(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        (COMPLETIONS, {"logit_bias": {"9" * 5000: 1}}, "logit_bias", "names '999"),
        (COMPLETIONS, {"logit_bias": {"x" * 9000: "x"}}, "logit_bias.xxx", "valid number"),
        (COMPLETIONS, {"stop": ""}, "stop", "at least 1 character"),
        (COMPLETIONS, {"stop": ["a", ""]}, "stop.1", "at least 1 character"),
        (COMPLETIONS, {"stop": 5}, "stop", "a text or a list of texts"),
        (COMPLETIONS, {"stop": [5]}, "stop", "a text or a list of texts"),
        (COMPLETIONS, {"prompt": 5}, "prompt", "a text, token ids"),
        (COMPLETIONS, {"prompt": []}, "prompt", "at least 1 item"),
        (COMPLETIONS, {"prompt": [10**400]}, "prompt.0", "less than"),
        (COMPLETIONS, {"prompt": [[1], [-1]]}, "prompt.1.0", "0"),
        (COMPLETIONS, {"model": "x" * 9000}, "model", "512 characters"),
        (COMPLETIONS, {"x" * 9000: 1}, "xxx", "is not a field"),
        (COMPLETIONS, {"top_k": 10**400}, "top_k", "less than"),
        (COMPLETIONS, {"max_tokens": 10**400}, "max_tokens", "less than"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "text parts"),
        (CHAT, content({"type": "image_url"}), "messages.0.content.0.type", "'text'"),
        (CHAT, content({"type": "text", "text": 5}), "messages.0.content.0.text", "string"),
    ],
)
def test_an_error_names_the_field_and_is_short(server, path, body, param, says):
    given = {"prompt": "1"} if path == COMPLETIONS else {}
    error = error_of(server, path, **{**given, **body})
    assert error["param"].startswith(param)
    assert says in error["message"]
    assert len(error["message"]) < 300


def test_a_path_is_not_repeated_at_length(server):
    for path in ("/v1/models/", "/"):
        response = httpx.get(server.url + path + "x" * 9000)
        refusal(response, 404)
        assert len(response.content) < 500


def test_too_many_prompts_are_refused_before_any_is_tokenized(monkeypatch):
    """And so are ids past the context window; none of it computes for long."""
    with lab_server() as server:
        monkeypatch.setattr(type(server.app.pair.tokenizer), "__call__", None)
        monkeypatch.setattr(type(server.app.pair.tokenizer), "_encode_plus", None)
        for prompt, says in [
            (["1"] * 170_000, "at most 128"),
            ([[1]] * 170_000, "at most 128"),
            ([5] * 200_000, "200000 tokens"),
            ([["1"] * 2, [5] * 200_000], "prompt"),
            ([-5] * 200_000, "prompt.0"),
            ([[5] * 65, [5] * 65], "65 tokens"),
        ]:
            begun = time.process_time()
            refusal(server.complete(prompt), 400, says)
            assert time.process_time() - begun < 3
        messages = [{}] * 200_000
        begun = time.process_time()
        refusal(server.post(CHAT, {"model": "lab-c", "messages": messages}), 400, "messages")
        unknown = {f"field{number}": 1 for number in range(40_000)}
        refusal(server.complete(**unknown), 400, "is not a field")
        assert time.process_time() - begun < 5


def test_requests_under_another_name_than_the_servers_are_refused(server):
    """A foreign name that resolves to this machine is another site's page."""
    url = server.url + "/easd/rules"
    port = server.port
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "192.0.2.7"):
        error = refusal(httpx.get(url, headers={"host": host}), 403, "--allowed-host")
        assert error["code"] == "wrong_host"
        for path in ("/", "/health", CHAT):
            assert httpx.get(server.url + path, headers={"host": host}).status_code == 403
    for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", f"[::1]:{port}", "127.1.2.3"):
        assert httpx.get(url, headers={"host": host}).status_code == 200


def test_further_names_can_be_allowed_or_all():
    with lab_server({"hosts": ("proxy.example",)}) as server:
        for host, status in (("proxy.example:443", 200), ("evil.example", 403)):
            got = httpx.get(server.url + "/health", headers={"host": host})
            assert got.status_code == status
    with lab_server({"hosts": None}) as server:
        got = httpx.get(server.url + "/health", headers={"host": "evil.example"})
        assert got.status_code == 200


def test_a_name_of_ones_own_for_the_model():
    with lab_server({"served_model_name": "mine"}) as server:
        (listed,) = httpx.get(server.url + "/v1/models").json()["data"]
        assert listed["id"] == "mine"
        for name in ("mine", "lab-c"):
            answer = server.post(COMPLETIONS, {"model": name, "prompt": PROBLEM, "max_tokens": 2})
            assert answer.json()["model"] == "mine"
        refusal(server.post(COMPLETIONS, {"model": "x", "prompt": PROBLEM}), 404, "use 'mine'")


def test_the_targets_name_alone_will_do():
    with endless_server() as server:  # of --target endless --draft endless
        config = replace(server.app.serving.config, target="org/model")
        server.app.serving = replace(server.app.serving, config=config)
        body = {"model": "org/model", "prompt": "w5", "max_tokens": 2}
        assert server.post(COMPLETIONS, body).status_code == 200


def test_every_setting_of_a_text_can_be_asked_for(server):
    """An option is declared once: with the settings."""
    schema = httpx.get(server.url + "/openapi.json").json()["components"]["schemas"]
    of_engine = {"rule", "gamma", "least_block_prob", "drafter", "batch_size", "n"}
    names = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
    for body in ("CompletionRequest", "ChatCompletionRequest", "DecodeRequest"):
        for setting in {field.name for field in fields(Settings)} - of_engine:
            assert names.get(setting, setting) in schema[body]["properties"], (body, setting)
    words = server.complete(seed=1, temperature=0, bad_words=["="], min_tokens=30, max_tokens=30)
    (choice,) = words.json()["choices"]
    assert words.json()["usage"]["completion_tokens"] == 30
    assert "=" not in choice["text"].split()


def test_no_setting_of_a_text_takes_more_than_it_can_hold(server):
    for setting, name in SAMPLING.items():
        field = described(Settings)[setting]
        if field.kind in (int, float):
            for value in HUGE if field.kind is int else HUGE[1:]:
                assert error_of(server, prompt="1", **{name: value})["param"] == name


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
