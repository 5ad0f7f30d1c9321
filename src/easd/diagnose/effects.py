"""Change in the probability of the reference token under each rule, with intervals over texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from easd.diagnose.pool_fit import held_out_laws
from easd.diagnose.positions import GATED, UNGATED, Mask, Positions, Values, gate
from easd.stats import Estimate, holm
from easd.stats.estimates import Clusters, student

LEVEL = 0.95

ABLATIONS = {
    "easd-without-overlap": ("draft_entropy", "target_entropy"),
    "easd-without-draft-entropy": ("target_entropy", "overlap"),
    "easd-without-both": ("target_entropy",),
    "overlap-only": ("overlap",),
}
"""EASD with fewer conditions: name, and the conditions that remain."""

EVERYWHERE = {"greedy everywhere": "greedy-p", "half temperature": "sharpened"}
"""Gated rules that are judged without their gate too: new name, and the rule's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The change that one rule makes to the target; 0.01 is one point.

    Attributes:
        acts: share of positions that the rule's law changes: where its gate is open, or all.
        gated: whether the rule has a gate.
        where_it_acts: mean change of the right token's probability there; None with fewer than two
            texts.
        log_likelihood: mean change of the right token's log-probability there, in nats; None with
            fewer than two texts, or if `can_be_zero`.
        can_be_zero: whether the rule gives some right token probability 0.
        change: mean change per text: of the probability that the text is written, where it is the
            only right one, else of the expected number of right tokens.
        p_value: of no change, Holm-adjusted over the rules of one table.
    """

    rule: str
    acts: float
    gated: bool
    where_it_acts: Estimate | None
    log_likelihood: Estimate | None
    can_be_zero: bool
    change: Estimate
    p_value: float


def effects(
    positions: Positions, tau_h: float, tau_o: float, *, unique_solution: bool
) -> tuple[Effect, ...]:
    """Every rule at these thresholds, those with a gate first."""
    found = []
    target = positions.values["target_prob"]
    for rule, gated, acts, law in _laws(positions, tau_h, tau_o):
        # Truncation makes the target itself give 0, where a log-ratio is undefined.
        compared = acts & (target > 0)
        can_be_zero = bool((law[compared] <= 0).any())
        by_text = (
            solved(positions, law) - solved(positions, target)
            if unique_solution
            else positions.by_text(law - target)
        )
        change, p_value = tested(Clusters.of(by_text, None))
        found.append(
            Effect(
                rule=rule,
                acts=float(acts.mean()),
                gated=gated,
                where_it_acts=_mean_at(positions, acts, law[acts] - target[acts]),
                log_likelihood=None
                if can_be_zero
                else _mean_at(positions, compared, np.log(law[compared] / target[compared])),
                can_be_zero=can_be_zero,
                change=change,
                p_value=p_value,
            )
        )
    adjusted = holm([effect.p_value for effect in found])
    return tuple(
        replace(effect, p_value=float(p)) for effect, p in zip(found, adjusted, strict=True)
    )


def solved(positions: Positions, law: Values) -> Values:
    """Probability that each text is written under `law`: the product over its positions, [T]."""
    with np.errstate(divide="ignore"):
        return np.exp(positions.by_text(np.log(law)))


def mean(values: Values, texts: np.ndarray | None = None) -> Estimate:
    """The mean with its interval: of one value per text, or with `texts` as clusters."""
    return student(Clusters.of(values, texts), LEVEL)


def tested(data: Clusters) -> tuple[Estimate, float]:
    """The mean with its interval, and the p-value of a mean of 0."""
    error = math.sqrt(data.variance)
    if error == 0:
        return student(data, LEVEL), float(data.mean == 0)
    freedom = data.freedom(exact_variance=False)
    return student(data, LEVEL), float(2 * stats.t.sf(abs(data.mean) / error, freedom))


def _laws(
    positions: Positions, tau_h: float, tau_o: float
) -> Iterator[tuple[str, bool, Mask, Values]]:
    """Each rule's name, whether it has a gate, where it acts, and the right token's probability."""
    values = positions.values
    target = values["target_prob"]
    is_open = gate(positions, tau_h, tau_o)

    def at(where: Mask, law: Values) -> Values:
        return np.where(where, law, target)

    for name in positions.rules(GATED):
        yield name, True, is_open, at(is_open, values[GATED + name])
    for name, pooled in zip(
        ("pool", "pool, drawn from"), held_out_laws(positions, is_open), strict=True
    ):
        law = target.copy()
        law[is_open] = pooled
        yield name, True, is_open, law
    for name, conditions in ABLATIONS.items():
        where = gate(positions, tau_h, tau_o, conditions)
        yield name, True, where, at(where, values["open_easd"])
    everywhere = positions.everywhere
    refused = target + is_open.mean() * (values["open_easd"] - target)
    yield "random refusal", False, everywhere, refused
    for name, rule in EVERYWHERE.items():
        if GATED + rule in values:
            yield name, False, everywhere, values[GATED + rule]
    for name in positions.rules(UNGATED):
        yield name, False, everywhere, values[UNGATED + name]


def _mean_at(positions: Positions, where: Mask, values: Values) -> Estimate | None:
    """The mean of `values` [n] at the n chosen positions, with texts as clusters."""
    texts = positions.texts[where]
    return mean(values, texts) if len(np.unique(texts)) >= 2 else None
