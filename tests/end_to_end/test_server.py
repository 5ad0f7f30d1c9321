"""`easd serve` as its clients see it: OpenAI's own client, and plain HTTP."""

import asyncio
import json
import math
from dataclasses import replace

import httpx
import pytest
import torch
from http_server import PROBLEM, endless_server, events, lab, lab_server, running
from openai import AsyncOpenAI, OpenAI

from easd import generate
from easd.config import load_config, parse_rule
from easd.core.rules import make_rule, rule_names
from easd.engine.models.slots import context_window
from easd.engine.trace import TraceWriter
from easd.pairs.lab import problems
from easd.runs import open_run
from easd.runs.schema import SAMPLES, TOKENS
from easd.runs.tally import summary

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SOLUTION = "+ 7 = 89 - 8 = 81 - 11 = 70 + 27 = 97 # 97"
LOOSE = {"rule": "easd", "tau_h": 0.05}  # Penalises often on the lab pair.


@pytest.fixture(scope="module")
def server():
    with lab_server() as running:
        yield running


@pytest.fixture
def client(server):
    with OpenAI(base_url=server.url + "/v1", api_key="any") as client:
        yield client


def alone(prompt, *, rule=None, **settings):
    """What the engine writes of a prompt without any server."""
    parsed = {"rule": parse_rule(rule)} if rule else {}
    texts = generate(
        lab().target, lab().draft, prompt, tokenizer=lab().tokenizer, **parsed, **settings
    )
    return [text.text for text in texts]


def test_a_chat_is_what_the_engine_writes_with_the_same_seed(client):
    answer = client.chat.completions.create(
        model="lab-c",
        messages=[{"role": "user", "content": PROBLEM}],
        seed=5,
        temperature=1.7,
        extra_body={"speculative": LOOSE},
    )
    rule = {"name": "easd", "tau_h": 0.05}
    (own,) = generate(
        lab().target,
        lab().draft,
        PROBLEM,
        tokenizer=lab().tokenizer,
        seed=5,
        temperature=1.7,
        rule=parse_rule(rule),
    )
    assert answer.object == "chat.completion"
    assert answer.model == "lab-c"
    assert answer.choices[0].message.content == own.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(own.prompt_ids)
    assert answer.usage.completion_tokens == len(own.token_ids)
    details = answer.usage.completion_tokens_details
    assert details.accepted_prediction_tokens == details.accepted_tokens == own.counts.accepted
    assert details.rejected_prediction_tokens == own.counts.proposed - own.counts.accepted
    assert details.drafted_tokens == own.counts.proposed
    assert details.penalised_tokens == own.counts.penalised > 0
    assert details.target_forwards == own.counts.blocks


def test_a_stream_says_the_same_piece_by_piece(client):
    asked = {
        "model": "lab-c",
        "messages": [{"role": "user", "content": PROBLEM}],
        "seed": 3,
        "n": 3,
        "temperature": 2,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    pieces = [chunk.choices[0] for chunk in chunks[:-1]]
    for choice in whole.choices:
        mine = [piece for piece in pieces if piece.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(piece.delta.content or "" for piece in mine) == choice.message.content
        assert [piece.finish_reason for piece in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == choice.finish_reason
        told = [entry for piece in mine if piece.logprobs for entry in piece.logprobs.content]
        assert told == choice.logprobs.content
    assert len({choice.message.content for choice in whole.choices}) > 1
    assert len(pieces) > 6


def test_several_prompts_with_several_texts_each(client):
    prompts = [problem.prompt for problem in problems("lab-c", 3, seed=7)]
    answer = client.completions.create(model="lab-c", prompt=prompts, n=2, seed=9, temperature=2)
    assert [choice.text for choice in answer.choices] == alone(prompts, n=2, seed=9, temperature=2)
    ids = lab().tokenizer(prompts)["input_ids"]
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    again = client.completions.create(model="lab-c", prompt=ids, n=2, seed=9, temperature=2)
    assert again.choices == answer.choices
    one = client.completions.create(model="lab-c", prompt=ids[0], n=2, seed=9, temperature=2)
    assert one.choices == answer.choices[:2]


def test_without_a_seed_every_request_has_another(client):
    texts = {
        client.completions.create(model="lab-c", prompt=PROBLEM, temperature=2).choices[0].text
        for _ in range(6)
    }
    assert len(texts) > 1


def test_log_probabilities_are_the_targets_before_temperature_and_truncation(client):
    answer = client.completions.create(
        model="lab-c", prompt=PROBLEM, seed=1, temperature=0, logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found.tokens == [" " + word for word in answer.choices[0].text.split()]
    ids = lab().tokenizer([PROBLEM], return_tensors="pt")["input_ids"]
    text = lab().tokenizer(answer.choices[0].text)["input_ids"]
    whole = ids.new_tensor([[*ids[0].tolist(), *text]])
    with torch.inference_mode():
        logits = lab().target(whole).logits[0, ids.shape[1] - 1 : -1]
    expected = logits.log_softmax(-1)
    for place, token in enumerate(text):
        assert found.token_logprobs[place] == pytest.approx(float(expected[place, token]), abs=1e-4)
        best = expected[place].topk(3).values.tolist()
        assert sorted(found.top_logprobs[place].values(), reverse=True) == pytest.approx(
            best, abs=1e-4
        )
    assert min(found.token_logprobs) < -0.001  # Not those of a greedy draw, which are all 0.
    assert found.text_offset[:5] == [0, 1, 3, 5, 8]


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_of_a_stop_string_or_behind_it_leaks(server, stream):
    """The stop string stands in the middle of a block and spans tokens."""
    whole = server.complete(seed=1, temperature=0).json()["choices"][0]["text"]
    assert whole == SOLUTION
    body = {"seed": 1, "temperature": 0, "stop": ["9 - 8 = 8", "never"], "logprobs": 0}
    response = server.complete(**body, stream=stream)
    choices = [c for e in events(response) for c in e["choices"]] if stream else None
    choices = choices or response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "+ 7 = 8"
    told = [token for choice in choices for token in choice["logprobs"]["tokens"]]
    assert told == [" +", " 7", " ="]
    assert choices[-1]["finish_reason"] == "stop"


def test_every_rule_in_one_crowd(server):
    """All rules, greedy and sampled, at once: each text is what its request gets alone."""
    prompts = [problem.prompt for problem in problems("lab-c", 8, seed=3)]
    asked = [
        {"prompt": prompts[seed % 8], "seed": seed, "temperature": t, "speculative": {"rule": rule}}
        for seed, (rule, t) in enumerate((rule, t) for rule in rule_names() for t in (0, 0.8, 1.6))
    ]

    async def crowd():
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            return await asyncio.gather(
                *(client.post(COMPLETIONS, json={"model": "lab-c", **body}) for body in asked)
            )

    for body, response in zip(asked, asyncio.run(crowd()), strict=True):
        assert response.status_code == 200, (body, response.text)
        (text,) = alone(
            body["prompt"],
            rule=body["speculative"]["rule"],
            seed=body["seed"],
            temperature=body["temperature"],
        )
        assert response.json()["choices"][0]["text"] == text, body


def test_sixty_four_at_once_are_neither_lost_nor_mixed(server):
    prompts = [problem.prompt for problem in problems("lab-c", 64, seed=11)]
    kinds = [{"temperature": 1.5}, {"temperature": 0}, {"top_p": 0.9, "temperature": 1.2}]

    async def ask(client, number, prompt):
        body = {
            "model": "lab-c",
            "messages": [{"role": "user", "content": prompt}],
            "seed": number,
            **kinds[number % 3],
            "extra_body": {"speculative": LOOSE if number % 2 else {"rule": "speculative"}},
        }
        if number % 4:
            stream = await client.chat.completions.create(**body, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream])
        answer = await client.chat.completions.create(**body)
        return answer.choices[0].message.content

    async def crowd():
        async with AsyncOpenAI(base_url=server.url + "/v1", api_key="any") as client:
            return await asyncio.gather(*(ask(client, *entry) for entry in enumerate(prompts)))

    texts = asyncio.run(crowd())
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        rule = {"name": "easd", "tau_h": 0.05} if number % 2 else "speculative"
        assert [text] == alone(prompt, rule=rule, seed=number, **kinds[number % 3])
    found = server.metrics()
    assert found["easd_texts_running"] == found["easd_texts_waiting"] == 0


def test_penalties_and_biases_do_what_openai_says(server):
    plain = server.complete(seed=1, temperature=0).json()["choices"][0]["text"]
    assert plain == SOLUTION
    (token,) = lab().tokenizer("77")["input_ids"]
    biased = server.complete(seed=1, temperature=0, max_tokens=5, logit_bias={str(token): 100})
    assert biased.json()["choices"][0]["text"].split() == ["77"] * 5
    # 100 - 2 after one, and 30 less for every further one.
    other = lab().tokenizer("78")["input_ids"][0]
    both = server.complete(
        seed=1,
        temperature=0,
        max_tokens=4,
        logit_bias={str(token): 99, str(other): 98.5},
        presence_penalty=1,
    )
    words = both.json()["choices"][0]["text"].split()
    assert words[:2] == ["77", "78"]
    often = server.complete(
        seed=1,
        temperature=0,
        max_tokens=6,
        logit_bias={str(token): 100, str(other): 100},
        frequency_penalty=2,
    )
    words = often.json()["choices"][0]["text"].split()
    assert words.count("77") == words.count("78") == 3
    assert words[:2] != words[1:3]


def test_counts_of_prometheus_are_those_of_the_answers():
    with lab_server() as server:
        details = [
            server.complete(seed=seed, temperature=1.5, speculative=LOOSE).json()["usage"]
            for seed in range(8)
        ]
        found = server.metrics()
    total = {
        name: sum(usage["completion_tokens_details"][name] for usage in details)
        for name in ("drafted_tokens", "accepted_tokens", "penalised_tokens")
    }
    assert total["penalised_tokens"] > 0
    assert found["vllm:spec_decode_num_draft_tokens_total"] == total["drafted_tokens"]
    assert found["vllm:spec_decode_num_accepted_tokens_total"] == total["accepted_tokens"]
    assert found["easd_penalised_tokens_total"] == total["penalised_tokens"]
    by_position = [
        found[f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="{p}"}}']
        for p in range(4)
    ]
    assert sum(by_position) == total["accepted_tokens"]
    assert by_position == sorted(by_position, reverse=True)
    assert found["easd_generation_tokens_total"] == sum(u["completion_tokens"] for u in details)
    assert found["easd_prompt_tokens_total"] == sum(u["prompt_tokens"] for u in details)
    assert found["easd_time_to_first_token_seconds_count"] == 8


def test_the_page_gets_the_trace_that_a_file_would_hold(server, tmp_path):
    body = {"prompt": PROBLEM, "seed": 4, "temperature": 1.5, "speculative": LOOSE}
    told = events(server.post("/easd/decode", body))
    config = load_config(
        None,
        {"pair": "lab-c", "seed": 4, "temperature": 1.5, "rule.tau_h": 0.05, "coupling": "shared"},
    )
    with TraceWriter(tmp_path / "trace", lab(), config) as writer:
        generate(
            lab().target,
            lab().draft,
            PROBLEM,
            tokenizer=lab().tokenizer,
            settings=config.settings,
            on_step=writer.add,
        )
    trace = open_run(tmp_path / "trace")
    assert [event["type"] for event in told] == ["run", *["rows"] * (len(told) - 2), "end"]
    run, own = told[0]["run"], trace.run
    assert run.keys() == own.keys() - {"seal", "parts"}
    assert {**run["config"], "max_new_tokens": None} == own["config"]
    assert run["models"] == own["models"]
    rows = [row for event in told for row in event.get("tokens", [])]
    expected = trace.tokens.drop_columns(["run", "sample", "request"]).to_pylist()
    assert rows == json.loads(json.dumps(expected))
    assert list(rows[0]) == [n for n in TOKENS.names if n not in ("run", "sample", "request")]
    vocabulary = [entry for event in told for entry in event.get("vocabulary", {}).items()]
    assert len(dict(vocabulary)) == len(vocabulary)
    assert {int(token): text for token, text in vocabulary} == dict(
        zip(*trace.vocabulary.to_pydict().values(), strict=True)
    )
    sample, (own_sample,) = told[-1]["sample"], trace.samples.to_pylist()
    changing = {"run", "seconds"}
    assert sample.keys() == set(SAMPLES.names)
    assert {k: v for k, v in sample.items() if k not in changing} == {
        k: v for k, v in own_sample.items() if k not in changing
    }
    counts, own_counts = told[-1]["summary"], summary(trace)
    assert counts.pop("conditions") == pytest.approx(own_counts.pop("conditions"))
    assert {k: v for k, v in counts.items() if k != "seconds"} == pytest.approx(
        {k: v for k, v in own_counts.items() if k != "seconds"}
    )


def test_a_crowd_does_not_show_in_a_decoding(server):
    """Rows of one text among others that share its rule and others that do not."""
    body = {"prompt": PROBLEM, "seed": 4, "temperature": 1.5, "speculative": LOOSE}
    quiet = events(server.post("/easd/decode", body))

    async def crowd():
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            others = [
                {"prompt": PROBLEM, "seed": s, "temperature": 1.5, "speculative": r}
                for s, r in enumerate([LOOSE, {"rule": "speculative"}, LOOSE, {"rule": "fly"}])
            ]
            asked = [*others, body, *others]
            return await asyncio.gather(*(client.post("/easd/decode", json=b) for b in asked))

    told = events(asyncio.run(crowd())[4])
    assert len(told) == len(quiet) > 3
    for mine, alone_ in zip(told[1:-1], quiet[1:-1], strict=True):
        for row, own in zip(mine["tokens"], alone_["tokens"], strict=True):
            assert row.keys() == own.keys()
            for name, value in own.items():
                assert row[name] == (
                    pytest.approx(value, abs=1e-5)
                    if isinstance(value, float) or "probs" in name
                    else value
                ), name


def test_what_the_server_tells_of_itself(server, client):
    assert [model.id for model in client.models.list()] == ["lab-c"]
    assert client.models.retrieve("lab-c").max_model_len == context_window(lab().target) == 64
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    assert httpx.get(server.url + "/version").json().keys() == {"version"}
    told = httpx.get(server.url + "/easd/rules").json()
    assert list(told["rules"]) == rule_names()
    assert told["pair"] == "lab-c"
    assert told["defaults"]["rule"]["name"] == "easd"
    assert [name for name, rule in told["rules"].items() if rule["lossless"]] == [
        "speculative",
        "target",
    ]
    for name, rule in told["rules"].items():
        assert parse_rule({"name": name, **rule["fields"]}) == make_rule(name)
        assert rule["summary"]


def test_the_page_may_run_its_own_code_only(server):
    response = httpx.get(server.url + "/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self';")
    assert "script-src 'sha256-" in policy
    assert "style-src 'sha256-" in policy
    assert "unsafe" not in policy


def test_a_rule_of_the_request_starts_from_the_servers_own():
    settings = {"rule.name": "easd", "rule.tau_h": 0.05, "rule.redraw": "target"}
    with lab_server(**settings) as server:
        run = events(
            server.post("/easd/decode", {"prompt": PROBLEM, "speculative": {"tau_o": 0.4}})
        )
        own = run[0]["run"]["config"]["rule"]
        assert (own["name"], own["tau_h"], own["tau_o"], own["redraw"]) == (
            "easd",
            0.05,
            0.4,
            "target",
        )
        run = events(
            server.post("/easd/decode", {"prompt": PROBLEM, "speculative": {"rule": "lenience"}})
        )
        assert run[0]["run"]["config"]["rule"] == {"name": "lenience", "lenience": 0.5}


def test_a_lossless_server_refuses_lossy_rules():
    with lab_server({"lossless_only": True}, rule="speculative") as server:
        for rule in ("speculative", "target"):
            assert server.complete(speculative={"rule": rule}).status_code == 200
        assert server.complete().status_code == 200
        response = server.complete(speculative={"rule": "easd", "tau_h": math.pi})
        assert response.status_code == 400
        assert "lossless only; use speculative or target" in response.json()["error"]["message"]
        rules = httpx.get(server.url + "/easd/rules").json()["rules"]
        assert rules.keys() == {"speculative", "target"}


def test_a_pair_without_draft_serves_what_needs_none():
    pair = replace(lab(), draft=None)
    config = load_config(None, {"target": "lab-c", "rule": "target"})
    with running(pair, config) as server:
        assert server.complete(seed=1, temperature=0).json()["choices"][0]["text"] == SOLUTION
        response = server.complete(speculative={"rule": "speculative"})
        assert response.status_code == 400
        assert "has none" in response.json()["error"]["message"]


def test_lengths(server):
    with endless_server({"max_model_len": 40}) as server:
        response = server.complete("w5 w6 w7", max_tokens=12, seed=1)
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert response.json()["usage"]["completion_tokens"] == 12 == len(choice["text"].split())
        assert server.complete("w5 w6 w7").json()["usage"]["completion_tokens"] == 37
        body = {"model": "endless", "messages": [{"role": "user", "content": "w5"}]}
        both = {**body, "max_tokens": 9, "max_completion_tokens": 4}
        assert server.post(CHAT, both).json()["usage"]["completion_tokens"] == 4
        for prompt, most in (("w5 " * 40, 1), ("w5 " * 30, 11)):
            error = server.complete(prompt, max_tokens=most).json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert "the context window of 40" in error["message"]
