"""`easd report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from easd.errors import visible
from easd.report import write_report
from easd.runs import open_run


def command(
    runs: list[Path],
    /,
    *,
    out: Annotated[Path | None, Parameter(show_default="report in the first run")] = None,
    baseline: Annotated[str | None, Parameter(show_default="target")] = None,
    margin: float = 1.0,
) -> None:
    """Report on runs: one HTML page, the same as Markdown, and every table.

    Args:
        runs: Folders that `easd eval` wrote.
        out: Folder of the report.
        baseline: The system the others are compared with.
        margin: Differences in accuracy up to this, in points, count as too small to matter.
    """
    page = write_report(
        [open_run(run, "evaluation") for run in runs],
        out or runs[0] / "report",
        baseline=baseline,
        margin=margin / 100,
    )
    print(visible(f"written to {page}"), file=sys.stderr)
