"""`easd power`: sample sizes estimated from a pilot run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.errors import InputError, visible
from easd.runs import open_run
from easd.stats import Spread

_LEVEL = 0.05
_DIFFERENCES = (0.5, 1.0, 2.0, 5.0)


def command(
    runs: list[Path],
    /,
    *,
    system: str = "easd",
    baseline: str = "target",
    difference: float | None = None,
    problems: int | None = None,
    seeds: Annotated[int | None, Parameter(show_default="as in the pilot run")] = None,
    chance: float = 0.8,
) -> None:
    """Estimate how many problems and seeds a comparison takes, from a pilot run's variance.

    Args:
        runs: Folders of a pilot run with both systems.
        system: The system in question, as named in the run.
        baseline: The system that it is compared with.
        difference: Estimate how many problems it takes to detect this difference, in points.
        problems: Estimate the difference that this number of problems can detect.
        seeds: Texts per problem.
        chance: The wanted probability of detecting it.
    """
    samples = pd.concat([open_run(run, "evaluation").samples.to_pandas() for run in runs])
    seeds = seeds or samples["seed"].nunique()
    comparisons = _comparisons(samples)
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
        seen = [_seen(spread.detectable(count, seeds, chance), f"with {count:,} problems")]
        if comparisons > 1:
            adjusted = spread.detectable(count, seeds, chance, level=_LEVEL / comparisons)
            seen.append(_seen(adjusted, f"as one of {comparisons} comparisons"))
        table.add_row(
            Text(visible(str(task))),
            f"{spread.shared + spread.fresh:.1%} of {len(both):,}",
            "\n".join(needed),
            "\n".join(seen),
        )
    if comparisons > 1:
        table.caption = (
            f"The run compares {comparisons} pairs of systems; its report adjusts for all of them "
            "(Holm), and so calls the larger difference detectable."
        )
    Console().print(table)


def _comparisons(samples: pd.DataFrame) -> int:
    """Counts a report's comparisons with the baseline: on each task, and on all together."""
    systems = samples.groupby("task", observed=True)["system"].nunique()
    pooled = systems.min() - 1 if len(systems) > 1 else 0
    return int((systems - 1).sum() + pooled)


def _seen(difference: float | None, where: str) -> str:
    return f"nothing {where}" if difference is None else f"{100 * difference:.2g} points {where}"
