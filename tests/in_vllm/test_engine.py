"""The plugin in a running engine."""

import pytest
import torch
from in_vllm.observed import PROMPTS, decode, sampled, statistics, verifications
from vllm.exceptions import VLLMValidationError

from easd.core.rules import EASD

SETTINGS = {
    "sampled": {},
    "greedy": {"temperature": 0.0},
    "truncated": {"top_k": 12, "top_p": 0.9, "temperature": 1.3},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.3},
    "logprobs": {"logprobs": 2},
    "seeded": {"seed": 7},
}
RULE = EASD(tau_h=0.05, tau_o=0.4)


def mixed():
    """One of each kind, with lengths that make the batch ragged."""
    return [
        sampled(max_tokens=37),
        sampled(max_tokens=30, temperature=0.0),
        sampled(max_tokens=25, extra_args={"easd": False}),
        sampled(
            max_tokens=20, top_k=10, top_p=0.95, extra_args={"easd": {"tau_h": 0.2, "tau_o": 0.2}}
        ),
    ]


RULES = [RULE, RULE, None, EASD(tau_h=0.2, tau_o=0.2)]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_gate_that_never_opens_changes_no_token(stock, never, settings):
    params = sampled(**settings)
    assert decode(never, params) == decode(stock, params)


def test_requests_that_switch_it_off_get_what_stock_gives(stock, gated):
    before = statistics(gated)
    off = sampled(extra_args={"easd": False})
    assert decode(gated, off) == decode(stock, sampled())
    assert statistics(gated) == before
    assert decode(gated, sampled()) != decode(stock, sampled())


@pytest.mark.parametrize("kind", ["sampled", "greedy", "truncated", "mixed"])
def test_penalties_are_those_of_the_core_and_never_keep_the_token(gated, kind):
    params = mixed() if kind == "mixed" else [sampled(**SETTINGS[kind])] * len(PROMPTS)
    rules = RULES if kind == "mixed" else [RULE] * len(PROMPTS)
    check_penalties(gated, PROMPTS, params, rules)


def test_penalties_with_cached_prefixes_chunked_prompts_and_processed_logprobs(busy):
    long = [[3 + n % 40 for n in range(length)] for length in (20, 20, 7, 9)]
    params = [sampled(max_tokens=30, logprobs=1)] * len(long)
    for _ in range(2):  # the second time with prompts in the cache
        check_penalties(busy, long, params, [RULE] * len(long))


@pytest.mark.parametrize("kind", ["sampled", "greedy", "truncated", "mixed"])
def test_scheduling_ahead_changes_no_token(gated, ahead, kind):
    assert ahead.llm_engine.engine_core.engine_core.batch_queue_size == 2
    params = mixed() if kind == "mixed" else sampled(**SETTINGS[kind])
    assert decode(ahead, params) == decode(gated, params)


def check_penalties(engine, prompts, params, rules, least=10):
    """Every verification of the engine against `rules`, and the counts against what was seen."""
    before = statistics(engine)
    with verifications(engine) as seen:
        decode(engine, params, prompts=prompts)
    order = sorted({name for call in seen for name in call.requests}, key=_number)
    rule_of = dict(zip(order, rules, strict=True))
    counted = {"examined": 0, "penalised": 0}
    for call in seen:
        step, _, _ = call.step()
        for row, name in enumerate(call.requests):
            rule = rule_of[name]
            if rule is None:
                continue
            penalised = rule.published().judge(step).penalty_prob[row] == 1
            emitted = int((call.output[row] >= 0).sum())
            for position in range(min(emitted, int(call.counts[row]))):
                counted["examined"] += 1
                if penalised[position]:
                    counted["penalised"] += 1
                    assert emitted == position + 1  # refused: nothing follows its replacement
                    assert call.output[row, position] != step.draft_tokens[row, position]
    after = statistics(engine)
    assert {name: after[name] - before[name] for name in counted} == counted
    assert least < counted["penalised"] < counted["examined"]
    assert after["unasked"] == before["unasked"]


def test_a_greedy_penalty_takes_the_second_best(gated):
    with verifications(gated) as seen:
        decode(gated, sampled(temperature=0.0))
    found = 0
    for call in seen:
        step, row, position = call.step()
        penalised = RULE.published().judge(step).penalty_prob[row, position] == 1
        for index in penalised.nonzero()[:, 0].tolist():
            emitted = call.output[row[index], position[index]]
            if emitted >= 0:
                others = call.target_logits[index].clone()
                others[call.draft_tokens[index].long()] = -torch.inf
                assert emitted == others.argmax()
                found += 1
    assert found > 10


def test_a_batch_mate_does_not_open_or_close_a_gate(gated):
    """A greedy request alone is penalised where it is penalised in company."""
    greedy = sampled(temperature=0.0)
    alone = decode(gated, greedy, prompts=PROMPTS[:1])
    in_company = decode(gated, [greedy, *[sampled()] * 3])
    assert in_company[:1] == alone


def test_a_bad_request_is_refused_and_the_engine_goes_on(gated):
    with pytest.raises(VLLMValidationError, match="no field 'tau'"):
        decode(gated, sampled(extra_args={"easd": {"tau": 1}}), prompts=PROMPTS[:1])
    assert decode(gated, sampled(max_tokens=3), prompts=PROMPTS[:1])


def _number(name):
    return int(name.split("-")[0])
