"""What a command prints of a finished run."""

from io import StringIO

import pytest
from evaluations import graded
from rich.console import Console

from easd.cli.run_summary import summarise


@pytest.mark.parametrize("task", ["sums", "olympiadbench"])
def test_the_table_fits_a_narrow_terminal(task):
    right = [True] * 4
    systems = ["target", "pool everywhere, sampled", "a system with a long name of six words"]
    out = StringIO()
    made = graded(dict.fromkeys(systems, right), task=task)
    summarise(made.run(), Console(file=out, width=80))
    table = [line for line in out.getvalue().splitlines() if line and line[0] in "┏┃┡│└"]
    assert len(table) > 5
    assert len({len(line) for line in table}) == 1
    assert all(line[-1] in "┓┃┩│┘" for line in table), table
