"""From timed runs to ratios with intervals, and how near they come to what theory allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from easd.runs.schema import PARTS

Clock = Literal["wall", "cpu"]
CLOCKS: dict[str, str] = {"wall": "seconds", "cpu": "cpu_seconds"}
BASES = ("target", "speculative", "assisted")  # Kinds that others are compared with.


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Tokens a second over another system's: the geometric mean over rounds.

    Attributes:
        low, high: 95 % interval, Student's on the logarithms of the rounds' ratios.
        tokens, steps: its two factors, tokens of a step and steps a second; None where a system
            counts no steps.
    """

    value: float
    low: float
    high: float
    tokens: float | None
    steps: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A system in a cell; None where it does not apply.

    Attributes:
        speed: tokens a second.
        over: one of `BASES` -> ratio to that system with the same gamma, else to its fastest.
        acceptance: accepted / examined.
        per_forward: tokens of a text in a forward of the target.
        step_ms: milliseconds of the whole run for each step of the batch.
        parts: share of the run's wall time by part.
        decoding: improvement over the target alone, the reading of prompts left out of both; None
            by processor time, which is not recorded by part.
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
    step_ms: float | None
    parts: dict[str, float] | None
    decoding: float | None
    theorem: float | None
    bound: float | None

    def efficiency(self, against: float | None) -> float | None:
        """What is reached of an improvement that theory gives for decoding."""
        return None if against is None or self.decoding is None else self.decoding / against


def lines(timings: pd.DataFrame, clock: Clock = "wall") -> Iterator[Line]:
    """A line for each system in each cell.

    Args:
        timings: see `read_timings`.
        clock: that speeds and ratios are made of; parts and costs are of wall time always.
    """
    timings = timings.assign(clock=timings[CLOCKS[clock]])
    for (batch, context), cell in timings.groupby(["batch", "context"], dropna=False, sort=False):
        rows = {str(n): found.set_index("round") for n, found in cell.groupby("system")}
        for name in cell["system"].unique():
            yield _line(int(str(batch)), context, name, rows, clock)


def _line(batch: int, context: Any, name: str, rows: dict[str, pd.DataFrame], clock: Clock) -> Line:
    own = rows[name]
    total = own.sum(numeric_only=True)
    ours = total["forwards"] > 0
    theorem, bound = _limits(own, rows.get("target"))
    bases = {kind: _base(kind, name, rows) for kind in BASES}
    return Line(
        batch=batch,
        context=None if pd.isna(context) else int(context),
        system=name,
        speed=_mean(_speed(own)),
        over={kind: _ratio(own, rows[base]) for kind, base in bases.items() if base},
        acceptance=_share(total["accepted"], total["examined"]),
        penalty_rate=_share(total["penalised"], total["examined"]),
        per_forward=_share(total["tokens"], total["blocks"]),
        step_ms=1000 * _mean(own["clock"] / own["forwards"]) if ours else None,
        parts={p: float(total[f"{p}_s"] / total["seconds"]) for p in PARTS} if ours else None,
        decoding=_mean(_decoding(own) / _decoding(rows["target"]))
        if ours and "target" in rows and clock == "wall"
        else None,
        theorem=theorem,
        bound=bound,
    )


def _base(kind: str, name: str, rows: dict[str, pd.DataFrame]) -> str | None:
    """The system of a kind that `name` is compared with."""
    own, _, gamma = name.partition(" ")
    known = [each for each in rows if each.partition(" ")[0] == kind]
    if own == kind or not known:
        return None
    same = f"{kind} {gamma}"
    return same if same in known else max(known, key=lambda each: _mean(_speed(rows[each])))


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


def _speed(rows: pd.DataFrame) -> pd.Series[float]:
    return rows["tokens"] / rows["clock"]


def _decoding(rows: pd.DataFrame) -> pd.Series[float]:
    """Tokens a second without the seconds that prompts were read in."""
    return _speed(rows) / (1 - rows["prefill_s"] / rows["seconds"])


def _ratio(own: pd.DataFrame, base: pd.DataFrame) -> Ratio:
    ratios = _speed(own) / _speed(base)
    logs, value = _logs(ratios), _mean(ratios)
    reach = math.inf
    if len(logs) > 1:
        reach = student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    tokens = None
    if (own["forwards"] > 0).all() and (base["forwards"] > 0).all():
        a_step = [rows["tokens"] / rows["forwards"] for rows in (own, base)]
        tokens = _mean(a_step[0] / a_step[1])
    return Ratio(
        value=value,
        low=value * math.exp(-reach),
        high=value * math.exp(reach),
        tokens=tokens,
        steps=None if tokens is None else value / tokens,
    )


def _logs(values: pd.Series[float]) -> NDArray[np.float64]:
    """Logarithms by round; rounds that only one of two systems has reached are left out."""
    return np.log(values.dropna().to_numpy(dtype=float))


def _mean(values: pd.Series[float]) -> float:
    """The geometric mean."""
    return math.exp(_logs(values).mean())


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
