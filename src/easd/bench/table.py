"""From timed runs to ratios with intervals, and how near they come to what theory allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from easd.trace.schema import PARTS

_DRAWS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The median over rounds of tokens a second over another system's, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A system in a cell; None where it does not apply.

    Attributes:
        speed: tokens a second, median.
        over: name of another system -> ratio to it, round by round.
        acceptance: accepted / examined.
        per_forward: tokens of a text in a forward of the target.
        parts: share of the run's time by part.
        theorem: improvement by arXiv:2211.17192, Theorem 3.8, from acceptance and cost.
        bound: the same with what scoring a block really costs.
    """

    batch: int
    context: float | None
    system: str
    speed: float
    over: dict[str, Ratio]
    acceptance: float | None
    penalty_rate: float | None
    per_forward: float | None
    parts: dict[str, float] | None
    theorem: float | None
    bound: float | None

    def efficiency(self, against: float | None) -> float | None:
        """What is reached of an improvement that theory gives."""
        return (
            None
            if against is None or "target" not in self.over
            else (self.over["target"].value / against)
        )


def lines(timings: pd.DataFrame, bases: tuple[str, ...]) -> Iterator[Line]:
    """A line for each system in each cell.

    Args:
        timings: see `read_timings`.
        bases: systems that the others are compared with, where they took part.
    """
    for (batch, context), cell in timings.groupby(["batch", "context"], dropna=False, sort=False):
        rows = {str(n): found.sort_values("round") for n, found in cell.groupby("system")}
        for name in cell["system"].unique():
            yield _line(int(str(batch)), context, name, rows, bases)


def _line(
    batch: int, context: Any, name: str, rows: dict[str, pd.DataFrame], bases: tuple[str, ...]
) -> Line:
    own = rows[name]
    total = own.sum(numeric_only=True)
    ours = total["forwards"] > 0
    theorem, bound = _limits(own, rows.get("target"))
    return Line(
        batch=batch,
        context=None if pd.isna(context) else int(context),
        system=name,
        speed=float((own["tokens"] / own["seconds"]).median()),
        over={base: _ratio(own, rows[base]) for base in bases if base in rows and base != name},
        acceptance=_share(total["accepted"], total["examined"]),
        penalty_rate=_share(total["penalised"], total["examined"]),
        per_forward=_share(total["tokens"], total["blocks"]),
        parts={p: float(total[f"{p}_s"] / total["seconds"]) for p in PARTS} if ours else None,
        theorem=theorem,
        bound=bound,
    )


def _limits(own: pd.DataFrame, target: pd.DataFrame | None) -> tuple[float | None, float | None]:
    total = own.sum(numeric_only=True)
    if target is None or not total["full_proposed"] or not total["examined"]:
        return None, None
    alone = target.sum(numeric_only=True)
    one = alone["full_target"] / alone["full"]  # a forward of one token
    gamma = total["full_proposed"] / total["full"]
    cost = total["full_draft"] / total["full_proposed"] / one
    scoring = total["full_target"] / total["full"] / one
    rate = total["accepted"] / total["examined"]
    emitted = (1 - rate ** (gamma + 1)) / (1 - rate) if rate < 1 else gamma + 1
    return float(emitted / (gamma * cost + 1)), float(emitted / (gamma * cost + scoring))


def _ratio(own: pd.DataFrame, base: pd.DataFrame) -> Ratio:
    speeds = [(rows["tokens"] / rows["seconds"]).to_numpy() for rows in (own, base)]
    ratios = speeds[0] / speeds[1]
    draws = np.random.default_rng(0).choice(ratios, (_DRAWS, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return Ratio(value=float(np.median(ratios)), low=float(low), high=float(high))


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
