"""The parts of a report before they become HTML or Markdown, and how values are printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from easd.report.metrics.columns import Column, Kind, column, interval_of
from easd.report.metrics.frames import POOLED, records

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_LEAST_P = 1e-4
_NONE = "—"


@dataclass(frozen=True, slots=True)
class Cell:
    """A printed value, with its interval if it has one."""

    text: str
    interval: str = ""
    is_number: bool = True


def printed(value: Any, kind: Kind) -> Cell:
    """A value as its kind of column prints it, a missing one as a dash."""
    if kind == "text":
        return Cell(_NONE if _missing(value) else str(value), is_number=False)
    if _missing(value):
        return Cell(_NONE)
    if kind == "yes":
        return Cell("yes" if value else "no", is_number=False)
    return Cell(number(float(value), kind))


def printed_interval(value: Any, low: Any, high: Any, kind: Kind) -> Cell:
    """A value with its interval."""
    text = "" if value is None else printed(value, kind).text
    if _missing(low) or _missing(high):
        return Cell(text)
    return Cell(text, f"[{number(float(low), kind)}, {number(float(high), kind)}]")


def number(value: float, kind: Kind) -> str:
    """A number with the digits of its kind, and true minus signs."""
    if kind == "count":
        text = f"{value:,.0f}"
    elif kind in ("percent", "size"):
        text = _significant(100 * value)
    elif kind == "points":
        text = f"{100 * value:+.2f}".replace("+0.00", "0.00").replace("-0.00", "0.00")
    elif kind == "p":
        text = "< 0.0001" if value < _LEAST_P else f"{value:.2g}"
    elif kind == "factor":
        text = f"{value:.2f}" if value < 100 else f"{value:.0f}"
    elif kind == "large":
        size, prefix = next((p for p in _PREFIXES if abs(value) >= p[0]), (1, ""))
        text = f"{value / size:.3g} {prefix}".rstrip()
    else:
        text = _significant(value)
    return text.replace("-", MINUS)


def rate(share: float) -> str:
    """A share in per cent."""
    return f"{number(share, 'percent')} %"


def with_interval(row: Mapping[str, Any] | pd.Series[Any], name: str, kind: Kind) -> str:
    """A value of a row as part of a sentence, with its interval if there is one."""
    text = rate(row[name]) if kind == "percent" else number(row[name], kind)
    low, high = (row[end] for end in interval_of(name))
    return text if low != low else f"{text} [{number(low, kind)}, {number(high, kind)}]"


def p_words(value: float) -> str:
    """A p-value as part of a sentence."""
    return f"p {'' if value < _LEAST_P else '= '}{number(value, 'p')}"


def counted(many: int, what: str) -> str:
    """A count with its noun."""
    return f"{many:,} {what}{'' if many == 1 else 's'}"


def heading_unit(kind: Kind) -> str:
    """The unit printed after a heading."""
    units = {"percent": "%", "size": "points", "factor": TIMES}
    return units.get(kind, kind if kind in ("points", "ms", "nats") else "")


def _significant(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1000:
        return f"{value:,.0f}"
    digits = 1 if size >= 10 else 2 if size >= 1 else 3
    if 0 < size < 0.01:
        return f"{value:.2g}"
    return f"{value:.{digits}f}"


def _missing(value: Any) -> bool:
    return value is None or (not isinstance(value, list | dict) and bool(pd.isna(value)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """An SVG drawing.

    Attributes:
        name: of its file, distinct within a report's part.
        caption: also the text for screen readers.
    """

    name: str
    svg: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Printed cells; a table that is not `is_open` is folded at first."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_open: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Two texts side by side, split at their first different token."""

    title: str
    prompt: str
    answers: str
    shared: str
    sides: tuple[dict[str, str], dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One question's answer.

    Attributes:
        sentences: the answer, most important first.
        warnings: its limits.
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
    """All sections of one run, and the frames of its tables by name."""

    name: str
    title: str
    summary: str
    sections: tuple[Section, ...] = ()
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)


def make_table(
    frame: pd.DataFrame, columns: str | Iterable[str], title: str = "", *, is_open: bool = True
) -> Table:
    """A frame's columns as a table, each with its interval if it has one.

    Args:
        frame: one row a line.
        columns: names, or a text with names between spaces. Columns that the frame lacks, and those
            without any value, are left out; `unpaired` is an interval without a value.
        title: of the table.
        is_open: whether it is unfolded at first.
    """
    names = columns.split() if isinstance(columns, str) else columns
    kept = [name for name in names if _has(frame, name)]
    about = tuple(column(name) for name in kept)
    rows = tuple(
        tuple(_cell(row, name, c) for name, c in zip(kept, about, strict=True))
        for row in records(frame)
    )
    return Table(title=title, columns=about, rows=rows, is_open=is_open)


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all tasks, or those of the only task."""
    pooled = table[table["task"] == POOLED]
    return pooled if len(pooled) else table


def tables_by_task(frame: pd.DataFrame, columns: str, title: str = "") -> tuple[Table, ...]:
    """One table per task, the pooled one first; of three or more, all others are folded."""
    if frame.empty:
        return ()
    tasks = sorted(map(str, frame["task"].unique()), key=lambda task: task != POOLED)
    return tuple(
        make_table(
            frame[frame["task"] == task],
            columns,
            f"{task}: {title}" if title else task,
            is_open=place == 0 or len(tasks) <= 2,
        )
        for place, task in enumerate(tasks)
    )


def _has(frame: pd.DataFrame, name: str) -> bool:
    found = "unpaired_low" if name == "unpaired" else name
    return found in frame and bool(frame[found].notna().any())


def _cell(row: dict[str, Any], name: str, about: Column) -> Cell:
    low, high = interval_of(name)
    if low in row:
        return printed_interval(row.get(name), row[low], row[high], about.kind)
    return printed(row[name], about.kind)
