"""Every rule's closed-form law is what accept and replace emit, summed over all draft tokens."""

from itertools import combinations, product

import pytest
import torch
from enumeration import check_law, steps
from models import DEVICE

from easd.core.gate import ALL_CONDITIONS
from easd.core.rules import RULES, at_gate, entropy_gate, gated, make_rule
from easd.core.rules.entropy_aware import EASD
from easd.core.rules.gated import GatedRule
from easd.core.rules.redirected import RedirectedRule

# Values are looked at before going on there only.
ON_HOST = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU computes every position")
GATED_FIELDS = {
    "redraw": ["exclude", "target"],
    "penalise": ["drafted", "draft_top"],
    "gate_on": ["proposed", "accepted"],
    "gate_bonus": [False, True],
    "coupling": ["as_published", "maximal"],
}


def variants():
    for name, kind in RULES.items():
        if issubclass(kind, RedirectedRule):
            yield from redirected(name, kind)
            continue
        if not issubclass(kind, GatedRule):
            own = {"tau_h": 0.9, "window": 0} if name == "fly" else {}
            yield pytest.param(make_rule(name, **own), id=name)
            continue
        own = {"rate": 0.3} if name == "random-refusal" else {"tau_h": 0.9, "tau_o": 0.6}
        for values in product(*GATED_FIELDS.values()):
            fields = dict(zip(GATED_FIELDS, values, strict=True)) | own
            yield pytest.param(make_rule(name, **fields), id=f"{name}-{'-'.join(map(str, values))}")
            if issubclass(kind, EASD) and name == "easd":
                raw = fields | {"entropy_of": "raw"}
                yield pytest.param(
                    make_rule(name, **raw), id=f"{name}-raw-{'-'.join(map(str, values))}"
                )


def redirected(name, kind):
    """The rule with open gates in reach, gated bonus or not, and its own fields at two values."""
    own = {
        "pool": [{"a": 1.3, "b": -0.7}, {"a": 0.5, "b": 1.5, "pick": "sample"}],
        "contrast": [{"beta": 0.8}, {"beta": 2.0, "plausible": 0.3}],
        "keep-near-top": [{"mu": 0.1}, {"mu": 0.6}, {"mu": 0.2, "a": 1.5, "b": 0.7}],
        "relaxed-pool": [{"lenience": 0.4}, {"a": 1.5, "b": -0.7, "mu": 0.1}],
        "sharpened": [{"power": 2.0}, {"power": 0.5}],
        "greedy-p": [{}],
    }
    for index, values in enumerate(own[name]):
        for gate_bonus in (False, True):
            gate = {"tau_h": 0.9, "tau_o": 0.6, "gate_bonus": gate_bonus}
            yield pytest.param(make_rule(name, **gate, **values), id=f"{name}-{index}-{gate_bonus}")


@pytest.mark.parametrize("kind", [name for name, _ in steps()])
@pytest.mark.parametrize("rule", list(variants()))
def test_accept_and_replace_yield_the_law(rule, kind):
    check_law(rule, dict(steps())[kind])


@pytest.mark.parametrize("rule", list(variants()))
def test_so_they_do_where_values_cannot_be_looked_at(rule, monkeypatch):
    """On a GPU every position is computed, the gate open or not."""
    for module in (at_gate, entropy_gate, gated):
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
            rule = EASD(**gate, entropy_of=entropy_of, gate_bonus=bonus)
            signals = rule.signals(step)
            every = rule.opens(rule.conditions_met(signals))
            every[:, -1] &= bonus
            assert torch.equal(signals["gate"] > 0, every)
            opened += int(every.sum())
    assert opened


@ON_HOST
def test_deciding_measures_no_signal_that_nobody_reads(monkeypatch):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(entropy_gate, "gate_signals", refuse)
    step = dict(steps())["unlike"]
    judgement = EASD(tau_h=0.9, tau_o=0.6).judge(step)
    with pytest.raises(AssertionError, match="measured"):
        dict(judgement.signals)
