"""Candidates for the best rule of a pair.

A candidate is a function of the positions to fit on; it returns a function of the positions to
judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from easd.diagnose.pool_fit import Choices, fit_pool
from easd.diagnose.positions import Mask, Positions, Values, gate, threshold_for

LEAST_PLAUSIBLE = 0.02
CUTS = (LEAST_PLAUSIBLE, 0.1, 0.3)
TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0)
DRAFT_TEMPERATURES = (0.0, 0.5, 0.7, 1.0, 1.3)
GATE_RATE = 0.02
TARGET = "target at its best"


@dataclass(frozen=True, slots=True)
class Reading:
    """N positions as tuning needs them, with D draft temperatures and T temperatures.

    Attributes:
        positions: with the gate's signals as values; a token is plausible from `LEAST_PLAUSIBLE`
            times the probability of the target's best one.
        draft_top: index of the draft's best token among all plausible ones, [N]; -1 where it is
            not plausible.
        draft_scale: log of the sum of q^(1/d) over the vocabulary by draft temperature d, [N, D].
        right_at: the target's probability of the right token by temperature, [N, T].
        accepted_at: probability that lossless speculation accepts a draft token, [N, T, D].
        easd: EASD's probability of the right token at an open gate, greedy and at T = 1, [N, 2].
    """

    positions: Positions
    draft_top: np.ndarray
    draft_scale: Values
    right_at: Values
    accepted_at: Values
    easd: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A fitted candidate at n positions.

    Attributes:
        right: probability of the right token, [n].
        accepted: probability that a draft token is accepted, by draft temperature, [n, D].
        rule: its name and fields.
        temperature: at which tokens are drawn.
    """

    right: Values
    accepted: Values
    rule: Mapping[str, Any]
    temperature: float


Fit = Callable[[Mask], Callable[[Mask], Judged]]
"""Fits at the positions of the first mask; the result judges those of the second."""


Score = Callable[[Values], Values]
"""From each position's probability of the right token to each text's score, [N] -> [texts]."""


def candidates(reading: Reading, score: Score) -> dict[str, Fit]:
    """Every candidate by name."""
    positions = reading.positions
    by_cut = {each: cut(positions, each) for each in CUTS}

    def at_temperature(chosen: Mask, place: int) -> Judged:
        temperature = TEMPERATURES[place]
        return Judged(
            right=reading.right_at[chosen, place],
            accepted=reading.accepted_at[chosen, place],
            rule={"name": "speculative"},
            temperature=temperature,
        )

    def best_target(fitted: Mask) -> Callable[[Mask], Judged]:
        means = [_mean_score(score, fitted, right) for right in reading.right_at.T]
        return lambda chosen: at_temperature(chosen, int(np.argmax(means)))

    def pool(*, drawn: bool, gated: bool) -> Fit:
        def fit(fitted: Mask) -> Callable[[Mask], Judged]:
            height = _threshold(positions, fitted) if gated else np.inf
            is_open = gate(positions, height) if gated else ~positions.everywhere
            found = []
            for plausible, (narrowed, place) in by_cut.items():
                closed = fit_pool(narrowed, fitted & ~is_open)
                opened = fit_pool(narrowed, fitted & is_open) if gated else closed
                if opened.fallback:  # too few positions, so the gate makes no difference
                    opened = closed
                powers = np.where(is_open[:, None], (opened.a, opened.b), (closed.a, closed.b))
                right, accepted = _pooled(reading, narrowed, place, powers, drawn=drawn)
                rule = {"a": closed.a, "b": closed.b, "plausible": plausible}
                if gated:
                    own = {"tau_h": height, "tau_o": 0.8, "open_a": opened.a, "open_b": opened.b}
                    rule = {"name": "pool-by-gate", **rule, **own}
                else:
                    rule = {"name": "pool-everywhere", **rule}
                found.append((_mean_score(score, fitted, right), right, accepted, rule))
            _, right, accepted, rule = max(found, key=lambda each: each[0])
            return lambda chosen: Judged(
                right=right[chosen],
                accepted=accepted[chosen],
                rule=rule,
                temperature=float(drawn),
            )

        return fit

    def easd(*, drawn: bool) -> Fit:
        place = TEMPERATURES.index(float(drawn))

        def fit(fitted: Mask) -> Callable[[Mask], Judged]:
            height = _threshold(positions, fitted)
            is_open = gate(positions, height)
            right = np.where(is_open, reading.easd[:, int(drawn)], reading.right_at[:, place])
            accepted = reading.accepted_at[:, place] * ~is_open[:, None]
            accepted *= np.equal(DRAFT_TEMPERATURES, 1.0)  # its procedure drafts at T = 1
            return lambda chosen: Judged(
                right=right[chosen],
                accepted=accepted[chosen],
                rule={"name": "easd", "tau_h": height, "tau_o": 0.8, "draft_at_bonus": True},
                temperature=float(drawn),
            )

        return fit

    plain = TEMPERATURES.index(1.0)
    return {
        TARGET: best_target,
        "target, T = 1": lambda _: lambda chosen: at_temperature(chosen, plain),
        "pool everywhere, greedy": pool(drawn=False, gated=False),
        "pool everywhere, sampled": pool(drawn=True, gated=False),
        "pool by gate, greedy": pool(drawn=False, gated=True),
        "EASD, greedy": easd(drawn=False),
        "EASD, T = 1": easd(drawn=True),
    }


def _mean_score(score: Score, chosen: Mask, right: Values) -> float:
    """The mean score of texts, with probability 1 at positions that are not chosen."""
    return float(score(np.where(chosen, right, 1.0)).mean())


def _threshold(positions: Positions, fitted: Mask) -> float:
    values = {name: each[fitted] for name, each in positions.values.items()}
    return threshold_for(replace(positions, values=values), GATE_RATE)


def _pooled(
    reading: Reading, narrowed: Positions, place: np.ndarray, powers: Values, *, drawn: bool
) -> tuple[Values, Values]:
    """Probability of the right token, and acceptance by draft temperature, of a pool."""
    choices = Choices.at(narrowed, narrowed.everywhere)
    shares, logs = choices.shares(powers)
    greedy, right = choices.laws(powers)
    draft_top = place[reading.draft_top]
    if not drawn:
        accepted = (choices.best(logs) == draft_top).astype(np.float64)
        return greedy, np.repeat(accepted[:, None], len(DRAFT_TEMPERATURES), 1)
    columns = []
    for at, temperature in enumerate(DRAFT_TEMPERATURES):
        if temperature:
            logs = narrowed.draft_logs / temperature - reading.draft_scale[choices.of, at]
            overlap = np.minimum(np.exp(logs), shares)
            columns.append(np.add.reduceat(overlap, narrowed.starts[:-1]))
        else:
            columns.append(np.where(draft_top < 0, 0.0, shares[draft_top]))
    return right, np.stack(columns, 1)


def cut(positions: Positions, plausible: float) -> tuple[Positions, np.ndarray]:
    """The positions with fewer plausible tokens, and the new index of each old token, or -1."""
    best = np.maximum.reduceat(positions.target_logs, positions.starts[:-1])
    of = np.repeat(np.arange(len(positions)), np.diff(positions.starts))
    # Rounding must not drop a token exactly at the limit.
    kept = positions.target_logs >= best[of] + np.log(plausible) - 1e-9
    place = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    return (
        replace(
            positions,
            target_logs=positions.target_logs[kept],
            draft_logs=positions.draft_logs[kept],
            starts=np.concatenate([[0], np.cumsum(np.bincount(of[kept], minlength=len(best)))]),
            right=place[positions.right],
        ),
        place,
    )
