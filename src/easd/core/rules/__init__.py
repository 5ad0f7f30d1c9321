"""All rules by name. A new rule is one file and one line here; every contract test then runs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from easd.core.rules.controls import RandomRefusal
from easd.core.rules.entropy_aware import (
    EASD,
    OverlapOnly,
    TargetEntropyOnly,
    WithoutDraftEntropy,
    WithoutOverlap,
)
from easd.core.rules.exact import DraftOnly, Speculative, TargetOnly
from easd.core.rules.redirected import (
    Contrast,
    Greedy,
    KeepNearTop,
    Pool,
    RelaxedPool,
    Sharpened,
)
from easd.core.rules.relaxed import Ensemble, FLy, Lenient, TypicalAcceptance
from easd.core.step import Rule
from easd.errors import RuleError

RULES: dict[str, type[Rule]] = {
    "easd": EASD,
    "speculative": Speculative,
    "target": TargetOnly,
    "draft": DraftOnly,
    "easd-without-overlap": WithoutOverlap,
    "easd-without-draft-entropy": WithoutDraftEntropy,
    "easd-without-both": TargetEntropyOnly,
    "overlap-only": OverlapOnly,
    "random-refusal": RandomRefusal,
    "pool": Pool,
    "greedy-p": Greedy,
    "sharpened": Sharpened,
    "keep-near-top": KeepNearTop,
    "relaxed-pool": RelaxedPool,
    "contrast": Contrast,
    "typical-acceptance": TypicalAcceptance,
    "lenience": Lenient,
    "ensemble": Ensemble,
    "fly": FLy,
}


def make_rule(name: str, **values: Any) -> Rule:
    """The rule `name` with `values` for its fields.

    Raises:
        RuleError: The name or a field is unknown, or a value is out of range.
    """
    if name not in RULES:
        raise RuleError(f"rule {name!r} is not known; choose one of {', '.join(RULES)}")
    rule = RULES[name]
    known = [field.name for field in fields(rule)]  # type: ignore[arg-type]
    for field in values:
        if field not in known:
            has = f"its fields are {', '.join(known)}" if known else "it has no fields"
            raise RuleError(f"rule {name!r} has no field {field!r}; {has}")
    return rule(**values)


def rule_name(rule: Rule) -> str:
    """The name `rule` is registered under, or its class name."""
    return next((name for name, kind in RULES.items() if kind is type(rule)), type(rule).__name__)


__all__ = [
    "EASD",
    "RULES",
    "Contrast",
    "DraftOnly",
    "Ensemble",
    "FLy",
    "Greedy",
    "KeepNearTop",
    "Lenient",
    "OverlapOnly",
    "Pool",
    "RandomRefusal",
    "RelaxedPool",
    "Sharpened",
    "Speculative",
    "TargetEntropyOnly",
    "TargetOnly",
    "TypicalAcceptance",
    "WithoutDraftEntropy",
    "WithoutOverlap",
    "make_rule",
    "rule_name",
]
