"""Means, shares and ratios over clustered samples, with intervals.

Notation: problem i has m_i samples (or positions) that sum to S_i; n is the sum of all m_i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from easd.errors import InputError

Array = NDArray[np.float64]


def as_values(name: str, values: ArrayLike) -> Array:
    """`values` as a vector of finite numbers.

    Raises:
        InputError: There are none, or one is missing or infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise InputError(f"{name} has shape {array.shape}; give one number for each sample")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise InputError(f"{name} has {bad} missing or infinite values; leave those samples out")
    return array


def as_pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """Two aligned vectors of finite numbers.

    Raises:
        InputError: As in `as_values`, or their lengths differ.
    """
    first, second = as_values("a", a), as_values("b", b)
    if len(first) != len(second):
        raise InputError(
            f"{len(first)} values of a for {len(second)} of b; pair them by problem and seed first"
        )
    return first, second


def codes_of(clusters: ArrayLike | None, n: int) -> NDArray[np.intp]:
    """Cluster labels as numbers from 0; without labels, each sample is a cluster.

    Raises:
        InputError: There are not `n` labels.
    """
    if clusters is None:
        return np.arange(n)
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise InputError(f"{labels.size} clusters for {n} samples; give each sample its problem")
    return np.unique(labels, return_inverse=True)[1]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Sums and sizes by problem.

    Attributes:
        sums: S_i, [C].
        sizes: m_i, [C], all positive.
    """

    sums: Array
    sizes: Array

    @classmethod
    def of(cls, values: Array, clusters: ArrayLike | None) -> Clusters:
        """Sums one value per sample by problem."""
        return cls.of_sums(values, np.ones(len(values)), clusters)

    @classmethod
    def of_sums(cls, sums: Array, sizes: Array, clusters: ArrayLike | None) -> Clusters:
        """Adds one sum and one size per text by problem; problems of size 0 are left out."""
        codes = codes_of(clusters, len(sums))
        of_problem, size = (np.bincount(codes, weights=each) for each in (sums, sizes))
        kept = size > 0
        return cls(of_problem[kept].astype(np.float64), size[kept].astype(np.float64))

    @property
    def n(self) -> float:
        return float(self.sizes.sum())

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.n)

    @property
    def worst_effect(self) -> float:
        """The design effect if all samples of a problem agreed; 1 with one sample each."""
        return float((self.sizes**2).sum() / self.n)

    @property
    def variance(self) -> float:
        """Jackknife variance of the mean, leaving out one problem at a time.

        Raises:
            InputError: There is only one problem.
        """
        count = len(self.sums)
        if count < 2:
            raise InputError(
                "all samples come from one problem, so nothing is known about others; "
                "give two problems or more"
            )
        residual = (self.sums - self.mean * self.sizes) / (1 - self.sizes / self.n)
        return float((count - 1) / count * (residual**2).sum() / self.n**2)

    def design_effect(self, sample_variance: float) -> float:
        """The factor by which clustering multiplies the variance of independent samples.

        Clipped to [1, `worst_effect`]; `worst_effect` if all samples agree, since they then give no
        evidence that samples of one problem are independent.
        """
        if self.worst_effect == 1:
            return 1.0
        estimated = self.variance  # Raises for a single problem in any case.
        if sample_variance <= 0:
            return self.worst_effect
        return float(np.clip(estimated / (sample_variance / self.n), 1, self.worst_effect))

    def freedom(self, *, exact_variance: bool) -> float:
        """Degrees of freedom of a standardised mean, by Kish's effective number of problems.

        Infinite, which is the normal distribution, where the variance follows from the mean
        (`exact_variance`) and no problem has several samples.
        """
        if exact_variance and self.worst_effect == 1:
            return math.inf
        return max(self.n / self.worst_effect - 1, 1.0)

    def limit(self, level: float, *, exact_variance: bool) -> float:
        """Half-width of an interval in standard errors."""
        return float(stats.t.ppf((1 + level) / 2, self.freedom(exact_variance=exact_variance)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval.

    Attributes:
        level: intended coverage of the interval.
        n: samples, or positions.
        n_clusters: problems.
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    n_clusters: int


def proportion(
    correct: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95
) -> Estimate:
    """The mean of 0/1 values, such as accuracy, for problems like the ones sampled.

    Wilson's interval; with several samples per problem, for the number of independent samples of
    the same variance, with Student's quantile for the normal one.

    Args:
        correct: [N].
        clusters: each sample's problem, [N]; without, each sample is one.

    Raises:
        InputError: Nothing to count, values other than 0 and 1, or only one problem.
    """
    values = as_values("correct", correct)
    if not np.isin(values, (0, 1)).all():
        raise InputError("correct has values other than 0 and 1; grade samples right or wrong")
    return _wilson(Clusters.of(values, clusters), level)


def share(
    part: ArrayLike, whole: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95
) -> Estimate:
    """A share of positions, such as penalised / examined, from counts by text.

    The interval is that of `proportion`, which is valid for rare events and for none at all.

    Args:
        part: positions that count, by text [N].
        whole: all positions, by text [N]; problems without any are left out.
        clusters: each text's problem, [N]; without, each text is one.

    Raises:
        InputError: No positions, or a part greater than its whole.
    """
    data = _by_problem("part", part, "whole", whole, clusters)
    if (data.sums > data.sizes).any():
        raise InputError("a part is greater than its whole; use ratio for other ratios")
    return _wilson(data, level)


def ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """A ratio of positive sums, such as tokens per target forward, from sums by text.

    Student's interval for the logarithm, with the jackknife variance over problems.

    Args:
        numerators: by text [N].
        denominators: by text [N]; problems where their sum is zero are left out.
        clusters: each text's problem, [N]; without, each text is one.

    Raises:
        InputError: Negative values, a sum of zero, or fewer than two problems.
    """
    data = _by_problem("numerators", numerators, "denominators", denominators, clusters)
    if data.mean == 0:
        raise InputError(
            "numerators are all zero, which leaves no logarithm; "
            "use share for counts that may be zero"
        )
    width = math.sqrt(data.variance) / data.mean
    factor = math.exp(width * data.limit(level, exact_variance=False))
    return _estimate(data, data.mean / factor, data.mean * factor, level)


def student(data: Clusters, level: float) -> Estimate:
    """Mean of any values with Student's interval over problems."""
    half = math.sqrt(data.variance) * data.limit(level, exact_variance=False)
    return _estimate(data, data.mean - half, data.mean + half, level)


def _wilson(data: Clusters, level: float) -> Estimate:
    mean = data.mean
    n = data.n / data.design_effect(mean * (1 - mean))
    square = data.limit(level, exact_variance=True) ** 2
    centre = (mean + square / (2 * n)) / (1 + square / n)
    half = math.sqrt(square * (mean * (1 - mean) / n + square / (4 * n * n))) / (1 + square / n)
    # Keeps rounding from moving an end past a mean of exactly 0 or 1.
    return _estimate(data, min(mean, centre - half), max(mean, centre + half), level)


def _estimate(data: Clusters, low: float, high: float, level: float) -> Estimate:
    return Estimate(
        value=data.mean,
        low=low,
        high=high,
        level=level,
        n=round(data.n),
        n_clusters=len(data.sums),
    )


def _by_problem(
    first: str, above: ArrayLike, second: str, below: ArrayLike, clusters: ArrayLike | None
) -> Clusters:
    over, under = as_values(first, above), as_values(second, below)
    if len(over) != len(under):
        raise InputError(f"{len(over)} {first} for {len(under)} {second}; give one of each a text")
    if (over < 0).any() or (under < 0).any() or under.sum() == 0:
        raise InputError(f"{first} or {second} are negative, or there is nothing to divide by")
    return Clusters.of_sums(over, under, clusters)
