"""Fits the right token as a choice among plausible tokens with odds p^a q^b.

A conditional logit (McFadden 1974). With b > 0 the draft is a second opinion; with b < 0 its
preference is a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from easd.diagnose.positions import Mask, Positions, Values

LEAST_CHOICES = 50
LEAST_TEXTS = 10
FOLDS = 5
MOST_POWER = 100  # the pool rule's limit

_WORST_ERROR = 10.0  # a larger standard error means that the powers are not identified
_MOST_STEPS = 100
_GREEDY = np.array([1.0, 0.0])

Meaning = Literal["second opinion", "warning", "no effect detected", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFit:
    """Powers of the target's and the draft's probability, fitted by maximum likelihood.

    Attributes:
        a, b: the powers; (1, 0), the target's best token, where nothing could be fitted.
        a_error, b_error: sandwich standard errors, clustered by text.
        b_low, b_high: 95 % interval of b.
        n: gated positions with several plausible tokens, the right one among them.
        n_texts: texts with such a position.
        n_outside: gated positions whose right token is not plausible; the pool never writes it.
        fallback: why nothing was fitted; the optional numbers are then None.
    """

    a: float
    b: float
    a_error: float | None = None
    b_error: float | None = None
    b_low: float | None = None
    b_high: float | None = None
    n: int
    n_texts: int
    n_outside: int
    log_likelihood: float | None = None
    fallback: str | None = None

    @property
    def meaning(self) -> Meaning:
        """What the draft's preference means where the gate is open."""
        if self.b_low is None or self.b_high is None:
            return "unknown"
        if self.b_low > 0:
            return "second opinion"
        return "warning" if self.b_high < 0 else "no effect detected"


@dataclass(frozen=True, slots=True)
class Choices:
    """The plausible tokens of n positions, M in all.

    Attributes:
        logs: log p and log q of each, [M, 2].
        starts: index of each position's first token, [n].
        of: position of each token, [M].
        right: index of the right token, [n]; -1 where it is not plausible.
        texts: each position's text, [n].
    """

    logs: Values
    starts: np.ndarray
    of: np.ndarray
    right: np.ndarray
    texts: np.ndarray

    @classmethod
    def at(cls, positions: Positions, chosen: Mask) -> Choices:
        index = np.flatnonzero(chosen)
        first, lengths = positions.starts[index], np.diff(positions.starts)[index]
        starts = np.cumsum(lengths) - lengths
        of = np.repeat(np.arange(len(index)), lengths)
        source = np.arange(lengths.sum()) + (first - starts)[of]
        right = positions.right[index]
        return cls(
            np.stack([positions.target_logs[source], positions.draft_logs[source]], 1),
            starts,
            of,
            np.where(right < 0, -1, right - first + starts),
            positions.texts[index],
        )

    def best(self, logs: Values) -> np.ndarray:
        """Index of the token with the highest of `logs` [M] at each position, [n]."""
        top = np.flatnonzero(logs == np.maximum.reduceat(logs, self.starts)[self.of])
        # The first of equal ones, as argmax has it.
        return top[np.unique(self.of[top], return_index=True)[1]]

    def shares(self, powers: Values) -> tuple[Values, Values]:
        """Normalised p^a q^b of every token [M], and its logarithm; powers [2] or [n, 2]."""
        scores = self.logs @ powers if powers.ndim == 1 else (self.logs * powers[self.of]).sum(1)
        scores -= np.maximum.reduceat(scores, self.starts)[self.of]
        logs = scores - np.log(np.add.reduceat(np.exp(scores), self.starts))[self.of]
        return np.exp(logs), logs

    def laws(self, powers: Values) -> tuple[Values, Values]:
        """Probability of the right token under the pool: its best token, or drawn; [n] each."""
        shares, logs = self.shares(powers)
        drawn = np.where(self.right < 0, 0.0, shares[self.right])
        return (self.best(logs) == self.right).astype(np.float64), drawn


def fit_pool(positions: Positions, gate: Mask) -> PoolFit:
    """Fits p^a q^b to the right tokens at gated positions."""
    usable = gate & has_choice(positions)
    n, n_texts = int(usable.sum()), len(np.unique(positions.texts[usable]))
    counts: Any = {
        "n": n,
        "n_texts": n_texts,
        "n_outside": int((gate & (positions.right < 0)).sum()),
    }

    def fall_back(reason: str) -> PoolFit:
        return PoolFit(a=1.0, b=0.0, **counts, fallback=reason)

    if not gate.any():
        return fall_back("the gate never opens")
    if n < LEAST_CHOICES or n_texts < LEAST_TEXTS:
        return fall_back(
            f"{n} gated positions with a choice in {n_texts} texts are too few; fitting takes "
            f"{LEAST_CHOICES} in {LEAST_TEXTS} texts"
        )
    choices = Choices.at(positions, usable)
    powers = _newton(choices)
    if powers is None:
        return fall_back(
            "the gated positions do not determine the powers: the two models rank alike there, or "
            "one ranking is always right"
        )
    scores, information = _derivatives(choices, powers)
    bread = np.linalg.inv(information)
    by_text = np.zeros((positions.n_texts, 2))
    np.add.at(by_text, choices.texts, scores)
    covariance = bread @ by_text.T @ by_text @ bread * n_texts / (n_texts - 1)
    a_error, b_error = np.sqrt(np.diag(covariance)).tolist()
    a, b = powers.tolist()
    half = float(stats.t.ppf(0.975, n_texts - 1)) * b_error
    return PoolFit(
        a=a,
        b=b,
        a_error=a_error,
        b_error=b_error,
        b_low=b - half,
        b_high=b + half,
        **counts,
        log_likelihood=float(choices.shares(powers)[1][choices.right].sum()),
    )


def best_power(positions: Positions, where: Mask) -> float:
    """The inverse of the temperature at which the target makes the right tokens most likely.

    It is 1 where it cannot be fitted.
    """
    choices = Choices.at(positions, where & has_choice(positions))
    powers = _newton(replace(choices, logs=choices.logs[:, :1])) if len(choices.right) else None
    return 1.0 if powers is None else float(powers[0])


def has_choice(positions: Positions) -> Mask:
    """Positions where the right token is plausible, and not the only plausible one."""
    return (positions.right >= 0) & (np.diff(positions.starts) > 1)


def log_shares(positions: Positions, where: Mask, a: float, b: float) -> Values:
    """Log-probability of the right token among the plausible ones, [n]; it must be plausible."""
    choices = Choices.at(positions, where)
    return choices.shares(np.array([a, b]))[1][choices.right]


def pool_laws(positions: Positions, gate: Mask, a: float, b: float) -> tuple[Values, Values]:
    """`Choices.laws` at gated positions, with one pair of powers."""
    if not gate.any():
        return np.zeros(0), np.zeros(0)
    return Choices.at(positions, gate).laws(np.array([a, b]))


def folds_of(positions: Positions) -> np.ndarray:
    """Each position's fold, [N]; all positions of a text have the same."""
    return (np.random.default_rng(0).permutation(positions.n_texts) % FOLDS)[positions.texts]


def held_out_laws(positions: Positions, gate: Mask) -> tuple[Values, Values]:
    """`pool_laws` with each text evaluated by a pool fitted on other texts (5-fold)."""
    folds = folds_of(positions)
    best, drawn = np.zeros(len(positions)), np.zeros(len(positions))
    for fold in range(FOLDS):
        fit = fit_pool(positions, gate & (folds != fold))
        judged = gate & (folds == fold)
        best[judged], drawn[judged] = pool_laws(positions, judged, fit.a, fit.b)
    return best[gate], drawn[gate]


def _newton(choices: Choices) -> Values | None:
    """The maximum-likelihood powers, or None where the likelihood has no clear maximum."""

    def likelihood(powers: Values) -> float:
        return float(choices.shares(powers)[1][choices.right].sum())

    powers = _GREEDY[: choices.logs.shape[1]]
    reached = likelihood(powers)
    for _ in range(_MOST_STEPS):
        scores, information = _derivatives(choices, powers)
        if np.linalg.cond(information) > 1e12:
            return None
        slope = scores.sum(0)
        step = np.linalg.solve(information, slope)
        if slope @ step < 1e-9:
            errors = np.sqrt(np.diag(np.linalg.inv(information)))
            return powers if errors.max() < _WORST_ERROR else None
        # The likelihood is concave, so a short enough step increases it.
        while (climbed := likelihood(powers + step)) < reached:
            step = step / 2
            if np.abs(step).max() < 1e-12:
                return None
        powers, reached = powers + step, climbed
        if np.abs(powers).max() > MOST_POWER:
            return None
    return None


def _derivatives(choices: Choices, powers: Values) -> tuple[Values, Values]:
    """Each position's slope of the log-likelihood [n, 2], and the information matrix [2, 2]."""
    weights = choices.shares(powers)[0][:, None]
    expected = np.add.reduceat(weights * choices.logs, choices.starts)
    around = choices.logs - expected[choices.of]
    return choices.logs[choices.right] - expected, (weights * around).T @ around
