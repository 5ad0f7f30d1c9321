"""Every rule's closed-form law is what accept and replace emit, summed over all draft tokens."""

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from enumeration import K, check_blocks, check_law, every_eighth, expected_kept, steps
from models import DEVICE
from torch.nn.functional import pad

from easd.core.couplings import Blockwise, Maximal, drafted
from easd.core.gate import ALL_CONDITIONS
from easd.core.rules import (
    EASD,
    RULES,
    RandomRefusal,
    Speculative,
    field_names,
    gated,
    make_rule,
    refusal,
)

# Values are looked at before going on there only.
ON_HOST = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU computes every position")
REFUSAL = {
    "redraw": ["exclude", "target"],
    "penalise": ["drafted", "draft_top"],
    "gate_on": ["proposed", "accepted"],
}
# Further values of fields; every rule is tested with those of its example.
FURTHER = {
    "pool": [{"a": 0.5, "b": 1.5, "pick": "sample"}],
    "pool-everywhere": [{"a": 2.5, "b": -1.2, "plausible": 0.0}],
    "cascade": [{"deferral": d, "alpha": 0.3} for d in ("chow", "diff", "token")],
    "ears": [{"beta": 5.0}],
    "mars": [{"least_ratio": 0.9}],
    "relaxed-top-k": [{"relaxed_top_k": 1}, {"relaxed_top_k": 6, "relaxed_delta": 1.0}],
    "contrast": [{"beta": 0.8}, {"beta": 2.0, "plausible": 0.3}],
    "keep-near-top": [{"mu": 0.6}, {"mu": 0.2, "a": 1.5, "b": 0.7}, {"mu": 0.0}],
    "relaxed-pool": [{"a": 1.5, "b": -0.7, "mu": 0.1}],
    "sharpened": [{"power": 0.5}],
    "easd": [{"conditions": chosen} for n in (1, 2) for chosen in combinations(ALL_CONDITIONS, n)],
}


def fields_of(rule):
    """Combinations of fields beside those of the example."""
    names = field_names(type(rule))
    for bonus in (False, True) if "draft_at_bonus" in names else (None,):
        own = {} if bonus is None else {"draft_at_bonus": bonus}
        yield own
        for further in FURTHER.get(rule.name, []):
            yield own | further
        if isinstance(rule, EASD | RandomRefusal):
            for values in product(*REFUSAL.values()):
                yield own | dict(zip(REFUSAL, values, strict=True))
        if "entropy_of" in names:
            yield own | {"entropy_of": "raw"}


def variants():
    for name, kind in RULES.items():
        for fields in fields_of(kind.example()):
            label = "-".join(map(str, fields.values()))
            yield pytest.param(replace(kind.example(), **fields), id=f"{name}-{label}")


@pytest.mark.parametrize("kind", [name for name, _ in steps()])
@pytest.mark.parametrize("rule", list(variants()))
def test_accept_and_replace_yield_the_law(rule, kind):
    check_law(rule, dict(steps())[kind])


@pytest.mark.parametrize("rule", list(variants()))
def test_so_they_do_where_values_cannot_be_looked_at(rule, monkeypatch):
    """On a GPU every position is computed, the gate open or not."""
    for module in (gated, refusal):
        monkeypatch.setattr(module, "on_host", lambda values: False)
    for _, step in steps():
        check_law(rule, step)


@pytest.mark.parametrize("rule", list(variants()))
def test_blocks_verified_jointly_yield_the_law(rule):
    for kind, step in steps():
        few = every_eighth(step)
        check_blocks(rule, few)
        if kind == "unlike":
            check_blocks(rule, replace(few, num_draft_tokens=torch.arange(5) % (K + 1)))


class WrongAtTheEnd(Blockwise):
    """Forgets that behind the last token nothing more is drafted."""

    def judge(self, step):
        longer = replace(step, num_draft_tokens=step.num_draft_tokens + 1)
        return Blockwise.judge(self, longer)


class WeightNotCapped(Blockwise):
    def judge(self, step):
        judged, law = Blockwise.judge(self, step), self.rule.law(step)
        ratio = drafted(law, step) / drafted(step.proposal, step).clamp_min(1e-300)
        return replace(judged, law_weight=pad(ratio.cumprod(1), (1, 0), value=1.0))


class ResidualWithoutWeight(Blockwise):
    def replacement(self, step, judgement, at, penalised):
        plain = replace(judgement, law_weight=torch.ones_like(judgement.law_weight))
        return Blockwise.replacement(self, step, plain, at, penalised)


class TokenByToken(Blockwise):
    """Tests tokens of the block one by one, but keeps the last that passes."""

    def judge(self, step):
        accept_prob = Maximal(self.rule).judge(step).accept_prob
        return replace(Blockwise.judge(self, step), accept_prob=accept_prob)


@pytest.mark.parametrize(
    "wrong", [WrongAtTheEnd, WeightNotCapped, ResidualWithoutWeight, TokenByToken]
)
def test_planted_bugs_of_block_verification_are_found(wrong):
    rule, step = EASD(tau_h=0.9, tau_o=0.6), dict(steps())["unlike"]
    check_blocks(rule, step, Blockwise(rule))
    with pytest.raises(AssertionError, match="law off"):
        check_blocks(rule, step, wrong(rule))


def test_blocks_keep_at_least_as_many_tokens_as_one_by_one():
    """Expected number of kept tokens, by enumeration."""
    for rule in (Speculative(), make_rule("ensemble")):
        for kind in ("unlike", "alike", "proposed colder"):
            step = dict(steps())[kind]
            jointly, one_by_one = (expected_kept(rule, step, c) for c in ("block", "maximal"))
            assert (jointly >= one_by_one - 1e-12).all()
            assert (jointly - one_by_one).max() > 0.01


@ON_HOST
@pytest.mark.parametrize(
    "conditions", [c for n in (1, 2, 3) for c in combinations(ALL_CONDITIONS, n)]
)
@pytest.mark.parametrize("entropy_of", ["sampling", "raw"])
def test_asking_in_order_opens_the_same_gates(conditions, entropy_of):
    opened = 0
    for _, step in steps():
        for bonus in (False, True):
            gate = {"tau_h": 0.9, "tau_o": 0.6, "conditions": conditions}
            rule = EASD(**gate, entropy_of=entropy_of, draft_at_bonus=bonus)
            signals = rule.measure(step)
            every = rule.gate.opens(signals)
            every[:, -1] &= bonus
            assert torch.equal(signals["gate"] > 0, every)
            opened += int(every.sum())
    assert opened


@ON_HOST
def test_deciding_measures_no_signal_that_nobody_reads(monkeypatch):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(gated, "gate_signals", refuse)
    step = dict(steps())["unlike"]
    judgement = Maximal(EASD(tau_h=0.9, tau_o=0.6)).judge(step)
    with pytest.raises(AssertionError, match="measured"):
        dict(judgement.signals)
