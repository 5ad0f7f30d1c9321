"""The plugin in an engine with the V2 model runner."""

import pytest
from in_vllm.conftest import LAB
from in_vllm.observed import PROMPTS, sampled, statistics
from in_vllm.v2.observed import verifications
from transformers import AutoModelForCausalLM
from vllm.v1.worker.gpu.spec_decode import rejection_sampler

from easd import generate
from easd.config import parse_rule
from easd.core.rules import EASD
from easd.integrations.vllm import drafted_v2

VOCAB = 109

RULE = EASD(tau_h=0.05, tau_o=0.4)
LOOSER = EASD(tau_h=0.2, tau_o=0.2)
RULES = [RULE, RULE, None, LOOSER]


def mixed(**fields):
    """One of each kind, with lengths that make the batch ragged."""
    return [
        sampled(max_tokens=24, seed=1, temperature=2.0, **fields),
        sampled(max_tokens=20, temperature=0.0, **fields),
        sampled(max_tokens=16, seed=2, **fields),
        sampled(max_tokens=12, seed=3, top_k=10, top_p=0.95, temperature=0.6, **fields),
    ]


def ruled():
    """As `mixed`, by RULES."""
    params = mixed()
    params[2].extra_args = {"easd": False}
    params[3].extra_args = {"easd": {"tau_h": 0.2, "tau_o": 0.2}}
    return params


def answers(engine, params, prompts=PROMPTS):
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [done.outputs[0] for done in engine.generate(asked, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def plain(stock):
    return answers(stock, mixed(logprobs=1))


def test_a_gate_that_never_opens_changes_no_token_and_no_log_probability(plain, never):
    for ours, theirs in zip(answers(never, mixed(logprobs=1)), plain, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == theirs.logprobs
    counts = statistics(never)
    assert counts["examined"] > 10
    assert counts["penalised"] == 0


def test_requests_that_switch_it_off_get_what_stock_gives(plain, gated):
    before = statistics(gated)
    found = answers(gated, mixed(extra_args={"easd": False}))
    assert [each.token_ids for each in found] == [each.token_ids for each in plain]
    assert statistics(gated) == before


def test_penalties_are_those_of_the_core_and_never_keep_the_token(gated):
    check_penalties(gated, PROMPTS, ruled(), RULES)


def test_penalties_in_slots_used_again_and_steps_cut_in_pieces(busy, monkeypatch):
    """Prompts in chunks and from the cache, requests that wait for a slot, small chunks of rows."""
    monkeypatch.setattr(rejection_sampler, "MAX_CHUNK_BYTES", 5 * VOCAB * 4)
    monkeypatch.setattr(drafted_v2, "LOGITS_AT_ONCE", 2 * VOCAB)
    prompts = [[3 + n % 40 for n in range(length)] for length in (20, 20, 30, 7, 9, 5)]
    params = [*ruled(), *ruled()][1:7]
    for each in params:
        each.logprobs = 1
    check_penalties(busy, prompts, params, [*RULES, *RULES][1:7])


def test_greedy_texts_of_a_pool_are_those_of_easds_own_engine(gated):
    """But for the first token, which has no draft in vLLM."""
    pool = {"name": "pool", "tau_h": 0, "tau_o": 0, "a": 1.38, "b": 1.01, "draft_at_bonus": True}
    best = sampled(temperature=0.0, max_tokens=12, extra_args={"easd": pool})
    texts = [list(each.token_ids) for each in answers(gated, best)]
    models = [AutoModelForCausalLM.from_pretrained(LAB / model) for model in ("target", "draft")]
    for model in models:
        model.float().eval().generation_config.eos_token_id = None
    prompts = [prompt + text[:1] for prompt, text in zip(PROMPTS, texts, strict=True)]
    found = generate(*models, prompts, rule=parse_rule(pool), temperature=0.0, max_new_tokens=11)
    assert [each.token_ids for each in found] == [text[1:] for text in texts]


def test_drafts_have_a_temperature_of_their_own(start):
    """At 0.01 all requests get the draft's best tokens, but for ties; with a rule or without."""
    engine = start({"name": "pool", "tau_h": 0, "tau_o": 0, "draft_temperature": 0.01})
    for asked in (None, {"easd": False}):
        with verifications(engine) as seen:
            answers(engine, mixed(extra_args=asked))
        assert len(seen) > 5
        for call in seen:
            drafted = call.draft_probs.gather(1, call.draft_tokens.long()[:, None])[:, 0]
            assert (drafted > 0.8 * call.draft_probs.amax(-1)).all()


def check_penalties(engine, prompts, params, rules):
    """Every verification of the engine against `rules`, and the counts against what was seen."""
    before = statistics(engine)
    with verifications(engine) as seen:
        answers(engine, params, prompts)
    order = sorted({name for call in seen for name in call.requests}, key=_number)
    rule_of = dict(zip(order, rules, strict=True))
    counted = dict.fromkeys(before, 0)
    for call in seen:
        step, _, _ = call.step()
        for row, name in enumerate(call.requests):
            rule = rule_of[name]
            if rule is None:
                continue
            penalised = rule.published().judge(step).penalty_prob[row] == 1
            holds = rule.gate.met(rule.signals(step))
            emitted = int((call.output[row] >= 0).sum())
            for position in range(min(emitted, int(call.counts[row]))):
                counted["examined"] += 1
                for condition, values in holds.items():
                    counted[condition] += int(values[row, position])
                if penalised[position]:
                    counted["penalised"] += 1
                    check_penalty(call, step, row, position)
    after = statistics(engine)
    assert {name: after[name] - before[name] for name in counted} == counted
    assert 10 < counted["penalised"] < counted["examined"]


def check_penalty(call, step, row, position):
    """Refused: the token's replacement follows, and nothing else."""
    emitted = call.output[row]
    assert int((emitted >= 0).sum()) == position + 1
    assert emitted[position] != step.draft_tokens[row, position]
    if call.greedy[row]:
        others = step.target_probs[row, position].clone()
        others[step.draft_tokens[row, position]] = 0
        assert emitted[position] == others.argmax()


def _number(name):
    return int(name.split("-")[0])
