"""Laws in the target's place, against the rules' own; needs no vLLM."""

import pytest
import torch
from rule_steps import OWN, one_hot_of

from easd.core.gate import ALL_CONDITIONS
from easd.core.rules import EASD, make_rule
from easd.core.rules.gated import EntropyGated
from easd.core.step import Step
from easd.integrations.vllm.laws import last_drafts, log_laws

TOTAL, VOCAB = 12, 7
GREEDY = torch.arange(TOTAL) % 3 == 1
RULES = {name: make_rule(name, **values) for name, values in OWN.items()}
RULES["pool-sampled"] = make_rule("pool", **OWN["pool"], pick="sample")
SERVED = {
    name: rule
    for name, rule in RULES.items()
    if rule.models == "both" and rule.needs_raw != "always"
}


def recorded(seed=0):
    """Draft probabilities and target logits [N, V]."""
    generator = torch.Generator().manual_seed(seed)
    target_logits = torch.randn(TOTAL, VOCAB, generator=generator) * 0.9
    draft_logits = target_logits + torch.randn(TOTAL, VOCAB, generator=generator) * 0.6
    return draft_logits.softmax(-1), target_logits


def core_step(draft_probs, target_logits, greedy):
    """The same tokens as easd's engine would pass them, each a block of one."""
    target_probs = target_logits.softmax(-1)
    rows, looked = greedy[:, None], (draft_probs, target_probs)
    sampled = [torch.where(rows, one_hot_of(probs), probs) for probs in looked]
    bonus = torch.zeros_like(draft_probs)
    return Step(
        draft_tokens=torch.zeros(TOTAL, 1, dtype=torch.int64),
        num_draft_tokens=torch.ones(TOTAL, dtype=torch.int64),
        draft_probs=torch.stack([sampled[0], bonus], 1),
        target_probs=torch.stack([sampled[1], sampled[1]], 1),
        raw_draft_probs=torch.stack([draft_probs, bonus], 1),
        raw_target_probs=torch.stack([target_probs, target_probs], 1),
        greedy=greedy,
    )


@pytest.mark.parametrize("name", SERVED)
def test_laws_are_those_of_the_core(name):
    rule = SERVED[name]
    step = core_step(*recorded(), GREEDY)
    everywhere = torch.zeros(TOTAL, dtype=torch.int64)
    logits, gates = log_laws([rule], 0, everywhere, *recorded(), GREEDY)
    wanted = rule.law(step)[:, 0]
    torch.testing.assert_close(logits.softmax(-1), wanted)
    assert gates.asked.all()
    if isinstance(rule, EntropyGated):
        signals = rule.signals(step)
        assert gates.open.tolist() == (signals["gate"][:, 0] > 0).tolist()
        for condition, holds in rule.gate.met(signals).items():
            assert gates.met[condition].tolist() == holds[:, 0].tolist()
    else:
        assert not any(gates.met[condition].any() for condition in ALL_CONDITIONS)


def test_each_row_follows_its_own_law_and_others_keep_the_target():
    rules = [SERVED["pool"], SERVED["cascade"]]
    rule_of = torch.tensor([3, 4, -1, 0] * 3)
    draft_probs, target_logits = recorded()
    logits, gates = log_laws(rules, 3, rule_of, draft_probs, target_logits, None)
    step = core_step(draft_probs, target_logits, torch.zeros(TOTAL, dtype=torch.bool))
    for number, rule in enumerate(rules, 3):
        here = rule_of == number
        torch.testing.assert_close(logits[here].softmax(-1), rule.law(step)[here, 0])
    others = rule_of < 3
    assert torch.equal(logits[others], target_logits[others])
    assert gates.asked.tolist() == (~others).tolist()


def test_the_last_draft_of_a_row():
    row = torch.tensor([0, 0, 0, 2, 3, 3])
    position = torch.tensor([0, 1, 2, 0, 0, 1])
    wanted = torch.tensor([True, True, True, False])
    last = last_drafts(torch.tensor([3, 0, 1, 2]), wanted, row, position)
    assert last.tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("rule", [EASD(tau_h=1.0, draft_at_bonus=True), *SERVED.values()])
def test_nothing_waits_for_the_device(rule):
    """Meta tensors have shapes only; reading a value or branching on one raises."""
    given = (torch.empty(TOTAL, VOCAB, device="meta") for _ in range(2))
    rule_of = torch.empty(TOTAL, dtype=torch.int64, device="meta")
    greedy = torch.empty(TOTAL, dtype=torch.bool, device="meta")
    logits, _ = log_laws([rule], 0, rule_of, *given, greedy)
    assert logits.shape == (TOTAL, VOCAB)
