"""Prints what tuning found: the answer first, then the ranking and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.diagnose.candidates import TARGET
from easd.diagnose.printing import p_text, percent, signed
from easd.diagnose.tuning import Candidate, Tuning
from easd.stats import Estimate

_ENOUGH = 0.1  # An interval of b this narrow, each way, is worth calling known.


def answer(found: Tuning, speeds: Mapping[str, float]) -> list[str]:
    """Whether anything helps, EASD among it, at what speed, and how sure that is."""
    best, target = found.chosen, _of(found, TARGET)
    ratio = best.tokens_per_forward / target.tokens_per_forward
    lines = []
    if best.gain is None or best.p_value is None:
        lines.append(
            f"Nothing helps: no rule beats the target at its best temperature ({_at(target)}) "
            "beyond doubt. Use lossless speculation there: "
            f"{target.tokens_per_forward:.2f} tokens a forward."
        )
        lines += _nearest(found)
    else:
        lines.append(
            f"{best.name} helps: {_points(best.gain)} points of {_what(found)} over the target at "
            f"its best temperature ({_at(target)}), Holm-adjusted p {p_text(best.p_value)}, at "
            f"{ratio:.3f} of the tokens a forward of lossless speculation there."
        )
    easd = max((c for c in found.candidates if c.rule["name"] == "easd"), key=_value, default=None)
    if easd is not None and easd.gain is not None and easd.p_value is not None:
        verb = "is not told apart from it"
        if easd.gain.low > 0 or easd.gain.high < 0:
            verb = "helps" if easd.gain.value > 0 else "hurts"
        lines.append(
            f"EASD as published, at its better temperature ({_at(easd)}), {verb}: "
            f"{_points(easd.gain)} points, p {p_text(easd.p_value)}."
        )
    if best.name in speeds:
        over = speeds[best.name] / speeds[TARGET]
        lines.append(
            f"Forecast here, for one text: {speeds[best.name]:.2f} times as fast as the target "
            f"alone, {over:.2f} times as fast as lossless speculation."
        )
    return lines


def _nearest(found: Tuning) -> list[str]:
    """What came nearest, and how many texts would tell if it is worth what it seems to be."""
    gains = [(each.gain, each.name) for each in found.candidates if each.gain is not None]
    gain, name = max(gains, key=lambda pair: pair[0].value)
    if gain.value <= 0:
        return []
    half = (gain.high - gain.low) / 2
    enough = float(f"{found.texts * max(1.0, (half / gain.value) ** 2):.2g}")
    return [
        f"Nearest is {name}: {_points(gain)} points. If that is its worth, some "
        f"{enough:,.0f} texts would show it; these were {found.texts:,}."
    ]


def render(found: Tuning, speeds: Mapping[str, float], console: Console) -> None:
    """Prints everything."""
    for line in answer(found, speeds):
        console.print(Text(line, "bold"), soft_wrap=True)
    console.print(_table(found, speeds))
    for line in _evidence(found):
        console.print(Text(line), soft_wrap=True)
    for line in _caveats(found):
        console.print(Text(f"* {line}", "dim"), soft_wrap=True)


def _table(found: Tuning, speeds: Mapping[str, float]) -> Table:
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        title=f"{_what(found).capitalize()} on texts that were not fitted; {found.texts:,} texts",
        title_justify="left",
    )
    table.add_column("candidate", no_wrap=True)
    for name in ("right", "gain [95 %]", "p (Holm)", "tok/fwd", "speed"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in found.candidates:
        table.add_row(
            each.name,
            f"{100 * each.right.value:.1f}",
            "baseline" if each.gain is None else _points(each.gain),
            "" if each.p_value is None else p_text(each.p_value),
            f"{each.tokens_per_forward:.2f}",
            f"{speeds[each.name]:.2f}" if each.name in speeds else "",
            style="bold" if each.name == found.best else None,
        )
    return table


def _evidence(found: Tuning) -> list[str]:
    lines = [
        "Nats per token, held out: "
        + ", ".join(f"{name} {each.value:.3f}" for name, each in found.nats.items())
        + f" (of the plausible tokens; {percent(found.outside)} of right tokens are none)."
    ]
    lines += [
        f"The gate on trial, {each.threshold} (tau_h {each.tau_h:.2g}, open at "
        f"{percent(each.fired)}): other powers there change the log-likelihood by "
        f"{_thousandths(each.nats)} thousandths of a nat per token: {_trial(each.nats)}."
        for each in found.trials
    ]
    if found.by_texts:
        fits = "; ".join(
            f"{number} texts {b:+.2f} [{low:+.2f}, {high:+.2f}]"
            for number, b, low, high in found.by_texts
        )
        lines.append(f"What the draft adds, b: {fits}. {_enough(found)}")
    elif found.pool.fallback:
        lines.append(f"No pool could be fitted: {found.pool.fallback}.")
    return lines


def _enough(found: Tuning) -> str:
    """How many texts tell b to `_ENOUGH`, and its sign: intervals shrink as their square root."""
    number, b, low, high = found.by_texts[-1]
    half = (high - low) / 2
    told = f"About {_texts(number * (half / _ENOUGH) ** 2)} texts tell it to ±{_ENOUGH:g}"
    if low > 0 or high < 0:
        return f"{told}, {_texts(number * (half / b) ** 2)} its sign."
    return f"{told}; its sign is not known."


def _texts(number: float) -> str:
    digits = max(0, int(math.log10(max(number, 1))) - 1)
    return f"{max(10, math.ceil(number / 10**digits) * 10**digits):,}"


def _trial(nats: Estimate) -> str:
    return "the gate tells something" if nats.low > 0 else "the gate tells nothing that shows"


def _thousandths(nats: Estimate) -> str:
    value, low, high = (1000 * each for each in (nats.value, nats.low, nats.high))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _caveats(found: Tuning) -> list[str]:
    lines = [
        "Everything that is fitted, the target's temperature too, was fitted on other texts than "
        "those it is judged on. The best of several is a little flattered; `easd eval` on items "
        "that were not read decides.",
        "Reference text is needed: powers fitted on texts that the target wrote itself come out "
        "near b = 0 and gain nothing.",
        "Tokens a forward are those along the reference texts.",
    ]
    if not found.unique_solution:
        lines.insert(
            1,
            "Only the reference's token counts as right; another continuation that is just as good "
            "counts as wrong.",
        )
    return lines


def _of(found: Tuning, name: str) -> Candidate:
    return next(each for each in found.candidates if each.name == name)


def _at(candidate: Candidate) -> str:
    return f"T = {candidate.temperature:g}" if candidate.temperature else "greedy"


def _value(candidate: Candidate) -> float:
    return candidate.right.value


def _what(found: Tuning) -> str:
    return "exact accuracy" if found.unique_solution else "right tokens"


def _points(gain: Estimate) -> str:
    value, low, high = (signed(100 * each) for each in (gain.value, gain.low, gain.high))
    return f"{value} [{low}, {high}]"
