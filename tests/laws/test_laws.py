"""Every rule's closed-form law is what accept and replace emit, summed over all draft tokens."""

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from enumeration import check_law, steps
from models import DEVICE

from easd.core.couplings import Maximal
from easd.core.gate import ALL_CONDITIONS
from easd.core.rules import EASD, RULES, RandomRefusal, field_names, gated, refusal

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
