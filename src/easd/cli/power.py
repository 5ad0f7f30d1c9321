"""`easd power`: from a pilot run to how many problems it takes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.errors import InputError
from easd.runs import open_run
from easd.runs.texts import visible
from easd.stats import Spread

_DIFFERENCES = (0.5, 1.0, 2.0, 5.0)


def command(
    runs: list[Path],
    /,
    *,
    system: str = "easd",
    baseline: str = "target",
    difference: float | None = None,
    problems: int | None = None,
    seeds: int = 1,
    chance: float = 0.8,
) -> None:
    """How many problems and seeds does it take? From the variance of a pilot run of the pair.

    Args:
        runs: Folders of a pilot run that holds both systems.
        system: The system in question, as named in the run.
        baseline: What it is compared with.
        difference: A difference in points: how many problems does it take to see it?
        problems: A number of problems: what difference can they show?
        seeds: Texts a problem.
        chance: The wanted probability of seeing it.
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
            Text(visible(str(task))),
            f"{spread.shared + spread.fresh:.1%} of {len(both):,}",
            "\n".join(needed),
            "nothing" if seen is None else f"{100 * seen:.2g} points with {count:,} problems",
        )
    Console().print(table)
