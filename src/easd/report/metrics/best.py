"""Differences to the target at its best temperature, if a run has several.

Choosing the best temperature on the items that it is judged on would flatter it. So each half of
the problems gets the temperature with the highest accuracy on the other half.
"""

from __future__ import annotations

import pandas as pd

from easd.report.metrics.accuracy import compared
from easd.report.metrics.frames import Frames

BEST = "target at its best temperature"


def differences_to_best(frames: Frames, *, margin: float = 0.01) -> pd.DataFrame:
    """`differences` to `BEST` of all systems that are not lossless.

    Columns: those of `differences`, and chosen (the targets that were best, most frequent first).
    Empty if the run has only one target.
    """
    kinds = {system: frames.kind(system) for system in frames.systems}
    targets = [system for system, kind in kinds.items() if kind == "target"]
    others = [s for s, kind in kinds.items() if kind not in ("target", "speculative")]
    common = frames.common
    best = [
        rows
        for _, group in common[common["system"].isin(targets)].groupby("task", observed=True)
        for rows in _best(group, targets)
    ]
    rivals = common[common["system"].isin(others)]
    if len(targets) < 2 or rivals.empty or not best:
        return pd.DataFrame()
    chosen = pd.concat(best)
    table = pd.concat([chosen.assign(system=BEST), rivals])
    found = compared(table, BEST, frames, {}, margin=margin)
    names = chosen["system"].astype(str).value_counts()
    return found.assign(chosen=", ".join(names.index))


def _best(rows: pd.DataFrame, targets: list[str]) -> list[pd.DataFrame]:
    """The samples of each half of a task's problems under the best target of the other half."""
    half = pd.factorize(rows["problem"], sort=True)[0] % 2
    found = []
    for own in (0, 1):
        right = rows[half != own].groupby("system", observed=True)["correct"].mean()
        known = right.reindex(targets).dropna()
        if len(known):
            kept = (half == own) & (rows["system"] == known.idxmax()).to_numpy()
            found.append(rows[kept])
    return found
