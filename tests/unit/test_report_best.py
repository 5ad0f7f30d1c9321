"""The first screen: against the target at its best temperature, chosen on other problems."""

import re

import pytest
from evaluations import graded

from easd.report import write_report
from easd.report.metrics import differences_to_best, frames
from easd.report.metrics.best import BEST

EVEN = [index % 2 == 0 for index in range(80)]
MOST = [index % 10 != 0 for index in range(80)]
SOME = [index % 10 > 3 for index in range(80)]


def first_screen(made, folder):
    write_report([made.run()], folder)
    page = (folder / "report.md").read_text(encoding="utf-8").replace("\\", "")
    return page.partition("### Verdict")[2].partition("### Accuracy")[0]


def test_the_temperature_is_chosen_on_the_other_half():
    """Each target is right on one half only, so each half is judged by the one that fails on it."""
    made = graded({"target": EVEN, "target, greedy": [not each for each in EVEN], "easd": MOST})
    (row,) = differences_to_best(frames(made.run())).to_dict("records")
    assert row["baseline"] == BEST
    assert row["baseline_accuracy"] == 0
    assert row["difference"] == pytest.approx(0.9)
    assert set(row["chosen"].split(", ")) >= {"target"}


def test_lossless_systems_are_not_compared():
    made = graded(
        {"target": SOME, "target, greedy": MOST, "speculative": SOME, "easd": SOME, "pool": MOST}
    )
    found = differences_to_best(frames(made.run()))
    assert list(found["system"]) == ["easd", "pool"]
    assert set(found["chosen"]) == {"target, greedy"}
    # Holm's adjustment is over the two.
    assert found["p_holm"].iloc[0] == pytest.approx(2 * found["p_value"].iloc[0])


def test_better_than_a_poor_temperature_is_not_better(tmp_path):
    """EASD gains on the target at T = 1 and loses to it at its best, and both are said."""
    made = graded({"target": SOME, "target, greedy": [True] * 80, "easd": MOST})
    said = first_screen(made, tmp_path)
    best = r"Against the target at its best temperature \(target, greedy\)"
    assert re.search(rf"Does EASD help\? {best}, easd hurts on sums: -?.10.0", said)
    assert "Does anything? No system is significantly better" in said
    assert re.search(r"easd helps on sums", said)


def test_what_helps_is_named_with_its_speed(tmp_path):
    made = graded({"target": SOME, "target, greedy": SOME, "speculative": SOME, "pool": MOST})
    said = first_screen(made, tmp_path)
    assert "Does EASD" not in said
    assert re.search(
        r"Does anything\? pool beats .*: \+30.00 points .*Holm-adjusted\), at \d", said
    )


def test_one_target_is_no_choice(tmp_path):
    assert "Does anything?" not in first_screen(graded({"target": SOME, "easd": MOST}), tmp_path)


def test_a_difference_that_is_not_significant_is_none_detected(tmp_path):
    made = graded({"target": SOME, "target, greedy": SOME, "easd": [True, *SOME[1:]]})
    said = first_screen(made, tmp_path)
    assert "easd shows no significant difference on sums: +1.25 points" in said
