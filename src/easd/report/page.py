"""What a report is made of, before it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from easd.report.cells import Cell, printed, printed_interval
from easd.report.metrics.columns import Column, column, interval_of
from easd.report.metrics.frames import POOLED, records


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing.

    Attributes:
        name: of its file, distinct within a report's part.
        svg: the drawing.
        caption: what is drawn; also read out in its place.
    """

    name: str
    svg: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells ready for print; `is_open` says whether a reader sees them without asking."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_open: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A pair of texts side by side, parted at their first different token."""

    title: str
    prompt: str
    answers: str
    shared: str
    sides: tuple[dict[str, str], dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A question and its answer.

    Attributes:
        sentences: the answer in plain language, most important first.
        warnings: what limits it.
    """

    name: str
    title: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    flips: tuple[Flip, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All sections of one run, with the frames behind its tables by name."""

    name: str
    title: str
    summary: str
    sections: tuple[Section, ...] = ()
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)


def make_table(
    frame: pd.DataFrame, columns: Sequence[str], title: str = "", *, is_open: bool = True
) -> Table:
    """A frame's columns as a table; a column with an interval is printed with it.

    Args:
        columns: those that the frame lacks, and those without any value, are left out;
            `unpaired` stands for an interval without a value.
    """
    kept = [name for name in columns if _has(frame, name)]
    about = tuple(column(name) for name in kept)
    rows = tuple(
        tuple(_cell(row, name, c) for name, c in zip(kept, about, strict=True))
        for row in records(frame)
    )
    return Table(title=title, columns=about, rows=rows, is_open=is_open)


def tables_by_task(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[Table, ...]:
    """One table a task, the pooled one first; the others of many are folded."""
    if frame.empty:
        return ()
    tasks = [str(task) for task in frame["task"].unique()]
    tasks.sort(key=lambda task: task != POOLED)
    return tuple(
        make_table(
            frame[frame["task"] == task], columns, task, is_open=index == 0 or len(tasks) <= 2
        )
        for index, task in enumerate(tasks)
    )


def _has(frame: pd.DataFrame, name: str) -> bool:
    found = "unpaired_low" if name == "unpaired" else name
    return found in frame and bool(frame[found].notna().any())


def _cell(row: dict[str, Any], name: str, about: Column) -> Cell:
    low, high = interval_of(name)
    if low in row:
        return printed_interval(row.get(name), row[low], row[high], about.kind)
    return printed(row[name], about.kind)
