"""Simulates the coverage of intervals, the size of tests, and predicted against achieved power.

Draws studies with a known truth and counts how often 95 % intervals cover it, how often tests at
5 % reject a true null, and how often `easd.stats.power` is right. Problems differ in difficulty and
texts of one problem correlate; paired systems agree on most samples, as under shared noise.

    python experiments/stats_simulation.py --repeats 4000

Figures are percentages; their own error is about 100 sqrt(p (1 - p) / repeats), which is 0.34 for
95 % and 4,000 repeats. `naive` ignores clusters. `tests/unit/test_stats_simulation.py` runs a short
version.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from easd.stats import (
    Estimate,
    Spread,
    bootstrap,
    equivalence,
    holm,
    paired_difference,
    proportion,
    ratio,
    share,
    top_mean,
)

ALIKE = 0.5  # Correlation of two texts of one problem.
SIZES = (30, 200, 1000)


@dataclass(frozen=True)
class Pair:
    """How two systems' answers to a problem come about.

    Attributes:
        problems: in one study.
        seeds: texts to a problem.
        disagreement: share of samples on which the systems differ.
        difference: true a - b.
        alike: correlation of disagreement between two texts of one problem.
    """

    problems: int
    seeds: int
    disagreement: float
    difference: float
    alike: float = ALIKE

    @property
    def clusters(self) -> np.ndarray:
        return np.repeat(np.arange(self.problems), self.seeds)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One study's answers of both systems, [problems * seeds]."""
        size = (self.problems, self.seeds)
        rate = _rates(rng, self.disagreement, self.alike, (self.problems, 1))
        gain = _rates(rng, (1 + self.difference / self.disagreement) / 2, 0.3, (self.problems, 1))
        easy = _rates(rng, 0.5, ALIKE, (self.problems, 1))
        differ, up, both = (rng.random(size) < chance for chance in (rate, gain, easy))
        return np.where(differ, up, both).ravel(), np.where(differ, ~up, both).ravel()

    def __str__(self) -> str:
        return (
            f"{self.problems:5} x {self.seeds}, {100 * self.disagreement:2.0f} % differ, "
            f"difference {100 * self.difference:4.1f}"
        )


PAIRS = [
    Pair(problems, seeds, disagreement, difference)
    for problems in SIZES
    for seeds in (1, 5)
    for disagreement, difference in ((0.01, 0.0), (0.02, 0.01), (0.05, 0.03), (0.2, 0.05))
]
NULLS = [
    Pair(problems, seeds, disagreement, 0.0)
    for problems in SIZES
    for seeds in (1, 5)
    for disagreement in (0.02, 0.1, 0.3)
]
POWERS = [
    Pair(200, 1, 0.1, 0.06),
    Pair(500, 1, 0.04, 0.025),
    Pair(1000, 1, 0.2, 0.04),
    Pair(200, 5, 0.1, 0.05),
    Pair(500, 5, 0.05, 0.02),
    Pair(200, 5, 0.2, 0.05, alike=0.1),
]


def accuracy_coverage(
    problems: int, seeds: int, truth: float, repeats: int, *, naive: bool = False
) -> float:
    """How often `proportion` holds the true accuracy."""
    rng = np.random.default_rng([1, problems, seeds, round(1000 * truth)])
    clusters = None if naive else np.repeat(np.arange(problems), seeds)

    def study() -> Estimate:
        chance = _rates(rng, truth, ALIKE, (problems, 1))
        return proportion((rng.random((problems, seeds)) < chance).ravel(), clusters)

    return _covers(study, truth, repeats)


def difference_coverage(pair: Pair, repeats: int, *, naive: bool = False) -> tuple[float, float]:
    """How often `paired_difference` holds the true difference; mean narrowing by pairing."""
    rng = np.random.default_rng([2, pair.problems, pair.seeds])
    clusters = None if naive else pair.clusters
    studies = [paired_difference(*pair.draw(rng), clusters) for _ in range(repeats)]
    covered = [study.low <= pair.difference <= study.high for study in studies]
    return float(np.mean(covered)), float(np.median([study.narrowing for study in studies]))


def found(pair: Pair, repeats: int, *, naive: bool = False) -> float:
    """How often the paired test finds a difference at 5 %: its size, or its power."""
    rng = np.random.default_rng([3, pair.problems, pair.seeds])
    clusters = None if naive else pair.clusters
    return float(
        np.mean(
            [paired_difference(*pair.draw(rng), clusters).p_value <= 0.05 for _ in range(repeats)]
        )
    )


def false_equivalence(pair: Pair, repeats: int, *, naive: bool = False) -> float:
    """How often a difference as large as the margin is called smaller at 5 %."""
    rng = np.random.default_rng([4, pair.problems, pair.seeds])
    clusters = None if naive else pair.clusters
    return float(
        np.mean(
            [
                equivalence(*pair.draw(rng), clusters, pair.difference).p_value <= 0.05
                for _ in range(repeats)
            ]
        )
    )


def family_error(systems: int, repeats: int, *, adjusted: bool = True) -> float:
    """How often any of several systems without effect is called real, all on one baseline."""
    rng = np.random.default_rng([5, systems])
    wrong = 0
    for _ in range(repeats):
        chance = _rates(rng, 0.5, ALIKE, (500, 1))
        baseline = rng.random((500, 1)) < chance
        p_values = [
            paired_difference(
                np.where(rng.random((500, 1)) < 0.3, rng.random((500, 1)) < chance, baseline)[:, 0],
                baseline[:, 0],
            ).p_value
            for _ in range(systems)
        ]
        wrong += bool(min(holm(p_values) if adjusted else p_values) <= 0.05)
    return wrong / repeats


def predicted_power(pair: Pair) -> float:
    """What a large pilot of the same kind promises."""
    pilot = Pair(40_000, pair.seeds, pair.disagreement, pair.difference, pair.alike)
    draw = pilot.draw(np.random.default_rng(6))
    spread = Spread.of_pilot(*draw, pilot.clusters)
    return spread.power_at(pair.difference, pair.problems, pair.seeds)


def position_coverage(name: str, problems: int, repeats: int) -> float:
    """How often intervals for quantities of positions hold the truth; texts differ in length."""
    rng = np.random.default_rng([7, problems])
    truths = {"share 2 %": 0.02, "share 0.2 %": 0.002, "tokens per forward": 2.9}

    def lengths() -> np.ndarray:
        return np.ceil(rng.lognormal(4.5, 0.6, problems))

    def study() -> Estimate:
        whole = lengths()
        if name.startswith("share"):
            rate = _rates(rng, truths[name], 0.01, problems)
            return share(rng.binomial(whole.astype(int), rate), whole)
        if name.startswith("tokens"):
            tokens = whole * (2.9 + rng.uniform(-0.7, 0.7, problems))
            if "bootstrap" in name:
                return bootstrap(lambda w: (w @ tokens) / (w @ whole), problems, resamples=1000)
            return ratio(tokens, whole)
        owner = np.repeat(np.arange(problems), whole.astype(int))
        scale = rng.uniform(0.7, 1.3, problems)
        return top_mean(scale[owner] * rng.exponential(size=len(owner)), owner, resamples=400)

    truth = truths.get(name.removesuffix(" (bootstrap)"))
    return _covers(study, TOP_MEAN if truth is None else truth, repeats)


def _top_mean_truth() -> float:
    """E[X | X in the top 5 %] of an exponential with a scale drawn evenly from 0.7 to 1.3."""
    scales = np.linspace(0.7, 1.3, 2001)
    low, high = 0.0, 20.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if np.exp(-middle / scales).mean() > 0.05 else (low, middle)
    tails = np.exp(-low / scales)
    return float(((low + scales) * tails).mean() / tails.mean())


TOP_MEAN = _top_mean_truth()


def _rates(rng: np.random.Generator, mean: float, alike: float, size) -> np.ndarray:
    """Chances with that mean whose coin flips correlate by `alike`."""
    weight = (1 - alike) / alike
    return rng.beta(mean * weight, (1 - mean) * weight, size)


def _covers(study: Callable[[], Estimate], truth: float, repeats: int) -> float:
    estimates = (study() for _ in range(repeats))
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]))


def _lines(repeats: int) -> Iterator[str]:
    error = 100 * math.sqrt(0.05 * 0.95 / repeats)
    yield f"{repeats:,} studies each; Monte Carlo error of 5 % and 95 %: ± {error:.2f} (1 sd)"
    yield "\nAccuracy: coverage of 95 % intervals (naive)"
    for problems in SIZES:
        for seeds in (1, 5):
            cells = []
            for truth in (0.02, 0.1, 0.5, 0.9, 0.98):
                covered = accuracy_coverage(problems, seeds, truth, repeats)
                cell = f"p={truth}: {100 * covered:.1f}"
                if seeds > 1:
                    ignoring = accuracy_coverage(problems, seeds, truth, repeats, naive=True)
                    cell += f" ({100 * ignoring:.1f})"
                cells.append(cell)
            yield f"{problems:5} x {seeds}   " + "   ".join(cells)
    yield "\nPaired difference: coverage (naive), times narrower than unpaired"
    for pair in PAIRS:
        covered, narrower = difference_coverage(pair, repeats)
        line = f"{pair}: {100 * covered:5.1f}"
        if pair.seeds > 1:
            line += f" ({100 * difference_coverage(pair, repeats, naive=True)[0]:.1f})"
        yield f"{line}   {narrower:.1f}x"
    yield "\nPaired test: false positives at 5 % (naive)"
    for pair in NULLS:
        line = f"{pair}: {100 * found(pair, repeats):.1f}"
        if pair.seeds > 1:
            line += f" ({100 * found(pair, repeats, naive=True):.1f})"
        yield line
    yield "\nFamily of systems without effect: any called real at 5 % (unadjusted)"
    for systems in (3, 8):
        adjusted, plain = (family_error(systems, repeats // 4, adjusted=it) for it in (True, False))
        yield f"{systems} systems, 500 x 1: {100 * adjusted:.1f} ({100 * plain:.1f})"
    yield "\nEquivalence at 5 %: a difference of the margin called smaller (naive)"
    for pair in PAIRS:
        if pair.difference:
            line = f"{pair}: {100 * false_equivalence(pair, repeats):.1f}"
            if pair.seeds > 1:
                line += f" ({100 * false_equivalence(pair, repeats, naive=True):.1f})"
            yield line
    yield "\nPower: predicted, found"
    for pair in POWERS:
        yield f"{pair}: {100 * predicted_power(pair):.1f}, {100 * found(pair, repeats):.1f}"
    yield "\nQuantities of positions: coverage of 95 % intervals"
    names = ("share 2 %", "share 0.2 %", "tokens per forward", "tokens per forward (bootstrap)")
    for problems in SIZES[:2]:
        for name in names:
            yield f"{problems:5}, {name}: {100 * position_coverage(name, problems, repeats):.1f}"
        name = "top mean of 5 %"
        fewer = repeats // 10
        yield (
            f"{problems:5}, {name}: {100 * position_coverage(name, problems, fewer):.1f} "
            f"({fewer} studies)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4000, help="studies for each figure")
    for line in _lines(parser.parse_args().repeats):
        print(line, flush=True)


if __name__ == "__main__":
    main()
