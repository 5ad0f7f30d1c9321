"""Statistics at their edges: steps, clips, ties, leftovers, small families."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from easd.stats import Spread, bootstrap, compare_all, equivalence, paired_difference, ratio
from easd.stats.estimates import Clusters, student
from easd.stats.paired import _Pair


def pair(both, gained, lost, neither):
    """Aligned answers with these counts."""
    counts = [both, gained, lost, neither]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def score(gained, lost, n, difference, step):
    """Tango's statistic, its rate of losses found by search."""

    def unlikely(rate):
        up = rate + difference
        return -(
            gained * math.log(up)
            + lost * math.log(rate)
            + (n - gained - lost) * math.log(1 - rate - up)
        )

    ends = max(0, -difference) + 1e-9, (1 - difference) / 2 - 1e-9
    loss = optimize.minimize_scalar(unlikely, bounds=ends, method="bounded",
                                    options={"xatol": 1e-12}).x  # fmt: skip
    error = math.sqrt(n * (2 * loss + difference - difference**2))
    return (abs(gained - lost - n * difference) - step) / error


@pytest.mark.parametrize(("gained", "lost"), [(5, 3), (2, 6)])
def test_equivalence_takes_half_a_flip_off(gained, lost):
    found = equivalence(*pair(100, gained, lost, 92), margin=0.05)
    nearer = min(score(gained, lost, 200, end, 0.5) for end in (-0.05, 0.05))
    assert found.p_value == pytest.approx(scipy_stats.norm.sf(nearer), rel=1e-4)


def test_drawn_flips_never_give_a_p_value_of_zero():
    sure = np.random.default_rng(0).normal(5, 1, 40)
    assert paired_difference(sure, np.zeros(40)).p_value == 1 / 10_000


def test_unpaired_interval_of_unequal_accuracies_is_newcombes():
    found = paired_difference(*pair(68, 10, 1, 1))
    (low_a, high_a), (low_b, high_b) = (
        proportion_confint(right, 80, method="wilson") for right in (78, 69)
    )
    a, b = 78 / 80, 69 / 80
    assert found.unpaired_low == pytest.approx(a - b - math.hypot(a - low_a, high_b - b))
    assert found.unpaired_high == pytest.approx(a - b + math.hypot(high_a - a, b - low_b))


def test_a_tail_of_exactly_the_level_rejects():
    """Six gains of six have a two-sided p-value of 1/32."""
    assert Spread(shared=1).power_at(1, 6, level=1 / 32) == pytest.approx(1)
    assert Spread(shared=1).power_at(1, 6, level=1 / 33) == 0


@pytest.mark.parametrize(
    ("differences", "problems", "shared", "fresh"),
    [
        ([1, -1, -1, 1], [0, 0, 1, 1], 0, 1),  # The estimate is -1.
        ([1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2], 1 / 4, 1 / 4),  # 0: less than the mean's square.
        ([1, 1, 1, 0], [0, 0, 0, 1], 3 / 4, 0),  # 1: more than all there is.
    ],
)
def test_moments_of_a_pilot_are_clipped_to_what_is_possible(differences, problems, shared, fresh):
    values = np.array(differences)
    found = Spread.of_pilot(values > 0, values < 0, problems)
    assert (found.shared, found.fresh) == pytest.approx((shared, fresh))


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(1)
    base = rng.random((60, 4)) < 0.5
    answers = {"target": base, "good": base | (rng.random((60, 4)) < 0.4)}
    answers["other"] = base ^ (rng.random((60, 4)) < 0.1)
    return pd.DataFrame(
        [
            (system, item, seed, bool(values[item, seed]))
            for system, values in answers.items()
            for item in range(60)
            for seed in range(4)
        ],
        columns=["system", "item", "seed", "correct"],
    )


def test_what_a_run_detects_depends_on_seeds_and_family(study):
    for found in compare_all(study, "target"):
        a, b = (study[study.system == name] for name in (found.system, "target"))
        spread = Spread.of_pilot(a.correct, b.correct, a["item"])
        assert found.detectable == spread.detectable(60, 4, level=0.05 / 2)
        assert found.detectable != spread.detectable(60, 1, level=0.05 / 2)
        assert found.detectable != spread.detectable(60, 4, level=0.05)


def test_a_family_of_two_is_adjusted(study):
    good, other = compare_all(study, "target")
    assert (good.system, other.system, good.family, other.family) == ("good", "other", 2, 2)
    assert good.p_real == pytest.approx(2 * good.difference.p_value)
    assert "Holm-adjusted" in good.verdict()
    alone = compare_all(study[study.system != "other"], "target")[0]
    assert "Holm-adjusted" not in alone.verdict()


@pytest.mark.parametrize("resamples", [30, 100, 150, 201])
def test_every_resample_is_drawn(resamples):
    drawn = []

    def mean(weights):
        drawn.append(len(weights))
        return weights @ np.arange(12.0) / 12

    bootstrap(mean, 12, resamples=resamples)
    assert sum(drawn) == resamples + 1  # And the value itself.


def test_ratios_of_one_text_a_problem_have_students_quantile():
    tokens = np.array([3.0, 5, 4, 6])
    found = ratio(tokens, np.ones(4))
    error = scipy_stats.sem(tokens) / tokens.mean()
    assert math.log(found.high / found.value) == pytest.approx(scipy_stats.t.ppf(0.975, 3) * error)


def test_a_few_values_have_students_interval():
    values = np.array([3.0, 5, 4, 6])
    found = student(Clusters.of(values, None), 0.95)
    known = scipy_stats.t.interval(0.95, 3, values.mean(), scipy_stats.sem(values))
    assert (found.low, found.high) == pytest.approx(known)


def test_the_design_effect_of_pairs_is_of_their_differences_about_the_mean():
    """Whether one system is better or not: what varies is the difference less its mean."""
    a = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1])
    b = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0])
    items = np.repeat(np.arange(4), 3)
    both = _Pair.of(a, b, items)
    expected = both.data.variance / (np.var(a - b) / len(a))
    assert 1 < expected < both.data.worst_effect
    assert both.effect == pytest.approx(expected)
