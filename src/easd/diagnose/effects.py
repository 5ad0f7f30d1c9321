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
"""EASD with fewer conditions: name and those left."""

EVERYWHERE = {"greedy everywhere": "greedy-p", "half temperature": "sharpened"}
"""Gated rules that are judged without their gate too: name there and the rule's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One rule against the target.

    All changes are fractions: 0.01 is one point.

    Attributes:
        rule: its name.
        acts: share of positions that its law changes: its gate's, or all.
        gated: whether a gate says where.
        where_it_acts: mean change of the right token's probability where it acts; None where that
            happens in fewer than two texts.
        log_likelihood: mean change of the right token's log-probability there, in nats; None where
            the rule gives some right token probability 0, and as above.
        can_be_zero: whether it does.
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
        # Where the target itself gives 0, as truncation makes it do, nothing is compared.
        compared = acts & (target > 0)
        can_be_zero = bool((law[compared] <= 0).any())
        change, p_value = _tested(_by_text(positions, law, unique_solution))
        found.append(
            Effect(
                rule=rule,
                acts=float(acts.mean()),
                gated=gated,
                where_it_acts=_mean_at(positions, acts, law - target),
                log_likelihood=None if can_be_zero else _log_change(positions, compared, law),
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


def mean(values: Values) -> Estimate:
    """The mean over texts, [T] values."""
    return student(Clusters.of(values, None), LEVEL)


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
    everywhere = np.ones(len(positions), dtype=bool)
    refused = target + is_open.mean() * (values["open_easd"] - target)
    yield "random refusal", False, everywhere, refused
    for name, rule in EVERYWHERE.items():
        if GATED + rule in values:
            yield name, False, everywhere, values[GATED + rule]
    for name in positions.rules(UNGATED):
        yield name, False, everywhere, values[UNGATED + name]


def _by_text(positions: Positions, law: Values, unique_solution: bool) -> Values:
    target = positions.values["target_prob"]
    if unique_solution:
        return solved(positions, law) - solved(positions, target)
    return positions.by_text(law - target)


def _tested(values: Values) -> tuple[Estimate, float]:
    """Mean of one value a text, and the p-value of 0."""
    data = Clusters.of(values, None)
    error = math.sqrt(data.variance)
    if error == 0:
        return student(data, LEVEL), float(data.mean == 0)
    freedom = data.freedom(exact_variance=False)
    return student(data, LEVEL), float(2 * stats.t.sf(abs(data.mean) / error, freedom))


def _mean_at(positions: Positions, where: Mask, values: Values) -> Estimate | None:
    """The mean over chosen positions, with texts as clusters."""
    texts = positions.texts[where]
    if len(np.unique(texts)) < 2:
        return None
    return student(Clusters.of(values[where], texts), LEVEL)


def _log_change(positions: Positions, where: Mask, law: Values) -> Estimate | None:
    change = np.zeros(len(positions))
    change[where] = np.log(law[where] / positions.values["target_prob"][where])
    return _mean_at(positions, where, change)
