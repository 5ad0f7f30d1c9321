"""Intervals, tests and power for samples that come in clusters: several texts to one problem.

Problems are taken as a random sample of the problems one cares about, texts as samples within
them. All values are fractions, not points. Coverage and error rates of everything here are
measured by `benchmarks/stats_simulation.py`.
"""

from easd.errors import ConfigError

try:
    import scipy  # noqa: F401
except ImportError:
    raise ConfigError(
        "statistics need scipy, which is not installed; pip install 'easd[study]'"
    ) from None

from easd.study.stats.bootstrap import bootstrap, top_mean
from easd.study.stats.compare import Comparison, compare_all
from easd.study.stats.estimates import Estimate, proportion, ratio, share
from easd.study.stats.paired import (
    Difference,
    Equivalence,
    equivalence,
    holm,
    paired_difference,
)
from easd.study.stats.power import Spread

__all__ = [
    "Comparison",
    "Difference",
    "Equivalence",
    "Estimate",
    "Spread",
    "bootstrap",
    "compare_all",
    "equivalence",
    "holm",
    "paired_difference",
    "proportion",
    "ratio",
    "share",
    "top_mean",
]
