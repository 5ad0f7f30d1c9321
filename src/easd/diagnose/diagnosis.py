"""Will EASD help on this pair? An answer from reference texts, without decoding.

Everything here is a function of the table that `easd.diagnose.reference_pass.read_positions` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from easd.diagnose.effects import Effect, effects, mean, solved
from easd.diagnose.pool import PoolFit, fit_pool
from easd.diagnose.positions import POSITIONS, Positions, gate, met, threshold_for
from easd.diagnose.report import markdown, render
from easd.diagnose.verdict import Verdict, verdict
from easd.errors import ConfigError
from easd.stats import Estimate, share

__all__ = [
    "POSITIONS",
    "AtThreshold",
    "Diagnosis",
    "Effect",
    "PoolFit",
    "Positions",
    "Verdict",
    "diagnose",
    "fit_pool",
    "gate",
    "markdown",
    "render",
    "threshold_for",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AtThreshold:
    """Everything about one threshold.

    Attributes:
        wanted: the firing rate that `tau_h` was chosen for; None where it was given.
        fired: share of positions where the gate is open.
        meets: share of positions that meet each condition.
        gated: open positions.
        gated_texts: texts that have one.
        target_right: mean probability the target gives the right token at open positions; None
            where there are none, as in the next two.
        draft_right: the same of the draft.
        criterion: share of open positions where EASD makes the right token likelier.
        pool: fitted on all texts.
        effects: every rule's, EASD first; the pool's are cross-fitted by text.
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
    """Will EASD help on this pair?

    Attributes:
        texts: reference texts.
        positions: their tokens.
        unique_solution: whether a reference is the only right text.
        tau_o: the overlap threshold.
        target_best: share of positions where the right token is the target's best.
        draft_best: the same of the draft.
        impossible: share of positions where the target cannot write the right token.
        target_accuracy: probability that the target writes the reference; None unless it is the
            only right text.
        draft_accuracy: the same of the draft.
        thresholds: the given one first.
        caveats: what the numbers do not say.
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
    thresholds: tuple[AtThreshold, ...]
    caveats: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict at the given threshold."""
        return self.thresholds[0].verdict

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, ready for JSON."""
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
        table: see `POSITIONS`.
        tau_h: in nats.
        tau_o: overlap threshold.
        rates: firing rates whose thresholds are looked at too.
        unique_solution: whether a reference is the only right text; then the product of a rule's
            law over it is the rule's accuracy.

    Raises:
        ConfigError: A threshold is out of range.
        InputError: The table is damaged or has fewer than two texts, or a rate is no share.
    """
    if not tau_h >= 0:
        raise ConfigError(f"tau_h = {tau_h} is not an entropy; use nats, 0 or more")
    if not 0 <= tau_o <= 1:
        raise ConfigError(f"tau_o = {tau_o} is not a share; use a number in [0, 1]")
    positions = Positions.of(table)
    values = positions.values
    wanted = [(tau_h, None), *((threshold_for(positions, r, tau_o), r) for r in rates)]
    impossible = float((values["target_prob"] == 0).mean())
    accuracy = [
        mean(solved(positions, values[f"{model}_prob"])) if unique_solution else None
        for model in ("target", "draft")
    ]
    return Diagnosis(
        texts=positions.n_texts,
        positions=len(positions),
        unique_solution=unique_solution,
        tau_o=tau_o,
        target_best=float(values["target_best"].mean()),
        draft_best=float(values["draft_best"].mean()),
        impossible=impossible,
        target_accuracy=accuracy[0],
        draft_accuracy=accuracy[1],
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
    by_text = positions.by_text(is_open.astype(np.float64))
    fired = share(by_text, positions.by_text(np.ones(len(positions))))
    found = effects(positions, tau_h, tau_o, unique_solution=unique_solution)

    def mean_there(column: Any) -> float | None:
        return float(column[is_open].mean()) if is_open.any() else None

    return AtThreshold(
        tau_h=tau_h,
        wanted=wanted,
        fired=fired,
        meets={name: float(where.mean()) for name, where in met(positions, tau_h, tau_o).items()},
        gated=int(is_open.sum()),
        gated_texts=int((by_text > 0).sum()),
        target_right=mean_there(values["target_prob"]),
        draft_right=mean_there(values["draft_prob"]),
        criterion=mean_there(values["open_easd"] > values["target_prob"]),
        pool=fit_pool(positions, is_open),
        effects=found,
        verdict=verdict(found, tau_h, fired, unique_solution=unique_solution),
    )


def _caveats(unique_solution: bool, impossible: float) -> list[str]:
    lines = [
        "Positions are those of the reference texts. What a rule does once a model's own text has "
        "left them is not seen.",
        "Every position counts as drafted. With draft_at_bonus off, bonus positions keep the "
        "target's law, and effects at the gate are smaller.",
        "The pool is judged by texts that it was not fitted on; the other rules have the settings "
        "they come with.",
    ]
    if not unique_solution:
        lines.insert(
            1,
            "Only the reference's own token is credited: another continuation that is just as good "
            "counts as wrong. The log-likelihood is a proper score, but of this text alone.",
        )
    if impossible:
        lines.append(
            f"At {impossible:.2%} of positions the target cannot write the right token under these "
            "settings; log-likelihoods leave them out."
        )
    return lines
