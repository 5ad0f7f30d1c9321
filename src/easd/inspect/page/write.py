"""Writes traces as one file for any browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from easd.errors import TraceError
from easd.inspect.page.assemble import page
from easd.inspect.page.data import run_data
from easd.runs import Run


def write_page(traces: Sequence[Run], path: str | Path, *, sample: int | None = None) -> None:
    """Writes the page of a trace, or of several side by side, text by text.

    Args:
        traces: the others are compared with the first. Of evaluations those with its task and seed
            are shown.
        path: the file, replaced if it exists.
        sample: the only text to show.

    Raises:
        TraceError: A trace holds no such text, or the file cannot be written.
    """
    if not traces:
        raise TraceError("none of these runs recorded tokens; name one that did")
    shown = [trace for trace in traces if _items(trace) == _items(traces[0])]
    html = page({"runs": [run_data(trace, sample) for trace in shown]}, connect="'none'")
    try:
        Path(path).write_text(html, encoding="utf-8")
    except OSError as error:
        raise TraceError(
            f"cannot write the page to {str(path)!r} ({error.strerror}); name another file"
        ) from None


def _items(trace: Run) -> tuple[str, int] | None:
    """Task and seed of an evaluation's cell, which traces side by side must share."""
    cell = trace.run.get("cell")
    return (cell["task"], cell["seed"]) if cell else None
