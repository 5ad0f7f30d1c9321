"""Prints a diagnosis: all numbers as Markdown, the most important ones in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.diagnose.effects import LEVEL, Effect
from easd.diagnose.pool_fit import PoolFit
from easd.stats import Estimate

if TYPE_CHECKING:
    from easd.diagnose.diagnosis import AtThreshold, Diagnosis

# A rate counts as reached from this share of it on: positions with the same entropy move it a bit.
_REACHED = 0.95

_OPINION = {
    "second opinion": "the draft is a second opinion",
    "warning": "the draft's favour is a warning",
    "nothing that shows": "the draft adds nothing that shows",
    "not known": "what the draft adds is not known",
}


def markdown(diagnosis: Diagnosis) -> str:
    """The whole diagnosis as Markdown."""
    parts = ["# Diagnosis", *_opening(diagnosis)]
    header = (
        "rule",
        "acts at",
        "P(right) there, points",
        "log-likelihood there, nats",
        unit_of(diagnosis.unique_solution),
        "p (Holm)",
    )
    for at in diagnosis.thresholds:
        lines = [header, ("---",) * len(header), *map(_row, at.effects)]
        parts += [f"## {_title(at)}", *_about(at), "\n".join(f"| {' | '.join(x)} |" for x in lines)]
    parts += ["## Read with care", "\n".join(f"* {line}" for line in diagnosis.caveats)]
    return "\n\n".join(parts) + "\n"


def render(diagnosis: Diagnosis, console: Console) -> None:
    """Prints verdicts, what the gate looks at, and a table of rules and thresholds."""
    for line in _opening(diagnosis):
        console.print(Text(line))
    for at in diagnosis.thresholds:
        console.print()
        console.rule(Text(_title(at), style="bold"), align="left", style="dim")
        for line in _about(at):
            console.print(Text(line))
    console.print()
    console.print(_table(diagnosis))
    for line in diagnosis.caveats:
        console.print(Text(f"* {line}", style="dim"))


def verdicts(diagnosis: Diagnosis, console: Console) -> None:
    """Prints what EASD will do at each threshold, and nothing else."""
    for at in diagnosis.thresholds:
        console.print(Text(f"{_title(at)}. {at.verdict.sentence} {at.verdict.advice}"))


def _opening(diagnosis: Diagnosis) -> list[str]:
    lines = [
        f"{diagnosis.texts:,} reference texts, {diagnosis.positions:,} positions. The right token "
        f"is the target's best one at {percent(diagnosis.target_best)} of them and the draft's at "
        f"{percent(diagnosis.draft_best)}."
    ]
    if diagnosis.target_accuracy and diagnosis.draft_accuracy:
        target, draft = _plain(diagnosis.target_accuracy), _plain(diagnosis.draft_accuracy)
        lines.append(f"Accuracy drawn from the target: {target} %; from the draft: {draft} %.")
    if not diagnosis.unique_solution:
        length = diagnosis.positions / diagnosis.texts
        lines.append(
            f"Effects below are in {unit_of(diagnosis.unique_solution)}. A text has {length:,.0f} "
            f"tokens on average, so +1 means: of the {100 * length:,.0f} tokens of 100 texts, a "
            "rule is expected to draw one more as the reference has it."
        )
    return lines


def _title(at: AtThreshold) -> str:
    height = f"tau_h {at.tau_h:.2g} nats"
    if at.wanted is None:
        return f"{height}, as given"
    if at.tau_h == 0 and at.fired.value < _REACHED * at.wanted:
        return (
            f"{height}: no threshold reaches {percent(at.wanted)} of positions; the gate opens at "
            f"{percent(at.fired.value)} at most"
        )
    return f"{height}, chosen for {percent(at.wanted)} of positions"


def _about(at: AtThreshold) -> list[str]:
    shares = ", ".join(f"{name.replace('_', ' ')} {percent(x)}" for name, x in at.meets.items())
    lines = [
        at.verdict.sentence,
        at.verdict.advice,
        f"Gated positions: {at.gated:,}, in {at.gated_texts:,} texts. Conditions met: {shares}.",
    ]
    if at.target_right is not None and at.draft_right is not None and at.criterion is not None:
        lines.append(
            f"There the target gives the right token {percent(at.target_right)} on average and the "
            f"draft {percent(at.draft_right)}; EASD makes it likelier at {percent(at.criterion)} "
            "of them."
        )
    return [*lines, _about_pool(at.pool)]


def _about_pool(pool: PoolFit) -> str:
    if pool.fallback:
        return f"Pool (not fitted: greedy-p): a = 1, b = 0, since {pool.fallback}."
    return (
        f"Pool: a = {pool.a:.2f} ± {pool.a_error:.2f}, b = {pool.b:+.2f} ± {pool.b_error:.2f} "
        f"(standard errors; {pool.n:,} choices in {pool.n_texts:,} texts, {pool.n_outside:,} right "
        f"tokens not plausible): {_OPINION[pool.meaning]}."
    )


def _table(diagnosis: Diagnosis) -> Table:
    """Change per text of every rule at every threshold; it fits into 80 columns."""
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        title=f"Change in {unit_of(diagnosis.unique_solution)}; * real after Holm's adjustment",
        title_justify="left",
    )
    table.add_column("rule", no_wrap=True)
    for at in diagnosis.thresholds:
        head = f"tau_h {at.tau_h:.2g}\n{percent(at.fired.value)}"
        table.add_column(head, justify="right", no_wrap=True)
    for group in (True, False):
        title = "where its gate is open" if group else "everywhere"
        table.add_row(Text(title, style="dim"))
        for effects in zip(*(at.effects for at in diagnosis.thresholds), strict=True):
            if effects[0].gated == group:
                table.add_row(effects[0].rule, *map(_cell, effects))
    return table


def _cell(effect: Effect) -> str:
    value = 100 * effect.change.value
    half = 50 * (effect.change.high - effect.change.low)
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    star = "*" if effect.p_value < 1 - LEVEL else " "
    return f"{round(value, digits) + 0.0:+.{digits}f} ±{half:.{digits}f}{star}"


def _row(effect: Effect) -> tuple[str, ...]:
    return (
        effect.rule,
        percent(effect.acts),
        _change(effect.where_it_acts, 100) if effect.where_it_acts else "not known",
        _log_change(effect),
        _change(effect.change, 100),
        p_text(effect.p_value),
    )


def _log_change(effect: Effect) -> str:
    if effect.log_likelihood:
        return _change(effect.log_likelihood, 1)
    return "-inf" if effect.can_be_zero else "not known"


def _change(estimate: Estimate, unit: float) -> str:
    half = unit * (estimate.high - estimate.low) / 2
    return f"{signed(unit * estimate.value)} ± {half:.2f}"


def _plain(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ± {50 * (estimate.high - estimate.low):.1f}"


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
