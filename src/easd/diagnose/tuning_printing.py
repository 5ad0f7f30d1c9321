"""Prints what tuning found: the answer first, then the ranking and the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.diagnose.candidates import TARGET
from easd.diagnose.effects import LEVEL
from easd.diagnose.tuning import Candidate, Tuning
from easd.diagnose.wording import p_text, percent, plain_table, signed
from easd.stats import Estimate

_ENOUGH = 0.1  # half-width of an interval that counts as knowing b


def answer(found: Tuning, speeds: Mapping[str, float]) -> list[str]:
    """Whether any rule helps, whether EASD does, at what speed, and with what certainty."""
    best = found.chosen
    target = next(each for each in found.candidates if each.name == TARGET)
    baseline = f"the target at its best temperature ({_at(target)})"
    lines = []
    if best.gain is None or best.p_value is None:
        lines.append(
            f"Nothing helps: no rule is significantly better than {baseline}. Use lossless "
            f"speculation there: {target.tokens_per_forward:.2f} tokens per forward."
        )
        lines += _nearest(found)
    else:
        ratio = best.tokens_per_forward / target.tokens_per_forward
        lines.append(
            f"{best.name} helps: {_points(best.gain)} points of {_metric(found)} over {baseline}, "
            f"Holm-adjusted p {p_text(best.p_value)}, at {ratio:.3f} times the tokens per forward "
            "of lossless speculation there."
        )
    # Candidates come sorted by what they get right.
    easd = next((each for each in found.candidates if each.rule["name"] == "easd"), None)
    if easd is not None and easd.gain is not None and easd.p_value is not None:
        verb = "shows no significant difference"
        if easd.p_value < 1 - LEVEL:
            verb = "helps" if easd.gain.value > 0 else "hurts"
        lines.append(
            f"EASD as published, at its better temperature ({_at(easd)}), {verb}: "
            f"{_points(easd.gain)} points, Holm-adjusted p {p_text(easd.p_value)}."
        )
    if best.name in speeds:
        ratio = speeds[best.name] / speeds[TARGET]
        lines.append(
            f"Forecast for this machine, one text at a time: {speeds[best.name]:.2f} times as fast "
            f"as the target alone, {ratio:.2f} times as fast as lossless speculation."
        )
    return lines


def _nearest(found: Tuning) -> list[str]:
    """The largest gain, and the number of texts that would make it significant."""
    gains = [(each.gain, each.name) for each in found.candidates if each.gain is not None]
    gain, name = max(gains, key=lambda pair: pair[0].value)
    if gain.value <= 0:
        return []
    half = (gain.high - gain.low) / 2
    enough = float(f"{found.texts * max(1.0, (half / gain.value) ** 2):.2g}")
    return [
        f"The nearest is {name}: {_points(gain)} points. If that is its true gain, about "
        f"{enough:,.0f} texts would show it; this run read {found.texts:,}."
    ]


def render(found: Tuning, speeds: Mapping[str, float], console: Console) -> None:
    """Prints the answer, the table of candidates, the evidence and caveats."""
    for line in answer(found, speeds):
        console.print(Text(line, "bold"), soft_wrap=True)
    console.print(_table(found, speeds))
    for line in _evidence(found):
        console.print(Text(line), soft_wrap=True)
    for line in _caveats(found):
        console.print(Text(f"* {line}", "dim"), soft_wrap=True)


def _table(found: Tuning, speeds: Mapping[str, float]) -> Table:
    title = f"{_metric(found).capitalize()} on held-out texts; {found.texts:,} texts"
    table = plain_table(title, "candidate", "right", "gain [95 %]", "p (Holm)", "tok/fwd", "speed")
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
        if found.nats
        else "The target is so sure of these texts that nearly all positions have one plausible "
        "token, so the gate cannot be tried."
    ]
    for trial in found.trials:
        value, low, high = (1000 * n for n in (trial.nats.value, trial.nats.low, trial.nats.high))
        conclusion = "the gate is informative" if low > 0 else "no effect of the gate detected"
        lines.append(
            f"Trial of the gate, {trial.threshold} (tau_h {trial.tau_h:.2g}, open at "
            f"{percent(trial.fired)}): other powers there change the log-likelihood by "
            f"{value:+.2f} [{low:+.2f}, {high:+.2f}] thousandths of a nat per token: {conclusion}."
        )
    if found.by_texts:
        fits = "; ".join(
            f"{number} texts {b:+.2f} [{low:+.2f}, {high:+.2f}]"
            for number, b, low, high in found.by_texts
        )
        lines.append(f"The draft's power b: {fits}. {_enough(found)}")
    elif found.pool.fallback:
        lines.append(f"No pool could be fitted: {found.pool.fallback}.")
    return lines


def _enough(found: Tuning) -> str:
    """The number of texts that give b to `_ENOUGH`, and its sign.

    The width of an interval falls with the square root of that number.
    """
    number, b, low, high = found.by_texts[-1]
    half = (high - low) / 2
    precise = f"About {_texts(number * (half / _ENOUGH) ** 2)} texts give it to ±{_ENOUGH:g}"
    if low > 0 or high < 0:
        return f"{precise}, {_texts(number * (half / b) ** 2)} its sign."
    return f"{precise}; its sign is unknown."


def _texts(number: float) -> str:
    """A number of texts rounded up to two digits, and at least 10."""
    digits = max(0, int(math.log10(max(number, 1))) - 1)
    return f"{max(10, math.ceil(number / 10**digits) * 10**digits):,}"


def _caveats(found: Tuning) -> list[str]:
    lines = [
        "Everything fitted, the target's temperature included, is judged on other texts than those "
        "it was fitted on. The best of several candidates is still slightly flattered; `easd eval` "
        "on items that were not read decides.",
        "Tuning needs reference text: powers fitted on texts that the target wrote itself come out "
        "near b = 0 and gain nothing.",
        "Tokens per forward are those along the reference texts.",
    ]
    if not found.unique_solution:
        lines.insert(
            1,
            "Only the reference's token counts as right; another continuation that is just as good "
            "counts as wrong.",
        )
    return lines


def _at(candidate: Candidate) -> str:
    return f"T = {candidate.temperature:g}" if candidate.temperature else "greedy"


def _metric(found: Tuning) -> str:
    return "exact accuracy" if found.unique_solution else "right tokens"


def _points(gain: Estimate) -> str:
    value, low, high = (signed(100 * each) for each in (gain.value, gain.low, gain.high))
    return f"{value} [{low}, {high}]"
