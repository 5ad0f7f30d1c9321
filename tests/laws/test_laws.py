"""Every rule's closed-form law is what accept and replace emit, summed over all draft tokens."""

from itertools import product

import pytest
from enumeration import check_law, steps

from easd.core.rules import RULES, make_rule
from easd.core.rules.entropy_aware import EASD
from easd.core.rules.gated import GatedRule
from easd.core.rules.redirected import RedirectedRule

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
