"""Drafts drawn at a temperature of their own, in a running engine."""

import pytest
import torch
from in_vllm.observed import decode, sampled, statistics, verifications
from in_vllm.test_laws import ASKED
from in_vllm.test_whole_law import PROMPT, laws, p_value
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

from easd.config import parse_rule

SAMPLES = 4_000
EASD = ASKED["easd-by-its-law"]


@pytest.fixture(scope="module")
def cooler(start):
    """Drafts are drawn at 0.4, requests are sampled at 1."""
    return start({**EASD, "coupling": "maximal", "draft_temperature": 0.4})


def seconds(engine, asked):
    """Counts [V, V] of the first two new tokens."""
    params = sampled(max_tokens=2, extra_args={"easd": asked})
    counts = torch.zeros(109, 109, dtype=torch.float64)
    for first, second in decode(engine, params, prompts=[PROMPT] * SAMPLES):
        counts[first, second] += 1
    return counts


def test_the_law_is_that_of_the_drafts_opinion_at_the_requests_temperature(cooler):
    law, target = laws(rule=parse_rule(EASD))
    counts = seconds(cooler, EASD)
    assert p_value(counts, law) > 0.001
    assert p_value(counts, target) < 1e-6


def test_plain_speculation_keeps_the_target(cooler):
    before = statistics(cooler)
    assert p_value(seconds(cooler, False), laws()[1]) > 0.001
    assert statistics(cooler) == before


def test_drafts_of_another_temperature_than_verified_are_found(cooler, monkeypatch):
    runner = cooler.llm_engine.model_executor.driver_worker.worker.model_runner
    stock = SpecDecodeBaseProposer._sample_draft_tokens.__get__(runner.drafter)
    monkeypatch.setattr(runner.drafter, "_sample_draft_tokens", stock)
    assert p_value(seconds(cooler, EASD), laws(rule=parse_rule(EASD))[0]) < 1e-6


def test_greedy_requests_keep_their_texts(cooler, stock):
    best = sampled(temperature=0.0, extra_args={"easd": False})
    wanted = decode(stock, sampled(temperature=0.0))
    assert decode(cooler, best) == wanted
    in_company = decode(cooler, [best, *[sampled()] * 3])
    assert in_company[0] == wanted[0]


def test_each_request_has_a_temperature_of_its_own(cooler):
    """Drafts are as if drawn from the colder distribution, whatever the request's."""
    params = [sampled(temperature=heat) for heat in (0.4, 1.0, 1.5, 2.0)]
    likely = total = 0
    with verifications(cooler) as seen:
        for seed in range(10):
            decode(cooler, params, seed=seed)
    for call in seen:
        requests = [int(name.split("-")[0]) % 4 for name in call.requests]
        heat = torch.tensor([params[number].temperature for number in requests])
        _, row, _ = call.step()
        drawn_from = call.draft_probs.pow((heat / 0.4)[row, None])
        drawn_from /= drawn_from.sum(-1, keepdim=True)
        tokens = call.draft_tokens.long()[:, None]
        # Of tokens drawn from r, the sum of r(x) - sum r^2 has the mean 0.
        likely += float((drawn_from.gather(1, tokens)[:, 0] - drawn_from.square().sum(-1)).sum())
        total += len(tokens)
    assert total > 500
    assert abs(likely / total) < 0.03
