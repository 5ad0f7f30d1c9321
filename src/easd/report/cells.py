"""Values in print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from easd.report.metrics.columns import Kind

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
    """A number with as many digits as its kind deserves; true minus signs."""
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


def p_words(value: float) -> str:
    """A p-value within a sentence."""
    return f"p {'' if value < _LEAST_P else '= '}{number(value, 'p')}"


def counted(many: int, what: str) -> str:
    """A number of things in words."""
    return f"{many:,} {what}{'' if many == 1 else 's'}"


def heading_unit(kind: Kind) -> str:
    """What stands behind a heading."""
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
