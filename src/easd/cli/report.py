"""`easd report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from easd.errors import visible
from easd.inspect.overview import overview
from easd.report import write_report
from easd.runs import open_run


def command(
    runs: list[Path],
    /,
    *,
    out: Annotated[Path | None, Parameter(show_default="report in the first evaluation")] = None,
    baseline: Annotated[str | None, Parameter(show_default="target")] = None,
    margin: float = 1.0,
) -> None:
    """Report on runs: one HTML page, the same as Markdown, and every table.

    Of a trace or a benchmark, print what it holds instead.

    Args:
        runs: Run folders.
        out: Folder of the report.
        baseline: The system the others are compared with.
        margin: Differences in accuracy up to this, in points, count as too small to matter.
    """
    evaluations = []
    for run in map(open_run, runs):
        if run.kind == "evaluation":
            evaluations.append(run)
        else:
            overview(run, Console())
    if not evaluations:
        return
    page = write_report(
        evaluations,
        out or evaluations[0].folder / "report",
        baseline=baseline,
        margin=margin / 100,
    )
    print(visible(f"written to {page}"), file=sys.stderr)
