"""What clustering does to a variance.

Notation: problem i has m_i samples (or positions) that sum to S_i, n = sum of m_i.
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


def codes_of(clusters: ArrayLike | None, n: int) -> NDArray[np.intp]:
    """Cluster labels as numbers from 0; every sample its own cluster without labels.

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
        """Groups one value a sample by its problem."""
        return cls.of_sums(values, np.ones(len(values)), clusters)

    @classmethod
    def of_sums(cls, sums: Array, sizes: Array, clusters: ArrayLike | None) -> Clusters:
        """Adds up one sum and one size a text by problem; problems without size are left out."""
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
        """By how much clustering multiplies the variance of independent samples.

        It is held between 1 and `worst_effect`, and is the latter where all samples agree: then
        nothing speaks for samples of one problem being independent.
        """
        if self.worst_effect == 1:
            return 1.0
        estimated = self.variance  # Refuses a single problem, whatever its samples say.
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
        """How many standard errors an interval reaches to either side."""
        return float(stats.t.ppf((1 + level) / 2, self.freedom(exact_variance=exact_variance)))
