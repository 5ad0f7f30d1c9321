"""Headings, kinds and definitions of a report's columns, which are the lines of columns.csv."""

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
    """Heading and definition of a column, and the kind of its values.

    Tables hold fractions, which `percent`, `points` (with a sign) and `size` (points without a
    sign) print times 100.
    """

    heading: str
    kind: Kind
    definition: str


_WITHIN = "95 % interval over problems in brackets"


def _read() -> dict[str, Column]:
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
    """A column by name; an unknown one is text with its name as heading."""
    return COLUMNS.get(name, Column(name.replace("_", " "), "text", ""))


def interval_of(name: str) -> tuple[str, str]:
    """The names of the columns of a value's interval."""
    return f"{name}_low", f"{name}_high"
