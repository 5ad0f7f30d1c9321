"""Tests whether the draft's probabilities mean something else where EASD's gate is open.

Two models of the right token among the plausible ones are compared on held-out texts: p^a q^b
everywhere, and p^a q^b with other powers where the gate is open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from easd.diagnose.calibration import TOP_SHARE
from easd.diagnose.effects import mean
from easd.diagnose.pool_fit import FOLDS, best_power, fit_pool, folds_of, has_choice, log_shares
from easd.diagnose.positions import Mask, Positions, Values, gate, threshold_for
from easd.stats import Estimate

RATES = (0.02, 0.08)

Powers = Callable[[Mask, Mask], tuple[float, float]]
"""a and b for positions where the second mask holds, fitted where both do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTrial:
    """Gain from other powers where the gate is open.

    Attributes:
        threshold: how tau_h was found.
        fired: share of positions where the gate is open.
        nats: held-out log-likelihood gained per position.
    """

    threshold: str
    tau_h: float
    fired: float
    nats: Estimate


def gate_trials(positions: Positions) -> tuple[tuple[GateTrial, ...], Mapping[str, Estimate]]:
    """Tests the gate at several thresholds.

    Returns:
        A trial by the paper's rule and one for each of `RATES`; and the mean negative
        log-likelihood per position without a gate, by model. Both are empty if the target is so
        sure that fewer than two texts have a position with a choice.
    """
    usable = has_choice(positions)
    if len(np.unique(positions.texts[usable])) < 2:
        return (), {}
    folds = folds_of(positions)

    def held_out(powers: Powers, where: Mask) -> Values:
        logs = np.zeros(len(positions))
        for fold in range(FOLDS):
            own, others = usable & where & (folds == fold), usable & (folds != fold)
            logs[own] = log_shares(positions, own, *powers(others, where))
        return logs

    def mean_of(values: Values) -> Estimate:
        return mean(values[usable], positions.texts[usable])

    def both(others: Mask, where: Mask) -> tuple[float, float]:
        fit = fit_pool(positions, others & where)
        if fit.fallback:  # too few positions, so the gate makes no difference
            fit = fit_pool(positions, others)
        return fit.a, fit.b

    def alone(others: Mask, where: Mask) -> tuple[float, float]:
        return best_power(positions, others & where), 0.0

    everywhere = positions.everywhere
    pooled = held_out(both, everywhere)
    log_likelihoods = {
        "target, T = 1": held_out(lambda *_: (1.0, 0.0), everywhere),
        "target, best temperature": held_out(alone, everywhere),
        "pool": pooled,
    }
    values = positions.values
    highest = np.sort(np.concatenate([values["draft_entropy"], values["target_entropy"]]))
    paper = float(highest[-max(1, round(TOP_SHARE * len(highest))) :].mean())
    heights = {"the paper's rule": paper}
    heights |= {f"{100 * rate:g} % firing": threshold_for(positions, rate) for rate in RATES}
    trials = []
    for name, height in heights.items():
        is_open = gate(positions, height)
        gated = held_out(both, is_open) + held_out(both, ~is_open) if is_open.any() else pooled
        trials.append(
            GateTrial(
                threshold=name,
                tau_h=height,
                fired=float(is_open.mean()),
                nats=mean_of(gated - pooled),
            )
        )
    return tuple(trials), {name: mean_of(-each) for name, each in log_likelihoods.items()}
