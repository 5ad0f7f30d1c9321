"""Will EASD help on this pair? An answer from reference texts, without decoding.

Everything here is a function of the table that `easd.diagnose.reference_pass.read_positions`
returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from easd.diagnose.calibration import NO_OP_RATE
from easd.diagnose.effects import EVERYWHERE, LEVEL, Effect, effects, mean, solved
from easd.diagnose.pool_fit import PoolFit, fit_pool
from easd.diagnose.positions import DraftVocabulary, Positions, gate, met, threshold_for
from easd.diagnose.wording import interval, p_text, percent, signed, unit_of
from easd.errors import ConfigError
from easd.stats import Estimate, share

LEAST_CHANGE = 0.0005

Outcome = Literal["hurt", "nothing", "help", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What EASD will do at one threshold, and which rule is better.

    Attributes:
        outcome: of EASD against the target.
        sentence: the outcome with its numbers.
        best: the rule with the largest significant gain, if any.
        advice: the best rules with their numbers.
    """

    outcome: Outcome
    sentence: str
    best: str | None
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AtThreshold:
    """Results at one threshold.

    Attributes:
        wanted: firing rate that `tau_h` was chosen for; None where `tau_h` was given.
        fired: share of positions where the gate is open.
        meets: share of positions that meet each condition.
        gated: number of positions where the gate is open.
        gated_texts: number of texts with such a position.
        target_right: mean probability of the right token there under the target; None where the
            gate never opens, like the next two.
        draft_right: the same under the draft.
        criterion: share of these positions where EASD makes the right token likelier.
        pool: fitted on all texts.
        effects: of every rule, EASD first; the pool's are cross-fitted by text.
    """

    tau_h: float
    wanted: float | None
    fired: Estimate
    meets: dict[str, float]
    gated: int
    gated_texts: int
    target_right: float | None
    draft_right: float | None
    criterion: float | None
    pool: PoolFit
    effects: tuple[Effect, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Results for a pair on reference texts.

    Attributes:
        texts, positions: number of reference texts, and of their tokens.
        unique_solution: whether a reference is the only right text.
        target_best, draft_best: share of positions where the right token is the model's best.
        impossible: share of positions where the target gives the right token probability 0.
        target_accuracy, draft_accuracy: probability that sampling from the model writes the
            reference; None unless it is the only right text.
        draft_vocabulary: None where draft and target share a tokenizer.
        thresholds: the given one first.
        caveats: limits of these numbers.
    """

    texts: int
    positions: int
    unique_solution: bool
    tau_o: float
    target_best: float
    draft_best: float
    impossible: float
    target_accuracy: Estimate | None
    draft_accuracy: Estimate | None
    draft_vocabulary: DraftVocabulary | None
    thresholds: tuple[AtThreshold, ...]
    caveats: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict at the given threshold."""
        return self.thresholds[0].verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def diagnose(
    table: pa.Table,
    *,
    tau_h: float,
    tau_o: float = 0.8,
    rates: Sequence[float] = (0.005, 0.02, 0.08),
    unique_solution: bool = False,
) -> Diagnosis:
    """Judges EASD and every other rule by a table of `read_positions`.

    Args:
        table: with the columns of `POSITIONS`.
        tau_h: in nats.
        tau_o: overlap threshold.
        rates: firing rates whose thresholds are judged too.
        unique_solution: whether each reference is the only right text; the product of a rule's law
            over it is then the rule's accuracy.

    Raises:
        ConfigError: A threshold is out of range.
        InputError: The table is damaged or has fewer than two texts, or a rate is not in (0, 1).
    """
    if not tau_h >= 0:
        raise ConfigError(f"tau_h = {tau_h} is not an entropy; use nats, 0 or more")
    if not 0 <= tau_o <= 1:
        raise ConfigError(f"tau_o = {tau_o} is not a share; use a number in [0, 1]")
    positions = Positions.of(table)
    values = positions.values
    wanted = [(tau_h, None), *((threshold_for(positions, r, tau_o), r) for r in rates)]
    impossible = float((values["target_prob"] == 0).mean())
    target_accuracy, draft_accuracy = (
        mean(solved(positions, values[f"{model}_prob"])) if unique_solution else None
        for model in ("target", "draft")
    )
    return Diagnosis(
        texts=positions.n_texts,
        positions=len(positions),
        unique_solution=unique_solution,
        tau_o=tau_o,
        target_best=float(values["target_best"].mean()),
        draft_best=float(values["draft_best"].mean()),
        impossible=impossible,
        target_accuracy=target_accuracy,
        draft_accuracy=draft_accuracy,
        draft_vocabulary=DraftVocabulary.of(table),
        thresholds=tuple(
            _at(positions, height, tau_o, rate, unique_solution) for height, rate in wanted
        ),
        caveats=tuple(_caveats(unique_solution, impossible)),
    )


def _at(
    positions: Positions, tau_h: float, tau_o: float, wanted: float | None, unique_solution: bool
) -> AtThreshold:
    values = positions.values
    is_open = gate(positions, tau_h, tau_o)
    open_by_text = positions.by_text(is_open.astype(np.float64))
    fired = share(open_by_text, positions.by_text(np.ones(len(positions))))
    found = effects(positions, tau_h, tau_o, unique_solution=unique_solution)

    def mean_at_gate(column: Any) -> float | None:
        return float(column[is_open].mean()) if is_open.any() else None

    return AtThreshold(
        tau_h=tau_h,
        wanted=wanted,
        fired=fired,
        meets={name: float(where.mean()) for name, where in met(positions, tau_h, tau_o).items()},
        gated=int(is_open.sum()),
        gated_texts=int((open_by_text > 0).sum()),
        target_right=mean_at_gate(values["target_prob"]),
        draft_right=mean_at_gate(values["draft_prob"]),
        criterion=mean_at_gate(values["open_easd"] > values["target_prob"]),
        pool=fit_pool(positions, is_open),
        effects=found,
        verdict=_verdict(found, tau_h, fired, unique_solution=unique_solution),
    )


def _caveats(unique_solution: bool, impossible: float) -> list[str]:
    lines = [
        "Positions are those of the reference texts. What a rule does after a model's own text has "
        "diverged from them is not measured.",
        "Every position counts as drafted. With draft_at_bonus off, bonus positions are drawn from "
        "the target, and effects at the gate are smaller.",
        "The pool is judged on texts that it was not fitted on; all other rules use their default "
        "settings.",
    ]
    if not unique_solution:
        lines.insert(
            1,
            "Only the reference's token is credited: another continuation that is just as good "
            "counts as wrong. The log-likelihood is a proper score, but of this text alone.",
        )
    if impossible:
        lines.append(
            f"At {impossible:.2%} of positions the target cannot write the right token under these "
            "settings; log-likelihoods leave them out."
        )
    return lines


def _verdict(
    effects: Sequence[Effect], tau_h: float, fired: Estimate, *, unique_solution: bool
) -> Verdict:
    """Judges the effects at one threshold, EASD's first.

    EASD does nothing where its gate opens at less than 0.1 % of positions, or where the whole
    interval of its effect lies within 0.05 points.
    """
    change = effects[0].change
    unit = unit_of(unique_solution)
    pair = f"on this pair at tau_h {tau_h:.2g}"
    effect = f"{interval(change)} {unit}, its gate open at {percent(fired.value)} of positions"
    outcome: Outcome
    if fired.value < NO_OP_RATE:
        outcome = "nothing"
        sentence = (
            f"EASD will do nothing {pair}: its gate opens at {percent(fired.value)} of positions, "
            f"below {percent(NO_OP_RATE)}"
        )
    elif max(abs(change.low), abs(change.high)) <= LEAST_CHANGE:
        outcome = "nothing"
        limit = f"{100 * LEAST_CHANGE:.2f}"
        sentence = f"EASD will do nothing {pair}: {effect}, which is within ±{limit}"
    elif change.low <= 0 <= change.high:
        outcome = "cannot tell"
        sentence = f"Cannot tell whether EASD will hurt or help {pair}: {effect}; give more texts"
    else:
        outcome = "help" if change.value > 0 else "hurt"
        sentence = f"EASD will {outcome} {pair}: {effect}"
    best, advice = _advice(effects, unit)
    return Verdict(outcome=outcome, sentence=f"{sentence}.", best=best, advice=advice)


def _advice(effects: Sequence[Effect], unit: str) -> tuple[str | None, str]:
    """The rule with the largest significant gain, and the best with and without a gate in words."""
    real = [e for e in effects if e.change.value > 0 and e.p_value < 1 - LEVEL]
    real.sort(key=lambda effect: -effect.change.value)
    gated = next((e for e in real if e.gated), None)
    ungated = next((e for e in real if not e.gated), None)

    def described(effect: Effect) -> str:
        p = p_text(effect.p_value)
        p = p if p.startswith("<") else f"= {p}"
        return f"{effect.rule}: {signed(100 * effect.change.value)} {unit}, Holm-adjusted p {p}"

    advice = "No rule with a gate has a significant gain."
    if gated:
        advice = f"Best rule with a gate is {described(gated)}."
    if ungated:
        advice += f" Best without a gate is {described(ungated)}."
    alone = max(
        (e for e in effects if e.rule in EVERYWHERE), key=lambda e: e.change.value, default=None
    )
    if alone is not None and alone.change.value > 0:
        gain = signed(100 * alone.change.value)
        advice += f" The target alone gains {gain} {unit} at a lower temperature ({alone.rule})."
    return (real[0].rule if real else None), advice
