"""Tables that `easd bench` prints of its results."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Column, Table

from easd.runs.schema import PARTS
from easd.speed.bench import Cell, Line
from easd.speed.bench.results import BASES, Clock


def _here(cell: Cell, found: Sequence[Line]) -> list[Line]:
    return [each for each in found if (each.batch, each.context) == (cell.batch, cell.context)]


def _title(cell: Cell) -> str:
    prompts = "" if cell.context is None else f", prompts of {cell.context} tokens"
    return f"{cell.batch} at once{prompts}"


def ratios_table(cell: Cell, found: Sequence[Line], clock: Clock) -> Table:
    """Returns the systems' speeds and their ratios."""
    here = _here(cell, found)
    bases = [base for base in BASES if any(base in line.over for line in here)]
    per = "a second" if clock == "wall" else "a second of processor time"
    limits = ("decoding", "of theorem", "of bound")
    table = plain_table("system", "tok/s", *(f"/ {base}" for base in bases), *limits)
    table.title = f"{_title(cell)}: tokens {per}, ratios round by round [95 %]"
    for line in here:
        ratios = [line.over.get(base) for base in bases]
        shares = [line.efficiency(limit) for limit in (line.theorem, line.bound)]
        table.add_row(
            line.system,
            f"{line.speed:.1f}",
            *("" if r is None else f"{r.value:.3f}\n{r.low:.3f} to {r.high:.3f}" for r in ratios),
            _number(line.decoding, 3) if "target" in line.over else "",
            *(_number(share, 2) for share in shares),
        )
    return table


def breakdown_table(cell: Cell, found: Sequence[Line]) -> Table:
    """Tabulates tokens, time by part, and the two factors of the ratio to `speculative`."""
    columns = ("kept", "penal.", "tok/fwd", "ms/step", "ops", "x tok", "x steps")
    table = plain_table("system", *columns, *PARTS, "other")
    table.title = f"{_title(cell)}: tokens, steps (x: over speculative's), and time in percent"
    for line in _here(cell, found):
        if line.parts is None or line.step_ms is None:
            continue
        parts = [100 * line.parts[part] for part in PARTS]
        over = line.over.get("speculative")
        table.add_row(
            line.system,
            _number(line.acceptance, 3),
            _number(line.penalty_rate, 4),
            _number(line.per_forward, 2),
            f"{line.step_ms:,.2f}",
            _number(line.operations, 0),
            _number(over and over.tokens, 3),
            _number(over and over.steps, 3),
            *(f"{part:.1f}" for part in (*parts, 100 - sum(parts))),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def plain_table(first: str, *others: str) -> Table:
    """Returns an empty table whose columns but the first are numbers."""
    columns = (Column(name, justify="right", no_wrap=True) for name in others)
    return Table(
        *(Column(first, no_wrap=True), *columns),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
