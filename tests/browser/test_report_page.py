"""The report in Chromium: all of it can be read on a small laptop, in both themes."""

import pytest
from evaluations import graded

from easd.report import write_report

OPEN_ALL = "[...document.querySelectorAll('details')].forEach((one) => { one.open = true })"
CUT_OFF = """[...document.querySelectorAll('.scroll')]
    .filter((one) => one.scrollWidth > one.clientWidth)
    .filter((one) => getComputedStyle(one).overflowX !== 'auto').length"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    right = [True] * 40 + [False] * 20
    names = [
        "target",
        "draft",
        "speculative",
        "easd:tau_h=0.34",
        "easd:tau_h=1.5,draft_at_bonus=true",
    ]
    write_report([graded(dict.fromkeys(names, right)).run()], folder)
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_cut_off(visit, report, violations, width, scheme):
    page = visit(report.as_uri(), width=width, scheme=scheme)
    verdict = page.locator(".scroll").first
    if width == 1280:
        assert verdict.evaluate("one => one.scrollWidth - one.clientWidth") <= 0
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT_OFF) == 0
    assert violations(page) == []


def test_axe_finds_nothing_in_a_report_of_two_runs(visit, violations, tmp_path):
    flipped = {"target": [True] * 9, "easd": [False] * 2 + [True] * 7}
    runs = [graded(flipped).run(), graded({**flipped, "speculative": [True] * 9}).run()]
    write_report(runs, tmp_path)
    page = visit((tmp_path / "report.html").as_uri())
    page.evaluate(OPEN_ALL)
    assert violations(page) == []
