"""Statistics against other libraries' answers, closed forms, and each other."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from easd.errors import InputError
from easd.stats import (
    Spread,
    bootstrap,
    compare_all,
    equivalence,
    holm,
    paired_difference,
    proportion,
    ratio,
    share,
    top_mean,
)


def grades(correct, wrong):
    return np.repeat([1, 0], [correct, wrong])


def pair(both, gained, lost, neither):
    """Aligned answers with these counts."""
    counts = [both, gained, lost, neither]
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


# Accuracy


@pytest.mark.parametrize("correct", [0, 1, 15, 29, 30])
def test_one_sample_a_problem_is_wilson(correct):
    found = proportion(grades(correct, 30 - correct))
    low, high = proportion_confint(correct, 30, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert (found.n, found.n_clusters, found.level) == (30, 30, 0.95)


def test_labels_of_problems_with_one_sample_change_nothing():
    values = grades(7, 23)
    assert proportion(values, [f"item {i}" for i in range(30)]) == proportion(values)


def test_seeds_that_always_agree_count_as_one():
    values = grades(40, 60)
    once, repeated = proportion(values), proportion(np.repeat(values, 5), np.repeat(range(100), 5))
    assert (repeated.n, repeated.n_clusters) == (500, 100)
    assert repeated.high - repeated.low == pytest.approx(once.high - once.low, rel=0.03)


def test_seeds_that_know_nothing_of_each_other_count_one_by_one():
    values = np.tile([0, 1], 250)  # Each problem's five samples are as mixed as can be.
    one_by_one, clustered = proportion(values), proportion(values, np.repeat(range(100), 5))
    assert clustered.high - clustered.low == pytest.approx(
        one_by_one.high - one_by_one.low, rel=0.02
    )


def test_order_of_samples_does_not_matter():
    rng = np.random.default_rng(0)
    values, problems = rng.integers(0, 2, 60), np.repeat(range(12), 5)
    order = rng.permutation(60)
    a, b = proportion(values, problems), proportion(values[order], problems[order])
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-12)


# Ratios and the bootstrap


def test_share_is_the_proportion_of_positions():
    hits, sizes = [0, 3, 1, 5], [4, 8, 2, 9]
    positions = np.concatenate([grades(h, s - h) for h, s in zip(hits, sizes, strict=True)])
    assert share([*hits, 0], [*sizes, 0]) == proportion(positions, np.repeat(range(4), sizes))


def test_share_of_nothing_has_an_upper_end():
    found = share(np.zeros(50), np.full(50, 100))
    assert found.low == 0
    # As if the texts were 50 positions: nothing says that a text's positions are independent.
    assert 1 / 50 < found.high < 5 / 50


@pytest.mark.parametrize("estimate", [share, ratio])
def test_texts_of_a_problem_are_added_up(estimate):
    part, whole = np.array([1, 4, 2, 3, 0, 6]), np.array([5, 9, 4, 8, 3, 9])
    by_text = estimate(part, whole, ["x", "y", "z", "x", "y", "z"])
    assert by_text == estimate(part[:3] + part[3:], whole[:3] + whole[3:])
    assert by_text.n_clusters == 3


def test_ratio_agrees_with_the_bootstrap():
    rng = np.random.default_rng(1)
    forwards = rng.integers(20, 80, 300).astype(float)
    tokens = forwards * rng.uniform(2, 4, 300)
    direct = ratio(tokens, forwards)
    drawn = bootstrap(lambda weights: (weights @ tokens) / (weights @ forwards), 300)
    assert direct.value == drawn.value == pytest.approx(tokens.sum() / forwards.sum())
    assert direct.high - direct.low == pytest.approx(drawn.high - drawn.low, rel=0.05)


def test_ratio_does_not_depend_on_units():
    tokens, forwards = np.array([30.0, 60, 20]), np.array([10.0, 19, 8])
    found, scaled = ratio(tokens, forwards), ratio(1000 * tokens, forwards)
    assert (scaled.low, scaled.high) == pytest.approx((1000 * found.low, 1000 * found.high))


def test_bootstrap_of_a_mean_is_nearly_students_interval():
    values = np.random.default_rng(2).normal(size=20)
    found = bootstrap(lambda weights: weights @ values / weights.sum(-1), 20, resamples=20_000)
    known = scipy_stats.t.interval(0.95, 19, values.mean(), scipy_stats.sem(values))
    # A fiftieth of the width is about three Monte Carlo errors of a 2.5 % quantile.
    assert (found.low, found.high) == pytest.approx(known, abs=(known[1] - known[0]) / 50)


def test_bootstrap_repeats_itself_unless_told_to_draw_differently():
    values = np.arange(12.0)

    def run(seed):
        return bootstrap(lambda weights: weights @ values / 12, 12, resamples=150, seed=seed)

    assert run(0) == run(0) != run(1)


def test_top_mean_averages_the_highest_and_splits_a_value_at_the_edge():
    values = np.arange(1.0, 31)
    assert top_mean(values, np.arange(30), 0.1).value == pytest.approx((30 + 29 + 28) / 3)
    assert top_mean(values, np.arange(30), 0.05).value == pytest.approx((30 + 0.5 * 29) / 1.5)
    assert top_mean(values, np.arange(30), 1).value == pytest.approx(15.5)


def test_top_mean_draws_problems_not_positions():
    values = np.repeat(np.random.default_rng(3).exponential(size=40), 50)
    by_position = top_mean(values, np.arange(2000), 0.2, resamples=300)
    by_problem = top_mean(values, np.repeat(range(40), 50), 0.2, resamples=300)
    assert by_problem.high - by_problem.low > 4 * (by_position.high - by_position.low)


# Paired differences


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (6, 0), (9, 2), (40, 25)])
def test_one_sample_a_problem_is_mcnemars_exact_test(gained, lost):
    found = paired_difference(*pair(50, gained, lost, 30))
    known = scipy_stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(known, abs=1e-12)
    assert (found.gained, found.lost) == (gained, lost)


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 15, 43), (9, 2, 91), (3, 3, 40)])
def test_interval_is_tangos(gained, lost, n):
    found = paired_difference(*pair(n - gained - lost, gained, lost, 0))
    assert (found.low, found.high) == pytest.approx(tango(gained, lost, n), abs=0.002)


def tango(gained, lost, n):
    """Tango's interval (1998) from the likelihood itself, to the 0.002 of a grid."""
    rates = np.linspace(1e-6, 1, 5_001)

    def score(difference):
        up = rates + difference
        rest = 1 - rates - up
        possible = (up > 0) & (rest > 0)
        likelihood = np.full_like(rates, -np.inf)
        likelihood[possible] = (
            gained * np.log(up[possible])
            + lost * np.log(rates[possible])
            + (n - gained - lost) * np.log(rest[possible])
        )
        loss = rates[np.argmax(likelihood)]
        variance = (2 * loss + difference - difference**2) / n
        return ((gained - lost) / n - difference) / math.sqrt(variance)

    held = [d for d in np.arange(-0.6, 0.6, 0.002) if abs(score(d)) <= 1.959964]
    return held[0], held[-1]


def test_interval_mirrors_when_systems_change_places():
    a, b = pair(50, 9, 2, 30)
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.value, one.low, one.high) == pytest.approx(
        (-other.value, -other.high, -other.low), abs=1e-8
    )
    assert one.p_value == pytest.approx(other.p_value)


def test_no_flip_is_no_proof_of_no_difference():
    found = paired_difference(*pair(100, 0, 0, 100))
    square = 1.959964**2
    assert (found.low, found.high) == pytest.approx(
        (-square / (200 + square), square / (200 + square)), abs=1e-6
    )


def test_everything_flipped_ends_at_one():
    found = paired_difference(*pair(0, 10, 0, 0))
    assert (found.value, found.high) == (1, 1)
    assert 0 < found.low < 1


def test_flipped_signs_of_clusters_are_enumerated_exactly():
    a = np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1])
    b = np.array([0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0])
    problems = np.repeat(range(4), 3)
    sums = np.bincount(problems, a - b)
    signs = 1 - 2 * (np.arange(16)[:, None] >> np.arange(4) & 1)
    known = (np.abs(signs @ sums) >= abs(sums.sum())).mean()
    assert paired_difference(a, b, problems).p_value == pytest.approx(known)


def test_other_values_are_compared_too_exactly_and_by_chance():
    rng = np.random.default_rng(4)
    few = rng.normal(0.5, 1, 8)
    known = scipy_stats.permutation_test(
        (few,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert paired_difference(few, np.zeros(8)).p_value == pytest.approx(known)
    many = rng.normal(0.2, 1, 100)
    found = paired_difference(many, np.zeros(100))
    known = scipy_stats.ttest_1samp(many, 0)
    # Four Monte Carlo errors of 9,999 flips, and as much again for Student's approximation.
    assert found.p_value == pytest.approx(known.pvalue, abs=8 * math.sqrt(known.pvalue / 9_999))
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    assert paired_difference(many, np.zeros(100)) == found


def test_pairing_narrows_where_systems_mostly_agree():
    agree, differ = paired_difference(*pair(99, 1, 1, 99)), paired_difference(*pair(50, 50, 50, 50))
    assert agree.narrowing > 4
    assert differ.narrowing == pytest.approx(1, rel=0.02)
    unpaired = agree.unpaired_high - agree.unpaired_low
    assert unpaired == pytest.approx(2 * 1.96 * math.sqrt(2 * 0.25 / 200), rel=0.02)


# Equivalence and families


@pytest.mark.parametrize("margin", [0.02, 0.03, 0.05, 0.2])
@pytest.mark.parametrize("problems", [None, np.repeat(range(40), 5)])
def test_equivalence_is_its_interval_within_the_margin(margin, problems):
    found = equivalence(*pair(100, 5, 3, 92), problems, margin)
    assert (found.p_value < 0.05) == (-margin < found.low and found.high < margin)
    assert found.level == pytest.approx(0.9)


def test_equivalence_needs_more_than_a_difference_that_is_not_significant():
    a, b = pair(14, 1, 1, 14)
    assert paired_difference(a, b).p_value == 1
    assert equivalence(a, b, margin=0.05).p_value > 0.2
    assert equivalence(np.tile(a, 100), np.tile(b, 100), margin=0.05).p_value < 1e-6


def test_a_difference_beyond_the_margin_is_never_equivalent():
    assert equivalence(*pair(50, 20, 0, 30), margin=0.05).p_value > 0.99


def test_holm():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    p_values = np.random.default_rng(7).random(9) ** 3
    known = multipletests(p_values, method="holm")[1]
    assert holm(p_values).tolist() == pytest.approx(known.tolist())


# Power


def test_of_pilot_separates_problems_from_seeds():
    rng = np.random.default_rng(5)
    truth = rng.choice([-0.5, 0.0, 0.5], 20_000)  # P(a = 1) - 1/2, by problem
    a = rng.random((20_000, 4)) < 0.5 + truth[:, None]
    b = rng.random((20_000, 4)) < 0.5
    spread = Spread.of_pilot(a.ravel(), b.ravel(), np.repeat(range(20_000), 4))
    # E d^2 = 1/2; a problem's true difference is its truth: mean square 1/4 * 2/3.
    assert spread.shared == pytest.approx(1 / 6, abs=0.01)
    assert spread.shared + spread.fresh == pytest.approx(0.5, abs=0.01)


def test_one_seed_says_nothing_of_others():
    spread = Spread.of_pilot(*pair(80, 7, 3, 10))
    assert (spread.shared, spread.fresh) == (pytest.approx(0.1), 0)
    assert spread.power_at(0.05, 400, seeds=5) == pytest.approx(
        spread.power_at(0.05, 400, seeds=1), abs=0.03
    )


def test_power_without_difference_is_the_error_allowed():
    spread = Spread(shared=0.1, fresh=0.1)
    assert spread.power_at(0, 500, 5) == pytest.approx(0.05)
    assert 0.03 < spread.power_at(0, 500) <= 0.05


def test_exact_power_of_a_sure_gain():
    """All discordant pairs are gains: found as soon as six of them occur."""
    found = Spread(shared=0.05).power_at(0.05, 100)
    assert found == pytest.approx(scipy_stats.binom.sf(5, 100, 0.05))


def test_detectable_and_required_invert_power():
    spread = Spread(shared=0.03, fresh=0.07)
    for seeds in (1, 4):
        difference = spread.detectable(300, seeds)
        assert spread.power_at(difference, 300, seeds) == pytest.approx(0.8, abs=1e-3)
        problems = spread.required(difference, seeds)
        assert spread.power_at(difference, problems, seeds) >= 0.8
        assert problems == pytest.approx(300, abs=5)
    assert spread.detectable(300, 4) < spread.detectable(300, 1)
    assert spread.detectable(300, 1, level=0.01) > spread.detectable(300, 1)


def test_five_problems_detect_nothing():
    assert Spread(shared=0.2).detectable(5) is None


# Every system against a baseline


@pytest.fixture
def table():
    """Two tasks, 100 items, 3 seeds; `better` gains 8 items of `math`, `same` is the baseline."""
    rng = np.random.default_rng(6)
    rows = []
    for task in ("math", "code"):
        base = rng.random((100, 3)) < 0.5
        base[:8] = False
        better = base.copy()
        if task == "math":
            better[:8] = True
        for system, values in (("target", base), ("better", better), ("same", base)):
            rows += [
                (task, system, item, seed, bool(values[item, seed]))
                for item in range(100)
                for seed in range(3)
            ]
    frame = pd.DataFrame(rows, columns=["task", "system", "item", "seed", "correct"])
    return frame.sample(frac=1, random_state=0)


def test_compare_all_pairs_rows_in_any_order(table):
    found = {(c.task, c.system): c for c in compare_all(table, "target")}
    assert set(found) == {(t, s) for t in ("math", "code") for s in ("better", "same")}
    better = found["math", "better"]
    assert (better.difference.gained, better.difference.lost) == (24, 0)
    assert (better.difference.n, better.difference.n_clusters) == (300, 100)
    assert better.difference.value == pytest.approx(0.08)
    assert better.difference.p_value == pytest.approx(2 / 2**8)
    assert (better.family, better.p_real) == (4, pytest.approx(4 * 2 / 2**8))
    assert better.accuracy.value - better.baseline_accuracy.value == pytest.approx(0.08)
    assert found["code", "same"].p_real == 1


def test_compare_all_reads_arrow_tables(table):
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    coded = arrow.set_column(1, "system", arrow["system"].dictionary_encode())
    assert compare_all(coded, "target") == compare_all(arrow, "target")
    assert compare_all(arrow, "target") == compare_all(table, "target")


def test_verdicts(table):
    found = {(c.task, c.system): c.verdict() for c in compare_all(table, "target", margin=0.1)}
    assert found["math", "better"] == "real: 8 points better (p = 0.031, Holm-adjusted)"
    assert found["code", "same"].startswith("no difference larger than ±10 points (TOST p = 0.0")
    narrow = {(c.task, c.system): c for c in compare_all(table, "target", margin=0.001)}
    unsure = narrow["code", "same"]
    points = 100 * unsure.detectable
    assert unsure.verdict() == (
        f"cannot tell: this run could detect a difference of {points:.2g} points with 80 % power"
    )
    wide = next(c for c in compare_all(table, "target", margin=0.5) if c.system == "better")
    assert wide.verdict().startswith(
        "real: 8 points better (p = 0.031, Holm-adjusted), but no more than ±50 points (TOST p"
    )


def test_one_comparison_is_not_adjusted(table):
    one = table[(table.task == "math") & (table.system != "same")].drop(columns="task")
    (found,) = compare_all(one, "target")
    assert found.p_real == found.difference.p_value
    assert found.verdict() == "real: 8 points better (p = 0.0078)"


def test_too_small_a_run_says_so(table):
    (found,) = compare_all(
        table[(table.item < 4) & (table.seed == 0) & (table.task == "math")].query(
            "system != 'same'"
        ),
        "target",
    )
    assert found.detectable is None
    assert "too small to detect any difference" in found.verdict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="seed"), "the table lacks seed; it has task, system, item"),
        (lambda t: t.assign(correct=None), "1800 of 1800 samples lack a grade"),
        (lambda t: t.assign(correct="yes"), "other than true and false"),
        (lambda t: pd.concat([t, t.iloc[:2]]), "2 samples occur twice, the first is item"),
        (lambda t: t[t.system == "target"], "'target' is the only system"),
        (lambda t: t[t.system != "target"], "'target' has no samples on '(math|code)'"),
        (
            lambda t: t[~((t.task == "code") & (t.system == "same") & (t["item"] == 7))],
            "'same' lacks 3 of 300 samples on 'code': item 7 seed 0, item 7 seed 1, item 7 seed 2;",
        ),
        (
            lambda t: t[~((t.system == "target") & (t["item"] < 4))],
            "'target' lacks 12 of 300 samples on '(math|code)': .* and 9 more",
        ),
    ],
)
def test_tables_that_do_not_pair_are_refused(table, change, message):
    with pytest.raises(InputError, match=message):
        compare_all(change(table), "target")


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proportion([]), "shape"),
        (lambda: proportion([1, math.nan]), "1 missing or infinite"),
        (lambda: proportion([1, 0.5]), "other than 0 and 1"),
        (lambda: proportion([1, 1, 1], [0, 0, 0]), "all samples come from one problem"),
        (lambda: proportion([1, 0], [0]), "1 clusters for 2 samples"),
        (lambda: share([3], [2]), "greater than its whole"),
        (lambda: share([0], [0]), "nothing to divide by"),
        (lambda: share([1, 2], [3]), "2 part for 1 whole"),
        (lambda: ratio([0, 0], [3, 4]), "use share"),
        (lambda: ratio([2], [3]), "one problem"),
        (lambda: paired_difference([1, 0], [1]), "2 values of a for 1 of b"),
        (lambda: equivalence([1, 0], [1, 1], margin=0), "not positive"),
        (lambda: bootstrap(lambda w: w.sum(-1), 1), "give two or more"),
        (lambda: bootstrap(lambda w: w[:, 0] / w[:, 0].astype(bool), 3), "undefined in"),
        (lambda: top_mean([1, 2], [0, 1], 5), "give a number above 0 and up to 1"),
        (lambda: Spread(shared=-0.1), "neither can be negative"),
        (lambda: Spread.of_pilot([0.5, 1], [0, 1]), "grades of 0 and 1 only"),
        (lambda: Spread(shared=0.1).power_at(5, 100), "0.01 is one point"),
        (lambda: Spread(shared=0.1).power_at(0.05, 0), "make no run"),
        (lambda: Spread(shared=0.1).power_at(0.05, 10, level=5), "no probability of error"),
        (lambda: Spread(shared=0.1).required(0), "give what matters"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_without_scipy_the_error_has_the_install_line():
    program = (
        "import sys; sys.modules['scipy'] = None\n"
        "from easd.errors import EasdError\n"
        "try: import easd.stats\n"
        "except EasdError as error: print(error)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout == (
        "statistics need scipy, which is not installed; pip install 'easd[study]'\n"
    )
