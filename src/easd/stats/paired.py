"""Differences between two systems on the same problems and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from easd.errors import InputError
from easd.stats.estimates import Array, Clusters, Estimate, as_pair, as_values, proportion, student

_FLIPS = 9_999


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference(Estimate):
    """A paired difference a - b.

    Interval and p-value come from different tests. The p-value is exact and decides where they
    disagree about zero in a small sample.

    Attributes:
        p_value: of no difference, two-sided.
        gained: samples where a is better.
        lost: samples where b is better.
        unpaired_low, unpaired_high: the interval if the two had answered different problems.
    """

    p_value: float
    gained: int
    lost: int
    unpaired_low: float
    unpaired_high: float

    @property
    def narrowing(self) -> float:
        """Width of the unpaired interval divided by that of the paired one."""
        width = self.high - self.low
        return (self.unpaired_high - self.unpaired_low) / width if width else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalence(Estimate):
    """A test of whether a difference is smaller than a margin.

    Attributes:
        p_value: of a difference of `margin` or more, in either direction; below 1 - x where
            the interval of level 2x - 1 lies within the margin.
        margin: the largest negligible difference.
    """

    p_value: float
    margin: float


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95
) -> Difference:
    """How much better `a` is than `b`, sample by sample.

    For 0/1 values the interval is Tango's score interval for paired proportions (Tango 1998), with
    several samples per problem for the number of independent samples of the same variance; for
    other values it is Student's over problems.

    The p-value flips the sign of whole problems' differences: exact for 0/1 values, where it is
    McNemar's exact test if each problem has one sample; else over 9,999 random flips.

    Args:
        a: [N], aligned with `b` by problem and seed.
        b: [N].
        clusters: each sample's problem, [N]; without, each sample is one.

    Raises:
        InputError: Lengths differ, values are missing, or there is only one problem.
    """
    pair = _Pair.of(a, b, clusters)
    low, high = pair.interval(level)
    of_a, of_b = (_single(values, clusters, level) for values in (pair.a, pair.b))
    # Two independent intervals combined, as Newcombe (1998, method 10) does with Wilson's.
    below = math.hypot(of_a.value - of_a.low, of_b.high - of_b.value)
    above = math.hypot(of_a.high - of_a.value, of_b.value - of_b.low)
    return Difference(
        **pair.estimate(low, high, level),
        p_value=_flip_test(pair.data.sums, whole=pair.binary),
        gained=int((pair.a > pair.b).sum()),
        lost=int((pair.a < pair.b).sum()),
        unpaired_low=pair.data.mean - below,
        unpaired_high=pair.data.mean + above,
    )


def equivalence(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    margin: float = 0.01,
    level: float = 0.95,
) -> Equivalence:
    """Two one-sided tests that a - b lies within ± `margin`.

    The tests are those of `paired_difference`'s interval, for 0/1 values with a continuity
    correction of half a problem, without which runs with few flips claim too much.

    Args:
        a: [N], aligned with `b` by problem and seed.
        b: [N].
        clusters: each sample's problem, [N]; without, each sample is one.
        margin: in the values' own unit; 0.01 is one point of accuracy.
        level: 1 - size of each test; the interval has level 2 level - 1.

    Raises:
        InputError: As in `paired_difference`, or a margin that is not positive.
    """
    if margin <= 0:
        raise InputError(f"margin = {margin} is not positive; give a harmless difference")
    pair = _Pair.of(a, b, clusters)
    inner = 2 * level - 1
    low, high = pair.interval(inner, stepped=True)
    statistic = pair.statistic(stepped=True)
    nearer = min(statistic(-margin), -statistic(margin))
    return Equivalence(
        **pair.estimate(low, high, inner),
        p_value=float(stats.t.sf(nearer, pair.data.freedom(exact_variance=pair.binary))),
        margin=margin,
    )


def holm(p_values: ArrayLike) -> Array:
    """Holm's adjusted p-values, for a family-wise error."""
    values = as_values("p_values", p_values)
    order = np.argsort(values)
    steps = np.arange(len(values), 0, -1) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two systems' values and their differences by problem."""

    a: Array
    b: Array
    data: Clusters
    binary: bool

    @classmethod
    def of(cls, a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None) -> _Pair:
        first, second = as_pair(a, b)
        binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
        return cls(first, second, Clusters.of(first - second, clusters), binary)

    def estimate(self, low: float, high: float, level: float) -> dict[str, Any]:
        """The fields of `Estimate`."""
        counts = {"n": len(self.a), "n_clusters": len(self.data.sums)}
        return {"value": self.data.mean, "low": low, "high": high, "level": level, **counts}

    @property
    def effect(self) -> float:
        differs = float((self.a != self.b).mean())
        return self.data.design_effect(differs - self.data.mean**2)

    def interval(self, level: float, *, stepped: bool = False) -> tuple[float, float]:
        """The interval of differences that the statistic does not reject."""
        limit = self.data.limit(level, exact_variance=self.binary)
        mean = self.data.mean
        if not self.binary:
            half = limit * math.sqrt(self.data.variance)
            return mean - half, mean + half
        statistic = self.statistic(stepped=stepped)
        low, high = (
            end if mean == end else _root(lambda x, s=sign: s * statistic(x) - limit, end, mean)
            for sign, end in ((1, -1.0), (-1, 1.0))
        )
        return low, high

    def statistic(self, *, stepped: bool) -> Callable[[float], float]:
        """Maps a difference to the standard errors by which the observed one exceeds it."""
        if not self.binary:
            error = math.sqrt(self.data.variance)
            return lambda difference: _over(self.data.mean - difference, error)
        effect = self.effect
        gained = float((self.a > self.b).sum()) / effect
        lost = float((self.a < self.b).sum()) / effect
        n = self.data.n / effect
        step = 0.5 * self.data.worst_effect / effect if stepped else 0.0
        return lambda difference: _tango(gained, lost, n, difference, step)


def _tango(gained: float, lost: float, n: float, difference: float, step: float) -> float:
    """Score statistic of a difference of paired proportions (Tango 1998).

    The variance uses the maximum-likelihood rate of losses under that difference, the larger root
    of a quadratic equation.
    """
    linear = (2 * n - gained + lost) * difference - gained - lost
    constant = -lost * difference * (1 - difference)
    loss = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * loss + difference * (1 - difference))
    excess = gained - lost - n * difference
    shortened = math.copysign(max(abs(excess) - step, 0.0), excess)
    return _over(shortened, math.sqrt(max(variance, 0.0)))


def _over(excess: float, error: float) -> float:
    if excess == 0:
        return 0.0
    return excess / error if error > 0 else math.copysign(math.inf, excess)


def _single(values: Array, clusters: ArrayLike | None, level: float) -> Estimate:
    if np.isin(values, (0, 1)).all():
        return proportion(values, clusters, level)
    return student(Clusters.of(values, clusters), level)


def _flip_test(sums: Array, *, whole: bool) -> float:
    """Two-sided p-value of problems' differences under random signs."""
    sizes = np.abs(sums[sums != 0])
    observed = abs(float(sums.sum()))
    if whole:
        return _exact_flips(sizes.astype(np.int64), round(observed))
    if len(sizes) <= math.log2(_FLIPS):
        bits = np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes)) & 1
        return float(_reached((2 * bits - 1) @ sizes, observed).mean())
    rng = np.random.default_rng(0)
    hits = sum(
        bool(_reached(rng.choice((-1.0, 1.0), len(sizes)) @ sizes, observed)) for _ in range(_FLIPS)
    )
    return (1 + hits) / (1 + _FLIPS)


def _exact_flips(sizes: np.ndarray, observed: int) -> float:
    """The same for integers, from the exact distribution of the sum of the positive ones."""
    probability = np.ones(1)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        spaced = np.zeros(size * count + 1)
        spaced[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        probability = np.convolve(probability, spaced)
    total = 2 * np.arange(len(probability)) - sizes.sum()
    return min(1.0, float(probability[np.abs(total) >= observed].sum()))


def _reached(total: Array, observed: float) -> np.ndarray:
    """Whether sums are at least as far from zero as the observed one, up to rounding."""
    return np.abs(total) >= observed * (1 - 1e-12)


def _root(function: Callable[[float], float], above: float, below: float) -> float:
    """The root of a function that is positive at `above` and not at `below`."""
    found = optimize.root_scalar(function, bracket=(above, below), method="bisect", xtol=1e-8)
    return float(found.root)
