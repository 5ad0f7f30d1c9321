"""Bootstrap intervals that resample whole problems."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from easd.errors import InputError
from easd.stats.estimates import Array, Estimate, as_values, codes_of

_BATCH = 100


def bootstrap(
    statistic: Callable[[Array], ArrayLike],
    n_clusters: int,
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
    n: int | None = None,
) -> Estimate:
    """Percentile interval of a statistic over problems drawn with replacement.

    The percentiles are moved outwards so that a mean gets Student's interval with variance over
    C - 1 (the plain percentile interval is too narrow for few problems; Hesterberg 2015,
    arXiv:1411.5279).

    Args:
        statistic: from how often each problem is drawn, weights [R, C], to values [R]. A ratio of
            sums is `lambda weights: (weights @ numerators) / (weights @ denominators)`.
        n_clusters: C.
        n: number of samples, only recorded; the number of problems unless given.

    Raises:
        InputError: Fewer than two problems, or a draw on which the statistic is undefined.
    """
    if n_clusters < 2:
        raise InputError(f"{n_clusters} problems cannot be resampled; give two or more")
    rng = np.random.default_rng(seed)
    even = np.full(n_clusters, 1 / n_clusters)
    drawn = np.concatenate(
        [
            np.asarray(statistic(rng.multinomial(n_clusters, even, size).astype(np.float64)))
            for begin in range(0, resamples, _BATCH)
            for size in [min(_BATCH, resamples - begin)]
        ]
    )
    if not np.isfinite(drawn).all():
        raise InputError(
            f"the statistic is undefined in {int((~np.isfinite(drawn)).sum())} of {resamples} "
            "draws of problems; it needs more problems that contribute to it"
        )
    quantile = stats.t.ppf((1 + level) / 2, n_clusters - 1)
    tail = stats.norm.sf(quantile * math.sqrt(n_clusters / (n_clusters - 1)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    value = np.asarray(statistic(np.ones((1, n_clusters))))[0]
    return Estimate(
        value=float(value),
        low=float(low),
        high=float(high),
        level=level,
        n=n_clusters if n is None else n,
        n_clusters=n_clusters,
    )


def top_mean(
    values: ArrayLike,
    clusters: ArrayLike,
    top: float = 0.05,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The mean of the highest values, such as the top 5 % of token entropies.

    Args:
        values: by position, [N].
        clusters: each position's problem, [N].
        top: share of positions that count as highest.

    Raises:
        InputError: Nothing to average, fewer than two problems, or a share outside (0, 1].
    """
    array = as_values("values", values)
    if not 0 < top <= 1:
        raise InputError(f"top = {top} is no share; give a number above 0 and up to 1")
    order = np.argsort(-array, kind="stable")
    ranked = array[order]
    owner = codes_of(clusters, len(array))[order]

    def mean_of_top(weights: Array) -> float:
        copies = weights[owner]
        passed = np.cumsum(copies)
        wanted = top * passed[-1]
        taken = np.clip(wanted - (passed - copies), 0, copies)
        return float(taken @ ranked / wanted)

    return bootstrap(
        lambda weights: [mean_of_top(row) for row in weights],
        int(owner.max()) + 1,
        level=level,
        resamples=resamples,
        seed=seed,
        n=len(array),
    )
