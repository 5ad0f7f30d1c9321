"""Numbers as a diagnosis and tuning print them."""

from __future__ import annotations

from rich.table import Table

from easd.diagnose.effects import LEVEL
from easd.stats import Estimate


def unit_of(unique_solution: bool) -> str:
    """The unit of a change per text, times 100."""
    return "points of accuracy" if unique_solution else "right tokens in 100 texts"


def interval(estimate: Estimate) -> str:
    """A change times 100, with its interval in words."""
    value, low, high = (signed(100 * x) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({100 * LEVEL:.0f} % interval {low} to {high})"


def percent(share: float) -> str:
    """A share in per cent, with more digits for rare events."""
    points = 100 * share
    if 0 < points < 0.01:
        return "less than 0.01 %"
    return f"{points:.2f} %" if 0 < points < 1 else f"{points:.1f} %"


def signed(value: float) -> str:
    """A number with its sign and two decimals."""
    return f"{round(value, 2) + 0.0:+.2f}"  # no -0.00


def p_text(p_value: float) -> str:
    """A p-value to two significant digits."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def plain_table(title: str, name: str, *numbers: str) -> Table:
    """A table without lines: a column of names, then columns of numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column(name, no_wrap=True)
    for each in numbers:
        table.add_column(each, justify="right", no_wrap=True)
    return table
