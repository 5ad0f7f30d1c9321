"""Headings, kinds and definitions of a report's columns; a new one is a line of columns.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, cast

# fmt: off
Kind = Literal[
    "text", "count", "percent", "points", "size", "p", "factor", "ms", "nats", "number", "large",
    "yes",
]
# fmt: on


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, how its values are printed, and its definition.

    Shares are fractions in the tables; `percent`, `points` (with a sign) and `size` (points without
    one) print them times 100.
    """

    heading: str
    kind: Kind
    definition: str


_WITHIN = "95 % interval over problems in brackets"


def _read() -> dict[str, Column]:
    """Reads columns.csv, which has a line for each column."""
    text = (files("easd.report.metrics") / "columns.csv").read_text(encoding="utf-8")
    return {
        row["name"]: Column(
            heading=row["heading"],
            kind=cast(Kind, row["kind"]),
            definition=row["definition"].replace("{within}", _WITHIN),
        )
        for row in csv.DictReader(text.splitlines())
    }


COLUMNS = _read()


def column(name: str) -> Column:
    """A column by name; one that is not known is printed as text under its own name."""
    return COLUMNS.get(name, Column(name.replace("_", " "), "text", ""))


def interval_of(name: str) -> tuple[str, str]:
    """The columns that hold a value's interval, where it has one."""
    return f"{name}_low", f"{name}_high"
