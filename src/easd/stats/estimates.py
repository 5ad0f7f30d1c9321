"""Proportions and ratios with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from easd.errors import InputError
from easd.stats.clusters import Clusters, as_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval.

    Attributes:
        level: how often such an interval is meant to hold the truth.
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

    Wilson's interval; with several samples to a problem, for the number of independent samples
    that would have the same variance, with Student's quantile in place of the normal.

    Args:
        correct: [N].
        clusters: each sample's problem, [N]; without, each sample is one.

    Raises:
        InputError: Nothing to count, values other than 0 and 1, or only one problem.
    """
    values = as_values("correct", correct)
    if not np.isin(values, (0, 1)).all():
        raise InputError("correct holds values other than 0 and 1; grade samples right or wrong")
    return _wilson(Clusters.of(values, clusters), level)


def share(
    part: ArrayLike, whole: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95
) -> Estimate:
    """A share of positions, such as penalised / examined, from counts by text.

    The interval is that of `proportion`: it is right for rare events, and for none at all.

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
    # Rounding must not push an end past a value of exactly 0 or 1.
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
