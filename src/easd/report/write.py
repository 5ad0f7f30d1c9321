"""A report as files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from easd.errors import ConfigError, TraceError
from easd.report.build import build
from easd.report.metrics import frames
from easd.report.page import Part
from easd.report.render import figure_file, html, markdown
from easd.runs import Run


def write_report(
    runs: Sequence[Run], out: str | Path, baseline: str | None = None, margin: float = 0.01
) -> Path:
    """Writes report.html, report.md, figures and tables; returns the page's path.

    Runs stand side by side, each with its own comparisons: their systems are never mixed.

    Args:
        runs: as `easd.runs.open_run` returns them.
        out: the folder; files of an earlier report in it are replaced.
        baseline: the system that others are compared with; without, target-only.
        margin: the greatest difference of no consequence, as a fraction.

    Raises:
        ConfigError: There is no run, or the baseline is no system of one.
        TraceError: The folder cannot be written.
    """
    if not runs:
        raise ConfigError("there is no run to report on; name at least one folder")
    if not 0 < margin < 1:
        raise ConfigError(f"margin = {margin} is no fraction; 0.01 is one point of accuracy")
    names = _names(runs)
    parts = [
        build(frames(run, baseline), name, margin) for run, name in zip(runs, names, strict=True)
    ]
    title = "Evaluation of " + ", ".join(dict.fromkeys(part.title for part in parts))
    out = Path(out)
    try:
        _write(out, parts, title)
    except OSError as error:
        raise TraceError(
            f"cannot write a report to {str(out)!r} ({error.strerror}); name another folder"
        ) from None
    return out / "report.html"


def _write(out: Path, parts: Sequence[Part], title: str) -> None:
    for folder in ("tables", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(html(parts, title), encoding="utf-8")
    (out / "report.md").write_text(markdown(parts, title), encoding="utf-8")
    for part in parts:
        for section in part.sections:
            for figure in section.figures:
                path = out / "figures" / figure_file(part, figure)
                path.write_text(figure.svg, encoding="utf-8")
    for name in dict.fromkeys(name for part in parts for name in part.frames):
        table = pd.concat(
            [part.frames[name].assign(run=part.name) for part in parts if name in part.frames],
            ignore_index=True,
        )
        if table.shape[1] <= 1:
            continue
        table.insert(0, "run", table.pop("run"))
        table.to_csv(out / "tables" / f"{name}.csv", index=False)
        table.to_parquet(out / "tables" / f"{name}.parquet", index=False)


def _names(runs: Sequence[Run]) -> list[str]:
    """Folders' names as ids, numbered where several are the same."""
    found: list[str] = []
    for run in runs:
        name = re.sub(r"[^a-zA-Z0-9-]+", "-", run.folder.resolve().name).strip("-") or "run"
        same = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found)
        found.append(f"{name}-{same + 1}" if same else name)
    return found
