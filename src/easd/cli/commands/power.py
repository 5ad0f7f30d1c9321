"""`easd power`: from a pilot run to how many problems it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from easd.errors import InputError
from easd.runs import open_run
from easd.stats import Spread

_DIFFERENCES = (0.5, 1.0, 2.0, 5.0)


def show_power(
    runs: Sequence[Path],
    system: str,
    baseline: str,
    difference: float | None,
    problems: int | None,
    seeds: int,
    chance: float,
) -> None:
    """Prints, for each task, what it takes to see a difference between two systems.

    Args:
        runs: folders of evaluations that hold both.
        system, baseline: names of the systems.
        difference: in points; without one, a few.
        problems: whose smallest visible difference is wanted, too; the pilot's unless given.
        seeds: texts a problem.
        chance: the wanted power.

    Raises:
        InputError: A system is missing, or has other items than the other.
    """
    samples = pd.concat([open_run(run, "evaluation").samples.to_pandas() for run in runs])
    table = Table("task", "differ on", f"problems for a power of {chance:.0%}", "can be seen")
    table.title = f"{system} against {baseline}, {seeds} text(s) a problem, level 5 %"
    for task, rows in samples.groupby("task", observed=True, sort=False):
        grades = rows.pivot_table(
            index=["item", "seed"], columns="system", values="correct", observed=True
        )
        for name in (system, baseline):
            if name not in grades:
                known = ", ".join(map(str, grades.columns))
                raise InputError(f"{name!r} is no system of {task}; choose from {known}")
        both = grades[[system, baseline]].dropna()
        items = both.index.get_level_values("item").to_numpy()
        spread = Spread.of_pilot(both[system], both[baseline], items)
        wanted = [difference] if difference is not None else _DIFFERENCES
        needed = [
            f"{points:g} points: {spread.required(points / 100, seeds, chance):,}"
            for points in wanted
        ]
        count = problems or len(set(items))
        seen = spread.detectable(count, seeds, chance)
        table.add_row(
            str(task),
            f"{spread.shared + spread.fresh:.1%} of {len(both):,}",
            "\n".join(needed),
            "nothing" if seen is None else f"{100 * seen:.2g} points with {count:,} problems",
        )
    Console().print(table)
