"""Values with intervals as columns of a frame; a value whose interval is unknown keeps NaN ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from easd.errors import InputError
from easd.stats import Estimate, ratio, share

Interval = dict[str, float]


def columns_of(name: str, estimate: Estimate) -> Interval:
    """`name`, `name_low` and `name_high`."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def share_of(name: str, part: pd.Series, whole: pd.Series) -> Interval:
    """A share of positions or samples, from counts by problem."""
    return _of(name, part, whole, share)


def ratio_of(name: str, above: pd.Series, below: pd.Series) -> Interval:
    """A ratio of sums, from sums by problem."""
    return _of(name, above, below, ratio)


def _of(
    name: str,
    above: pd.Series,
    below: pd.Series,
    estimate: Callable[[np.ndarray, np.ndarray], Estimate],
) -> Interval:
    top = above.to_numpy(dtype=np.float64, na_value=np.nan)
    bottom = below.to_numpy(dtype=np.float64, na_value=np.nan)
    known = ~(np.isnan(top) | np.isnan(bottom))
    top, bottom = top[known], bottom[known]
    if not bottom.sum():
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
    try:
        return columns_of(name, estimate(top, bottom))
    except InputError:  # One problem says nothing about others.
        value = float(top.sum() / bottom.sum())
        return {name: value, f"{name}_low": math.nan, f"{name}_high": math.nan}
