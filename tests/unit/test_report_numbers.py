"""Numbers of a report that seem to contradict each other have their reason beside them."""

import re

import pandas as pd
import pytest
from evaluations import EASD, Evaluation, graded

from easd.report import figures, write_report
from easd.report.metrics import frames, speed


def verdict(folder):
    page = (folder / "report.md").read_text(encoding="utf-8").replace("\\", "")
    return page.partition("### Verdict")[2].partition("### Accuracy")[0]


def grid(opens):
    """A grid of three thresholds, at the lowest of which the gate opens as asked."""
    rules = {f"easd {height}": {**EASD, "tau_h": height} for height in (0.5, 1.0, 1.5)}
    made = Evaluation(systems={"target": {"name": "target"}, **rules}, tasks={"sums": 8})
    for system in made.systems:
        for index in range(8):
            made.sample(system, "sums", index, correct=index % 2 == 0)
            if "easd" in system:
                fired = 1.0 if opens and system == "easd 0.5" else 0.0
                made.samples[-1] |= {"gate_open": fired, "examined": 10}
        made.unit(system, "sums")
    return made


@pytest.mark.parametrize(("opens", "shut"), [(False, 3), (True, 2)])
def test_the_verdict_over_a_grid_says_where_nothing_was_done(opens, shut, tmp_path):
    write_report([grid(opens).run()], tmp_path)
    said = verdict(tmp_path)
    assert (
        f"the gate never opens in {shut} of 3 cells, so their accuracy is that of no gate" in said
    )
    assert ("cells whose gate opens (1): " in said) == opens
    assert "accuracy is 50.0 % in all 3 cells" in (tmp_path / "report.md").read_text()


def test_the_verdict_has_accuracy_gate_rate_and_tokens_a_forward(tmp_path):
    write_report([grid(True).run()], tmp_path)
    said = verdict(tmp_path)
    heading = re.search(r"\| system \|.*", said)[0]
    for column in ("accuracy, %", "gate open, %", "tokens a forward"):
        assert f"| {column} |" in heading
    assert re.search(r"\| target \| baseline \| 50.0 \|.*", said)
    assert re.search(r"\| easd 0.5 \|.*\| 10.0 \|", said)


def test_an_interval_that_the_adjustment_takes_back_is_explained(tmp_path):
    right = [True] * 40 + [False] * 10
    systems = {f"easd {n}": right for n in range(8)}
    hurt = [grade and index >= 6 for index, grade in enumerate(right)]
    write_report([graded({"target": right, **systems, "pool": hurt}).run()], tmp_path)
    assert "an interval excludes zero although the adjusted p is above 0.05" in verdict(tmp_path)
    write_report([graded({"target": right, "pool": hurt}).run()], tmp_path)
    assert "although the adjusted p" not in verdict(tmp_path)


def test_what_is_detectable_names_the_number_of_comparisons(tmp_path):
    grades = [True] * 30 + [False] * 30
    other = [True] * 29 + [False] * 31
    write_report([graded({"target": grades, "easd": other, "pool": other}).run()], tmp_path)
    assert "with 80 % power, as one of 2 comparisons" in verdict(tmp_path)


@pytest.mark.parametrize(("chunks", "known"), [(2, False), (4, False), (5, True)])
def test_few_chunks_give_no_interval_of_speed(chunks, known, tmp_path):
    made = graded({"target": [True] * 9, "easd": [True] * 9})
    for system in made.systems:
        for first in range(2, chunks):
            made.unit(system, "sums", first=4 * first)
    table = speed(frames(made.run()))
    assert table["tokens_per_second"].notna().all()
    assert table["tokens_per_second_low"].notna().all() == known
    assert table["improvement_low"].notna().all() == known
    write_report([made.run()], tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert ("Some speeds have no interval" in page) != known


NAMES = [f"easd:tau_h=0.34,tau_o={o},draft_at_bonus=true,top_n=5,redraw=x" for o in (0.6, 0.8, 1.0)]


def test_legends_never_elide_what_differs():
    short = figures.distinct([*NAMES, "target"], 25)
    assert len(set(short)) == 4
    assert max(map(len, short)) <= 26
    assert short[-1] == "target"
    hard = [f"{'a' * 60}{n}{'b' * 60}" for n in range(12)]
    assert len(set(figures.distinct(hard, 25))) == 12
    nested = ["x" * 60, "x" * 80]
    assert len(set(figures.distinct(nested, 25))) == 2


@pytest.mark.parametrize("rates", [[0.0, 0.0, 0.0, 0.0], [0.0, 0.01, 0.02, 0.05]])
def test_numbers_on_a_heat_map_can_be_read(rates):
    table = pd.DataFrame({"tau_h": [1, 1, 2, 2], "tau_o": [0.6, 0.8] * 2, "gate_rate": rates})
    table["accuracy"] = 0.71
    drawn = figures.heat_maps(table, {"accuracy": "accuracy", "gate_rate": "gate"})
    cells = re.findall(r"(#fdfdfd|#111111)[^>]*>(71|never|[125])</text>", drawn)
    assert len(cells) == 8
    # On the darkest colour of the map, and on the lightest.
    assert {colour for colour, text in cells if text in ("71", "never")} == {"#fdfdfd"}
    if any(rates):
        assert ("#111111", "5") in cells


def test_drawings_follow_the_theme_of_the_page(tmp_path):
    write_report([grid(True).run()], tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in page
    used = set(re.findall(r"var\((--figure-[a-z]+), #", page))
    dark = set(re.findall(r"(--figure-[a-z]+): #", page))
    assert {"--figure-ink", "--figure-paper"} <= used
    assert used <= dark


def test_one_rule_under_several_names_is_one_cell_of_the_grid(tmp_path):
    made = grid(True)
    made.systems |= {"again": {**EASD, "tau_h": 0.5}}
    for index in range(8):
        made.sample("again", "sums", index, correct=True)
    made.unit("again", "sums")
    write_report([made.run()], tmp_path)
    assert "in 2 of 3 cells" in verdict(tmp_path)
