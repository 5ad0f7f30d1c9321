"""What a diagnosis comes to, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from easd.diagnose.calibration import NO_OP_RATE
from easd.diagnose.effects import LEVEL, Effect
from easd.stats import Estimate

LEAST_CHANGE = 0.0005

Outcome = Literal["hurt", "nothing", "help", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What EASD will do at one threshold, and what would be better.

    Attributes:
        outcome: of EASD against the target.
        sentence: the same with its numbers.
        best: the rule that gains most beyond doubt, None where none does.
        advice: the same with its numbers.
    """

    outcome: Outcome
    sentence: str
    best: str | None
    advice: str


def verdict(
    effects: Sequence[Effect], tau_h: float, fired: Estimate, *, unique_solution: bool
) -> Verdict:
    """Judges the effects at one threshold, EASD's first.

    EASD does nothing where its gate opens at less than 0.1 % of positions, or where the whole
    interval of its effect lies within 0.05 points.
    """
    change = effects[0].change
    unit = unit_of(unique_solution)
    pair = f"on this pair at tau_h {tau_h:.2g}"
    rarely = fired.value < NO_OP_RATE
    small = max(abs(change.low), abs(change.high)) <= LEAST_CHANGE
    effect = f"{interval(change)} {unit}, its gate open at {percent(fired.value)} of positions"
    if rarely:
        outcome: Outcome = "nothing"
        sentence = (
            f"EASD will do nothing {pair}: its gate opens at {percent(fired.value)} of positions, "
            f"below {percent(NO_OP_RATE)}"
        )
    elif small:
        outcome = "nothing"
        limit = f"{100 * LEAST_CHANGE:.2f}"
        sentence = f"EASD will do nothing {pair}: {effect}, and that is within ±{limit}"
    elif change.low <= 0 <= change.high:
        outcome = "cannot tell"
        sentence = f"Cannot tell whether EASD will hurt or help {pair}: {effect}; give more texts"
    else:
        outcome = "help" if change.value > 0 else "hurt"
        sentence = f"EASD will {outcome} {pair}: {effect}"
    best, advice = _advice(effects, unit)
    return Verdict(outcome=outcome, sentence=f"{sentence}.", best=best, advice=advice)


def unit_of(unique_solution: bool) -> str:
    """What a change per text counts, hundredfold."""
    return "points of accuracy" if unique_solution else "right tokens in 100 texts"


def interval(estimate: Estimate) -> str:
    """A change and its interval, in hundredths."""
    value, low, high = (signed(100 * x) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({LEVEL:.0%} interval {low} to {high})".replace("%", " %")


def percent(share: float) -> str:
    """A share in per cent, with the digits that rare events need."""
    points = 100 * share
    if 0 < points < 0.01:
        return "less than 0.01 %"
    return f"{points:.2f} %" if 0 < points < 1 else f"{points:.1f} %"


def signed(value: float) -> str:
    """A change, with its sign."""
    return f"{round(value, 2) + 0.0:+.2f}"  # no -0.00


def p_text(p_value: float) -> str:
    """A p-value."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def _advice(effects: Sequence[Effect], unit: str) -> tuple[str | None, str]:
    real = [e for e in effects if e.change.value > 0 and e.p_value < 1 - LEVEL]
    gated = max((e for e in real if e.gated), key=_gain, default=None)
    other = max((e for e in real if not e.gated), key=_gain, default=None)
    best = max((e for e in (gated, other) if e), key=_gain, default=None)

    def told(effect: Effect) -> str:
        adjusted = f"Holm-adjusted p {_equals(p_text(effect.p_value))}"
        return f"{effect.rule}: {signed(100 * effect.change.value)} {unit}, {adjusted}"

    at_gate = (
        f"Best rule with a gate is {told(gated)}."
        if gated
        else "No rule with a gate gains beyond doubt."
    )
    without = f" Best without a gate is {told(other)}." if other else ""
    return (best.rule if best else None), at_gate + without


def _gain(effect: Effect) -> float:
    return effect.change.value


def _equals(text: str) -> str:
    return text if text.startswith("<") else f"= {text}"
