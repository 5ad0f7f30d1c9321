"""`easd inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from easd.errors import ConfigError
from easd.inspect.page import write_page
from easd.inspect.terminal import render
from easd.runs import read_trace


def command(
    folders: list[Path],
    /,
    *,
    sample: Annotated[int | None, Parameter(show_default="0; with --html all")] = None,
    html: Path | None = None,
) -> None:
    """Show a trace: tokens by outcome, entropies, what each penalty replaced, and the summary.

    Args:
        folders: A folder that `--trace` wrote; with --html several to compare.
        sample: Which text, counted from 0.
        html: Write a page for the browser to this file; it needs no other.
    """
    traces = [read_trace(folder) for folder in folders]
    if html is not None:
        write_page(traces, html, sample=sample)
        print(f"wrote {html}", file=sys.stderr)
        return
    if len(traces) > 1:
        raise ConfigError(
            f"the terminal shows one trace, not {len(traces)}; name one, or compare with --html"
        )
    render(traces[0], sample or 0, Console())
