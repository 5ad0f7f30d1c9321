"""Innocent requests beside hostile ones: whatever those ask for, no innocent one fails."""

import asyncio

import httpx
import pytest
from http_server import COMPLETIONS, PROBLEM, lab, lab_server

from easd import EASD, generate
from easd.serve.serving import LogitBias

# What hostile clients send in place of, or beside, a prompt.
HOSTILE = {
    "numbers of rules": [
        {"speculative": {"top_n": 10**400}},
        {"speculative": {"rule": "fly", "window": 2**40}},
        {"speculative": {"tau_h": -(10**400)}},
        {"speculative": {"rule": "pool", "a": 10**30}},
        {"speculative": {"conditions": ["overlap"] * 20_000}},
    ],
    "floods of prompts": [
        {"prompt": ["1"] * 170_000},
        {"prompt": [5] * 200_000},
        {"prompt": [-5] * 200_000},
        {"prompt": [[5]] * 100_000},
    ],
    "fields": [
        {"logit_bias": {"9" * 5000: 1}},
        {"stop": ""},
        {"stop": 5},
        {"prompt": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"model": "x" * 900_000},
        {"x" * 100_000: 1},
    ],
    "other rules' names": [
        {"speculative": {"name": "target"}},
        {"speculative": {"rule": "easd", "name": "target"}},
        {"speculative": {"rule": {"name": "target"}}},
    ],
}
# Fewer beside each other where time is short; the same code counts in full behind `slow`.
COUNTS = [pytest.param(16, 4), pytest.param(160, 40, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def server():
    with lab_server() as running:
        yield running


@pytest.mark.parametrize(("innocent", "hostile"), COUNTS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_innocent_request_fails(server, kind, innocent, hostile):
    for got in crowd(server, HOSTILE[kind], innocent, hostile):
        assert got.status_code == 400
        assert len(got.content) < 1500


@pytest.mark.parametrize(("innocent", "hostile"), COUNTS)
def test_no_innocent_request_fails_beside_texts_that_fail(server, innocent, hostile, monkeypatch):
    """Some by logits that turn into NaN, some by a rule that raises, each in its own row."""
    bodies = [
        {"logit_bias": {"5": -5}, "speculative": {"rule": "speculative"}},
        {"speculative": {"rule": "easd", "tau_h": 0.123}},
    ]
    monkeypatch.setattr(LogitBias, "__call__", lambda self, text, scores: scores * float("nan"))
    signals = EASD.signals

    def raising(self, step):
        if self.tau_h == 0.123:
            raise RuntimeError("no signals")
        return signals(self, step)

    monkeypatch.setattr(EASD, "signals", raising)
    failed = crowd(server, bodies, innocent, hostile)
    assert [got.status_code for got in failed] == [500] * hostile
    said = {got.json()["error"]["message"] for got in failed}
    assert len(said) == 2
    assert any("NaN" in message for message in said)
    assert not any("no signals" in message for message in said)


def crowd(server, bodies, innocent, hostile):
    """Answers to `hostile` requests that come among innocent ones, which all must be right."""

    async def one(client, body):
        return await client.post(COMPLETIONS, json={"model": "lab-c", "prompt": PROBLEM, **body})

    async def all_at_once():
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            every = innocent // hostile
            asked = []
            for number in range(innocent):
                asked.append({"seed": number, "temperature": 1.5})
                if number % every == 0:
                    asked.append(bodies[number // every % len(bodies)])
            answers = await asyncio.gather(*(one(client, body) for body in asked))
        return list(zip(asked, answers, strict=True))

    answers = asyncio.run(all_at_once())
    innocents = [(body, got) for body, got in answers if "seed" in body]
    others = [got for body, got in answers if "seed" not in body]
    assert [got.status_code for _, got in innocents] == [200] * innocent
    assert len(others) == hostile
    for body, got in innocents[:: innocent // 8]:
        own = {"seed": body["seed"], "temperature": 1.5}
        (text,) = generate(lab().target, lab().draft, PROBLEM, tokenizer=lab().tokenizer, **own)
        assert got.json()["choices"][0]["text"] == text.text
    return others
