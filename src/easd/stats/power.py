"""Power of `paired_difference`'s test, from how often two systems disagree on a sample."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from easd.errors import InputError
from easd.stats.estimates import Clusters, as_pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Second moments of a pair's differences, assumed not to depend on the mean difference.

    The mean square of a problem's difference over s seeds is `shared + fresh / s`. With 0/1
    answers `shared + fresh` is the share of samples on which the systems disagree.

    Attributes:
        shared: mean square of a problem's true difference, which more seeds do not reduce.
        fresh: mean variance within a problem, which more seeds reduce.
    """

    shared: float
    fresh: float = 0.0

    def __post_init__(self) -> None:
        if not (self.shared >= 0 and self.fresh >= 0):
            raise InputError(
                f"shared = {self.shared} and fresh = {self.fresh} are mean squares; "
                "neither can be negative"
            )

    @classmethod
    def of_pilot(cls, a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None) -> Spread:
        """Method of moments from two systems' aligned samples, as in `paired_difference`.

        If no problem has two samples, the parts cannot be separated and all of it counts as shared,
        so more seeds are assumed to add nothing.
        """
        first, second = as_pair(a, b)
        if not np.isin(np.concatenate([first, second]), (0, 1)).all():
            raise InputError("power is known for grades of 0 and 1 only; the pilot has others")
        differences = first - second
        data = Clusters.of(differences, clusters)
        total = float((differences**2).mean())
        pairs = float((data.sizes * (data.sizes - 1)).sum())
        if not pairs:
            return cls(shared=total)
        products = float((data.sums**2).sum() - (differences**2).sum()) / pairs
        shared = min(max(products, data.mean**2), total)
        return cls(shared=shared, fresh=total - shared)

    def power_at(
        self, difference: float, problems: int, seeds: int = 1, level: float = 0.05
    ) -> float:
        """Probability that a true `difference` is found at that level.

        Exact for one seed and 0/1 answers; a normal approximation for several (Connor 1987, with a
        problem's mean square for the share of discordant pairs), which is too optimistic if fewer
        than about 20 problems differ. A disagreement too rare for `difference` is raised to the
        least that allows it.
        """
        _check_run(problems, seeds, level)
        if abs(difference) > 1:
            raise InputError(f"difference = {difference} is a fraction: 0.01 is one point")
        # A difference of d needs disagreement on at least a share d of samples.
        missing = max(0.0, abs(difference) - self.shared - self.fresh)
        square = min(self.shared + self.fresh / seeds + missing, 1.0)
        if square == 0:
            return 0.0
        if seeds == 1:
            return _mcnemar_power(difference, square, problems, level)
        limit = stats.norm.isf(level / 2) * math.sqrt(square)
        shift = abs(difference) * math.sqrt(problems)
        error = math.sqrt(max(square - difference**2, 1e-12))
        ends = np.array([shift - limit, -shift - limit])
        return float(stats.norm.cdf(ends / error).sum())

    def detectable(
        self, problems: int, seeds: int = 1, power: float = 0.8, level: float = 0.05
    ) -> float | None:
        """The smallest difference found with that power; None if even 1 is not."""

        def excess(difference: float) -> float:
            return self.power_at(difference, problems, seeds, level) - power

        if excess(1.0) < 0:
            return None
        found = optimize.root_scalar(excess, bracket=(0.0, 1.0), method="bisect", xtol=1e-5)
        return float(found.root)

    def required(
        self, difference: float, seeds: int = 1, power: float = 0.8, level: float = 0.05
    ) -> int:
        """The number of problems needed to find that difference with that power."""
        if difference == 0:
            raise InputError("no number of problems shows a difference of 0; give what matters")
        high = 2
        while self.power_at(difference, high, seeds, level) < power:
            high *= 2
        return bisect_left(
            range(high),
            power,
            lo=high // 2 + 1,
            key=lambda problems: self.power_at(difference, problems, seeds, level),
        )


def _mcnemar_power(difference: float, discordant: float, problems: int, level: float) -> float:
    """Power of McNemar's exact test, summed over the number of discordant pairs."""
    likely = stats.binom.ppf([1e-9, 1 - 1e-9], problems, discordant)
    pairs = np.arange(likely[0], likely[1] + 1)
    gain = min((1 + difference / discordant) / 2, 1.0)
    # Rejected where at most `limit` of the pairs go one way.
    limit = stats.binom.ppf(level / 2, pairs, 0.5)
    limit = np.where(stats.binom.cdf(limit, pairs, 0.5) > level / 2, limit - 1, limit)
    found = stats.binom.cdf(limit, pairs, gain) + stats.binom.cdf(limit, pairs, 1 - gain)
    return float(stats.binom.pmf(pairs, problems, discordant) @ found)


def _check_run(problems: int, seeds: int, level: float) -> None:
    if problems < 1 or seeds < 1:
        raise InputError(f"{problems} problems with {seeds} seeds make no run; give 1 or more")
    if not 0 < level < 1:
        raise InputError(f"level = {level} is no probability of error; 0.05 is usual")
