"""Prints a diagnosis in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.diagnose.diagnosis import AtThreshold, Diagnosis
from easd.diagnose.effects import LEVEL, Effect
from easd.diagnose.pool_fit import PoolFit
from easd.diagnose.positions import DraftVocabulary
from easd.diagnose.wording import percent, plain_table, unit_of
from easd.stats import Estimate

# Positions of equal entropy can keep a rate from being met exactly.
_REACHED = 0.95

_MEANING = {
    "second opinion": "the draft is a second opinion",
    "warning": "the draft's preference is a warning",
    "no effect detected": "no effect of the draft detected",
    "unknown": "the draft's effect is unknown",
}


def render(diagnosis: Diagnosis, console: Console) -> None:
    """Prints the verdict at every threshold, then a table of all rules, then caveats."""
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
    """Prints one line for each threshold."""
    for at in diagnosis.thresholds:
        console.print(Text(f"{_title(at)}. {at.verdict.sentence} {at.verdict.advice}"))


def _opening(diagnosis: Diagnosis) -> list[str]:
    lines = [
        f"{diagnosis.texts:,} reference texts, {diagnosis.positions:,} positions. The right token "
        f"is the target's most probable one at {percent(diagnosis.target_best)} of them and the "
        f"draft's at {percent(diagnosis.draft_best)}."
    ]
    if diagnosis.draft_vocabulary:
        lines.append(_about_vocabulary(diagnosis.draft_vocabulary))
    if diagnosis.target_accuracy and diagnosis.draft_accuracy:
        target, draft = _accuracy(diagnosis.target_accuracy), _accuracy(diagnosis.draft_accuracy)
        lines.append(f"Accuracy when sampling from the target: {target} %; the draft: {draft} %.")
    if not diagnosis.unique_solution:
        length = diagnosis.positions / diagnosis.texts
        lines.append(
            f"Effects below are in {unit_of(diagnosis.unique_solution)}. A text has {length:,.0f} "
            f"tokens on average, so +1 means: of the {100 * length:,.0f} tokens of 100 texts, a "
            "rule is expected to draw one more as the reference has it."
        )
    return lines


def _about_vocabulary(found: DraftVocabulary) -> str:
    return (
        f"The draft has another tokenizer: {percent(found.coverage)} of its tokens map to tokens "
        f"of the target, {percent(found.one_to_one)} to exactly one. The draft's pass over each "
        f"text answers {found.aligned:,} positions; {found.anew:,} needed a pass of their own, "
        f"and {found.silent:,} are left out because the draft has no distribution there."
    )


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
        return f"Pool (not fitted: greedy-p): a = 1, b = 0, because {pool.fallback}."
    return (
        f"Pool: a = {pool.a:.2f} ± {pool.a_error:.2f}, b = {pool.b:+.2f} ± {pool.b_error:.2f} "
        f"(standard errors; {pool.n:,} choices in {pool.n_texts:,} texts, {pool.n_outside:,} right "
        f"tokens not plausible): {_MEANING[pool.meaning]}."
    )


def _table(diagnosis: Diagnosis) -> Table:
    """Change per text by rule and threshold; fits into 80 columns."""
    table = plain_table(
        f"Change in {unit_of(diagnosis.unique_solution)}; * significant after Holm's adjustment",
        "rule",
        *(f"tau_h {at.tau_h:.2g}\n{percent(at.fired.value)}" for at in diagnosis.thresholds),
    )
    for gated, title in ((True, "where its gate is open"), (False, "everywhere")):
        table.add_row(Text(title, style="dim"))
        for effects in zip(*(at.effects for at in diagnosis.thresholds), strict=True):
            if effects[0].gated == gated:
                table.add_row(effects[0].rule, *map(_cell, effects))
    return table


def _cell(effect: Effect) -> str:
    value = 100 * effect.change.value
    half = 50 * (effect.change.high - effect.change.low)
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    star = "*" if effect.p_value < 1 - LEVEL else " "
    return f"{round(value, digits) + 0.0:+.{digits}f} ±{half:.{digits}f}{star}"


def _accuracy(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ± {50 * (estimate.high - estimate.low):.1f}"
