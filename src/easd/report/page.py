"""What a report is made of before it becomes HTML or Markdown, and how values are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """A value as its kind of column prints it; a missing one as a dash."""
    if kind == "text":
        return Cell(_NONE if _missing(value) else str(value), is_number=False)
    if _missing(value):
        return Cell(_NONE)
    if kind == "yes":
        return Cell("yes" if value else "no", is_number=False)
    return Cell(number(float(value), kind))


def printed_interval(value: Any, low: Any, high: Any, kind: Kind) -> Cell:
    """A value with its interval behind it."""
    text = "" if value is None else printed(value, kind).text
    if _missing(low) or _missing(high):
        return Cell(text)
    return Cell(text, f"[{number(float(low), kind)}, {number(float(high), kind)}]")


def number(value: float, kind: Kind) -> str:
    """A number with the digits that suit its kind, and true minus signs."""
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
    """A value of a row within a sentence, with its interval where that is known."""
    text = rate(row[name]) if kind == "percent" else number(row[name], kind)
    low, high = (row[end] for end in interval_of(name))
    return text if low != low else f"{text} [{number(low, kind)}, {number(high, kind)}]"


def p_words(value: float) -> str:
    """A p-value within a sentence."""
    return f"p {'' if value < _LEAST_P else '= '}{number(value, 'p')}"


def counted(many: int, what: str) -> str:
    """A count with its noun."""
    return f"{many:,} {what}{'' if many == 1 else 's'}"


def heading_unit(kind: Kind) -> str:
    """The unit printed after a heading."""
    units = {
        "percent": "%",
        "points": "points",
        "size": "points",
        "factor": TIMES,
        "ms": "ms",
        "nats": "nats",
    }
    return units.get(kind, "")


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
    """A drawing.

    Attributes:
        name: of its file, distinct within a report's part.
        svg: the drawing.
        caption: what is drawn; also its text for screen readers.
    """

    name: str
    svg: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells ready for print; `is_open` says whether the table is shown unfolded."""

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


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """The pooled rows, or those of the only task."""
    pooled = table[table["task"] == POOLED]
    return pooled if len(pooled) else table


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
