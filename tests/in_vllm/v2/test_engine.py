"""The plugin in an engine with the V2 model runner."""

from in_vllm.observed import PROMPTS, sampled, statistics
from in_vllm.v2.observed import verifications

from easd.core.rules import EASD

RULE = EASD(tau_h=0.05, tau_o=0.4)
LOOSER = EASD(tau_h=0.2, tau_o=0.2)
RULES = [RULE, RULE, None, LOOSER]


def mixed(**fields):
    """One of each kind, with lengths that make the batch ragged."""
    return [
        sampled(max_tokens=24, seed=1, **fields),
        sampled(max_tokens=20, temperature=0.0, **fields),
        sampled(max_tokens=16, seed=2, temperature=0.7, **fields),
        sampled(max_tokens=12, seed=3, top_k=10, top_p=0.95, temperature=1.3, **fields),
    ]


def ruled():
    """As `mixed`, by RULES."""
    params = mixed()
    params[2].extra_args = {"easd": False}
    params[3].extra_args = {"easd": {"tau_h": 0.2, "tau_o": 0.2}}
    return params


def answers(engine, params):
    asked = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    return [done.outputs[0] for done in engine.generate(asked, params, use_tqdm=False)]


def tokens(engine, params):
    return [list(answer.token_ids) for answer in answers(engine, params)]


def test_a_gate_that_never_opens_changes_no_token_and_no_log_probability(stock, never):
    before = statistics(never)
    for ours, theirs in zip(
        answers(never, mixed(logprobs=1)), answers(stock, mixed(logprobs=1)), strict=True
    ):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == theirs.logprobs
    after = statistics(never)
    assert after["examined"] > before["examined"]
    assert after["penalised"] == 0


def test_requests_that_switch_it_off_get_what_stock_gives(stock, gated):
    before = statistics(gated)
    plain = tokens(stock, mixed())
    assert tokens(gated, mixed(extra_args={"easd": False})) == plain
    assert statistics(gated) == before
    assert tokens(gated, mixed()) != plain


def test_penalties_are_those_of_the_core_and_never_keep_the_token(gated):
    before = statistics(gated)
    with verifications(gated) as seen:
        tokens(gated, ruled())
    order = sorted({name for call in seen for name in call.requests}, key=_number)
    rule_of = dict(zip(order, RULES, strict=True))
    counted = dict.fromkeys(before, 0)
    for call in seen:
        step, _, _ = call.step()
        for row, name in enumerate(call.requests):
            rule = rule_of[name]
            if rule is None:
                continue
            penalised = rule.judge(step).penalty_prob[row] == 1
            holds = rule.conditions_met(rule.signals(step))
            emitted = int((call.output[row] >= 0).sum())
            for position in range(min(emitted, int(call.counts[row]))):
                counted["examined"] += 1
                for condition, values in holds.items():
                    counted[condition] += int(values[row, position])
                if penalised[position]:
                    counted["penalised"] += 1
                    assert emitted == position + 1  # refused: nothing follows its replacement
                    assert call.output[row, position] != step.draft_tokens[row, position]
                    if call.greedy[row]:
                        others = step.target_probs[row, position].clone()
                        others[step.draft_tokens[row, position]] = 0
                        assert call.output[row, position] == others.argmax()
    after = statistics(gated)
    assert {name: after[name] - before[name] for name in counted} == counted
    assert 10 < counted["penalised"] < counted["examined"]


def _number(name):
    return int(name.split("-")[0])
