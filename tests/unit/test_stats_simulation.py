"""Error rates of the statistics on simulated studies whose truth is known.

The simulations are those of `experiments/stats_simulation.py`, with fewer studies and fixed seeds.
A rate is judged by binomial Monte Carlo limits at 4 standard deviations: a correct rate fails one
test in 30,000. Coverage of score intervals swings with the discrete data (Brown, Cai and DasGupta
2001), so two points are allowed below 95 %. Every check must also fail when clusters are ignored.
"""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "experiments" / "stats_simulation.py"
_spec = importlib.util.spec_from_file_location("stats_simulation", _PATH)
simulation = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = simulation  # Where dataclasses look up annotations.
_spec.loader.exec_module(simulation)
Pair = simulation.Pair

STUDIES = 400
SWING = 0.02


def limit(rate, studies=STUDIES):
    """How far a rate may lie from its truth by chance."""
    return 4 * math.sqrt(rate * (1 - rate) / studies)


LEAST = 0.95 - SWING - limit(0.95 - SWING)
MOST = 0.05 + limit(0.05)


@pytest.mark.parametrize(
    ("problems", "seeds", "truth"),
    [(30, 1, 0.5), (30, 1, 0.98), (30, 5, 0.02), (30, 5, 0.5), (200, 5, 0.9), (1000, 5, 0.98)],
)
def test_accuracy_is_covered(problems, seeds, truth):
    assert simulation.accuracy_coverage(problems, seeds, truth, STUDIES) >= LEAST


CLUSTERED = Pair(200, 5, 0.05, 0.03)


@pytest.mark.parametrize(
    "pair", [Pair(30, 1, 0.2, 0.05), Pair(30, 5, 0.05, 0.03), Pair(200, 1, 0.02, 0.01), CLUSTERED]
)
def test_differences_are_covered(pair):
    assert simulation.difference_coverage(pair, STUDIES)[0] >= LEAST


@pytest.mark.parametrize("pair", [Pair(30, 5, 0.3, 0), Pair(200, 1, 0.3, 0), Pair(200, 5, 0.1, 0)])
def test_paired_test_keeps_its_level(pair):
    assert simulation.found(pair, STUDIES) <= MOST


@pytest.mark.parametrize("pair", [Pair(1000, 1, 0.05, 0.03), CLUSTERED])
def test_equivalence_keeps_its_level(pair):
    assert simulation.false_equivalence(pair, STUDIES) <= MOST


def test_ignored_clusters_are_noticed():
    """The planted bug: every check above has to see it."""
    assert simulation.accuracy_coverage(200, 5, 0.9, STUDIES, naive=True) < LEAST
    assert simulation.difference_coverage(CLUSTERED, STUDIES, naive=True)[0] < LEAST
    assert simulation.found(Pair(200, 5, 0.3, 0), STUDIES, naive=True) > MOST
    assert simulation.false_equivalence(CLUSTERED, STUDIES, naive=True) > MOST


def test_family_keeps_its_level_and_needs_holm_for_it():
    studies = 200
    most = 0.05 + limit(0.05, studies)
    assert simulation.family_error(6, studies) <= most
    assert simulation.family_error(6, studies, adjusted=False) > most


@pytest.mark.parametrize("pair", simulation.POWERS, ids=str)
def test_power_comes_true(pair):
    """Within three points, and chance."""
    predicted = simulation.predicted_power(pair)
    found = simulation.found(pair, STUDIES)
    assert abs(found - predicted) <= 0.03 + limit(predicted)
    assert 0.6 < predicted < 0.97


@pytest.mark.parametrize("name", ["share 2 %", "share 0.2 %", "tokens per forward"])
def test_quantities_of_positions_are_covered(name):
    assert simulation.position_coverage(name, 30, STUDIES) >= LEAST


def test_bootstrap_covers():
    studies = 200
    least = 0.95 - SWING - limit(0.95 - SWING, studies)
    assert simulation.position_coverage("tokens per forward (bootstrap)", 30, studies) >= least


def test_top_mean_covers():
    studies = 50
    least = 0.95 - SWING - limit(0.95 - SWING, studies)
    assert simulation.position_coverage("top mean of 5 %", 30, studies) >= least
