"""`easd inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from easd.errors import ConfigError, TraceError, visible
from easd.inspect.overview import overview
from easd.inspect.page import write_page
from easd.inspect.terminal import render
from easd.runs import open_run, traces


def command(
    folders: list[Path],
    /,
    *,
    sample: Annotated[int | None, Parameter(show_default="0 of a trace; with --html all")] = None,
    html: Path | None = None,
) -> None:
    """Show any run: a trace's tokens, an evaluation's systems, a benchmark's speeds.

    Recorded tokens are shown by outcome, with entropies, what each penalty replaced, and a summary.

    Args:
        folders: A run's folder; with --html several to compare.
        sample: Show this recorded text, counted from 0.
        html: Write a self-contained page for the browser to this file.
    """
    runs = [open_run(folder) for folder in folders]
    if html is not None:
        write_page([trace for run in runs for trace in traces(run)], html, sample=sample)
        print(visible(f"wrote {html}"), file=sys.stderr)
        return
    if len(runs) > 1:
        raise ConfigError(
            f"the terminal shows one run, not {len(runs)}; name one, or compare with --html"
        )
    (run,) = runs
    if sample is None and run.kind != "trace":
        overview(run, Console())
        return
    recorded = traces(run)
    if not recorded:
        raise TraceError(f"{str(run.folder)!r} recorded no tokens; leave out --sample to see it")
    for trace in recorded:
        render(trace, sample or 0, Console())
