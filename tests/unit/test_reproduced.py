"""Results of presets beside what was reported, from evaluations made by hand."""

import re

from evaluations import EASD, Evaluation, graded

from easd.presets import preset
from easd.report.page import MINUS
from easd.report.reproduced import reproduced

SYSTEMS = ["target", "speculative", "easd"]


def rows_of(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_measured_and_reported_values_stand_side_by_side():
    grades = {
        "target": [True] * 60 + [False] * 40,
        "speculative": [True] * 60 + [False] * 40,
        "easd": [False] * 10 + [True] * 52 + [False] * 38,
    }
    section = reproduced(graded(grades, task="math500").run(), preset("table1"))
    (table,) = section.tables
    assert [column.heading for column in table.columns][:3] == ["system", "accuracy", "the paper"]
    rows = rows_of(table)
    assert [rows[name][:2] for name in SYSTEMS] == [
        ["60.0", "79.6"],
        ["60.0", "80.2"],
        ["52.0", "80.8"],
    ]
    said = " ".join(section.sentences).replace(MINUS, "-")
    assert "easd reported on math500: +1.20 points from target; here -8.00 [" in said
    assert "easd reported on math500: +0.60 points from speculative; here -8.00 [" in said
    assert "100 problems would detect" in said
    assert "limit of tokens" not in said
    assert "olympiadbench: easd 48.15 % (325 of 675)" in said
    assert "math500: target" not in said
    assert section.warnings == preset("table1").notes


def test_where_no_grade_differs_the_number_of_problems_is_a_lower_bound():
    grades = {name: [True] * 20 for name in SYSTEMS}
    section = reproduced(graded(grades, task="lab-a").run(), preset("table1"))
    assert re.search(
        r"easd on lab-a: here 0\.00 .*; 1\.20 points, as reported on math500, take at least",
        section.sentences[0],
    )


def test_where_nothing_is_solved_nothing_is_compared():
    grades = {name: [False] * 20 for name in SYSTEMS}
    section = reproduced(graded(grades, task="math500").run(), preset("table1"))
    assert section.sentences[:2] == (
        "easd reported on math500: +1.20 points from target; here easd and target solve no "
        "problem, which says nothing about a difference.",
        "easd reported on math500: +0.60 points from speculative; here easd and speculative solve "
        "no problem, which says nothing about a difference.",
    )


def test_texts_that_end_at_the_limit_are_counted():
    made = Evaluation({name: {"name": name} for name in ("target", "speculative")}, {"made": 4})
    for index in range(4):
        made.sample("target", "made", index, finish_reason="length" if index else "stop")
        made.sample("speculative", "made", index)
    section = reproduced(made.run(), preset("table1"))
    assert "Texts that end at the limit of tokens: target 75.0 %, speculative 0 %." in (
        section.sentences
    )


def test_a_failure_is_traced_to_what_was_refused():
    made = Evaluation({"target": {"name": "target"}, "easd": EASD}, {"made": 2})
    made.sample("target", "made", 0, prompt_tokens=3, token_ids=[1, 2, 3, 4])
    made.sample("target", "made", 1, prompt_tokens=3, token_ids=[1, 2, 3, 4])
    made.sample("easd", "made", 0, prompt_tokens=3, token_ids=[1, 2, 9, 8], correct=False)
    made.sample("easd", "made", 1, prompt_tokens=3, token_ids=[1, 2, 3, 4])
    refusals = {3: (1, 1), 5: (3, 9), 6: (4, 8)}  # position: draft token and replacement
    for position, (drafted, instead) in refusals.items():
        made.token("easd", "made", 0, position, "penalised", token=drafted)
        made.token("easd", "made", 0, position, "replacement", token=instead)
    section = reproduced(made.run(), preset("figure4"))
    (table,) = section.tables
    shown = [[cell.text for cell in row][1:5] for row in table.rows]
    assert shown == [
        ["0", "“ t1”", "“ t1”", "kept"],
        ["2", "“ t3”", "“ t9”", "first"],
        ["3", "“ t4”", "“ t8”", "later"],
    ]
    assert section.sentences == (
        "easd loses 1 text that target has right, and gains 0 that it has wrong.",
        "In 1 of the 1 lost text the first token that differs replaces a refused one.",
    )
    (flip,) = section.flips
    assert flip.prompt == "What is 0?"
