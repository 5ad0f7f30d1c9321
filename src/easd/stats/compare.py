"""Compares every system of a study with a baseline, with a verdict on each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from easd.errors import InputError
from easd.stats.estimates import Estimate, proportion
from easd.stats.paired import Difference, Equivalence, equivalence, holm, paired_difference
from easd.stats.power import Spread

if TYPE_CHECKING:
    import pandas as pd

_KEY = ["item", "seed"]
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A system beside the baseline on one task.

    Attributes:
        difference: system - baseline, with an unadjusted p-value and interval.
        p_real: Holm-adjusted p-value of no difference, over all comparisons.
        equivalence: the test against the margin, with an unadjusted p-value.
        p_equivalent: its Holm-adjusted p-value.
        detectable: the smallest difference that such a run finds with 80 % power at the first step
            of Holm's adjustment; None if it finds none. It follows from how often the systems
            disagree, not from the observed difference.
        family: number of comparisons.
    """

    task: str
    system: str
    baseline: str
    accuracy: Estimate
    baseline_accuracy: Estimate
    difference: Difference
    p_real: float
    equivalence: Equivalence
    p_equivalent: float
    detectable: float | None
    family: int

    def verdict(self) -> str:
        """The conclusion in one sentence."""
        error = 1 - self.difference.level
        margin = f"{_points(self.equivalence.margin)} points"
        adjusted = ", Holm-adjusted" if self.family > 1 else ""
        small = f"(TOST p = {_p(self.p_equivalent)}{adjusted})"
        if self.p_real < error:
            side = "better" if self.difference.value > 0 else "worse"
            real = f"real: {_points(abs(self.difference.value))} points {side}"
            found = f"{real} (p = {_p(self.p_real)}{adjusted})"
            if self.p_equivalent < error:
                return f"{found}, but no more than ±{margin} {small}"
            return found
        if self.p_equivalent < error:
            return f"no difference larger than ±{margin} {small}"
        if self.detectable is None:
            return "cannot tell: this run is too small to detect any difference with 80 % power"
        return (
            "cannot tell: this run could detect a difference of "
            f"{_points(self.detectable)} points with 80 % power"
        )


def compare_all(
    table: pd.DataFrame | pa.Table,
    baseline: str,
    *,
    margin: float = 0.01,
    level: float = 0.95,
) -> list[Comparison]:
    """Compares each system with the baseline on each task, paired by item and seed.

    Args:
        table: one row per sample: `system`, `item`, `seed`, `correct`, and `task` if there are
            several. Items are problems, separate for each task.
        baseline: the system to compare with.
        margin: the largest negligible difference, as a fraction.
        level: of the intervals; 1 - level is the family-wise error of verdicts.

    Returns:
        Tasks and systems in order of appearance.

    Raises:
        InputError: A column is missing, samples are ungraded or occur twice, there is nothing to
            compare, or systems of a task do not have the same samples.
    """
    frame = _checked(table, baseline)
    found = [
        (str(task), str(system), paired[system].to_numpy(), paired[baseline].to_numpy(), items)
        for task, rows in frame.groupby("task", sort=False, observed=True)
        for paired, items in [_paired(str(task), rows, baseline)]
        for system in rows["system"].unique()
        if system != baseline
    ]
    if not found:
        raise InputError(f"{baseline!r} is the only system; there is nothing to compare it with")
    differences = [paired_difference(a, b, items, level) for _, _, a, b, items in found]
    equivalences = [equivalence(a, b, items, margin, level) for _, _, a, b, items in found]
    p_real = holm([each.p_value for each in differences])
    p_equivalent = holm([each.p_value for each in equivalences])
    return [
        Comparison(
            task=task,
            system=system,
            baseline=baseline,
            accuracy=proportion(a, items, level),
            baseline_accuracy=proportion(b, items, level),
            difference=difference,
            p_real=float(p_real[index]),
            equivalence=equivalences[index],
            p_equivalent=float(p_equivalent[index]),
            detectable=Spread.of_pilot(a, b, items).detectable(
                difference.n_clusters,
                max(1, difference.n // difference.n_clusters),
                level=(1 - level) / len(found),
            ),
            family=len(found),
        )
        for index, ((task, system, a, b, items), difference) in enumerate(
            zip(found, differences, strict=True)
        )
    ]


def _checked(table: pd.DataFrame | pa.Table, baseline: str) -> pd.DataFrame:
    known: Any = table  # Type checkers take any attribute of a data frame for a column.
    frame: pd.DataFrame = known.to_pandas() if isinstance(known, pa.Table) else known
    missing = [name for name in ("system", *_KEY, "correct") if name not in frame]
    if missing:
        raise InputError(
            f"the table lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}"
        )
    if "task" not in frame:
        frame = frame.assign(task="")
    ungraded = int(np.asarray(frame[["task", "system", *_KEY, "correct"]].isna()).any(axis=1).sum())
    if ungraded:
        raise InputError(
            f"{ungraded} of {len(frame)} samples lack a grade or a name; "
            "count them as wrong or leave their items out of every system"
        )
    if not np.isin(frame["correct"].to_numpy(), (0, 1)).all():
        raise InputError("correct has values other than true and false; grade every sample so")
    repeated: pd.Series = frame.duplicated(["task", "system", *_KEY])
    if repeated.any():
        raise InputError(
            f"{int(repeated.sum())} samples occur twice, the first is "
            f"{_name(frame.loc[repeated, _KEY].to_numpy()[0])}; keep one of each"
        )
    for task, rows in frame.groupby("task", sort=False, observed=True):
        systems = rows["system"].unique()
        if baseline not in systems:
            raise InputError(
                f"{baseline!r} has no samples{_on(str(task))}; "
                f"choose a baseline among {', '.join(map(str, systems))}"
            )
    return frame


def _paired(task: str, rows: pd.DataFrame, baseline: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Grades, a row per sample and a column per system, and each sample's item."""
    grades = rows.assign(correct=rows["correct"].astype(float)).pivot(
        index=_KEY, columns="system", values="correct"
    )
    for system in grades.columns:
        lacks = grades.index[np.asarray(grades[system].isna())]
        if len(lacks):
            names = ", ".join(_name(key) for key in lacks[:_NAMED])
            rest = f" and {len(lacks) - _NAMED} more" if len(lacks) > _NAMED else ""
            raise InputError(
                f"{system!r} lacks {len(lacks)} of {len(grades)} samples{_on(task)}: "
                f"{names}{rest}; finish its run, or leave these out of every system"
            )
    return grades, grades.index.get_level_values("item").factorize()[0]


def _on(task: str) -> str:
    return f" on {task!r}" if task else ""


def _name(key: object) -> str:
    item, seed = key  # type: ignore[misc]
    return f"item {item} seed {seed}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2g}" if fraction < 0.1 else f"{100 * fraction:.0f}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
