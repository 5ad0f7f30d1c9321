"""Computes ratios with intervals from timings, compares them with theory, and plots them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from easd.runs.schema import PARTS

Clock = Literal["wall", "cpu"]
CLOCKS: dict[str, str] = {"wall": "seconds", "cpu": "cpu_seconds"}
# Kinds with which others are compared.
BASES = ("target", "speculative", "generate", "assisted", "vllm", "vllm-speculative")
AUTO_GAMMA = "auto"
_AXES = ("texts at once", "tokens of a prompt", "gamma")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ratio of two systems' tokens per second.

    Attributes:
        value: geometric mean over rounds.
        low, high: 95 % interval, Student's t on the logarithms of the rounds' ratios.
        tokens, steps: its two factors, tokens per step and steps per second; None where a system
            counts no steps.
    """

    value: float
    low: float
    high: float
    tokens: float | None
    steps: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Results of a system in a cell; None where a field does not apply.

    Attributes:
        speed: tokens per second.
        over: one of `BASES` -> ratio to that system with the same gamma, else to its fastest; a
            system that chooses gamma is also compared with the fastest of its own kind.
        acceptance: accepted / examined.
        penalty_rate: penalised / examined.
        per_forward: tokens per text and target forward (block efficiency).
        step_ms: milliseconds of the whole run per step of the batch.
        operations: torch operations of a step.
        parts: share of the run's wall time by part.
        decoding: improvement over the target alone, prefill excluded from both; None for processor
            time, which is not recorded by part.
        theorem: improvement by arXiv:2211.17192, Theorem 3.8, from acceptance and cost coefficient.
        bound: the same with the measured cost of scoring a block.
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
    operations: float | None
    parts: dict[str, float] | None
    decoding: float | None
    theorem: float | None
    bound: float | None

    def efficiency(self, against: float | None) -> float | None:
        """Returns the reached share of a theoretical improvement in decoding."""
        return None if against is None or self.decoding is None else self.decoding / against


def lines(timings: pd.DataFrame, clock: Clock = "wall") -> Iterator[Line]:
    """Yields a line per system and cell; parts and costs always use wall time."""
    timings = timings.assign(clock=timings[CLOCKS[clock]])
    for (batch, context), cell in timings.groupby(["batch", "context"], dropna=False, sort=False):
        rows = {str(n): found.set_index("round") for n, found in cell.groupby("system")}
        for name in cell["system"].unique():
            yield _line(int(str(batch)), context, name, rows, clock)


def plot(found: Sequence[Line], path: Path) -> None:
    """Plots improvement over the target, one panel per axis with more than one value."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    drawn = [line for line in found if "target" in line.over]
    panels = {
        axis: curves
        for axis in _AXES
        if (curves := _curves(drawn, axis)) and max(map(len, curves.values())) > 1
    }
    if not panels:
        return
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for index, (axis, curves) in enumerate(panels.items(), 1):
        area = figure.add_subplot(1, len(panels), index)
        for name, points in curves.items():
            places, ratios = zip(*sorted(points.items()), strict=True)
            middle = [ratio.value for ratio in ratios]
            below = [ratio.value - ratio.low for ratio in ratios]
            above = [ratio.high - ratio.value for ratio in ratios]
            area.errorbar(places, middle, yerr=(below, above), marker="o", capsize=2, label=name)
        area.axhline(1, color="black", linewidth=0.8)
        area.set_xlabel(axis)
        area.set_ylabel("tokens a second over the target alone")
        if axis == "texts at once":
            area.set_xscale("log", base=2)
            area.minorticks_off()
        ticks = sorted({place for points in curves.values() for place in points})
        area.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        area.legend(fontsize="small")
    figure.savefig(path)


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
        operations=None if own["operations"].isna().all() else float(own["operations"].median()),
        parts={p: float(total[f"{p}_s"] / total["seconds"]) for p in PARTS} if ours else None,
        decoding=_mean(_decoding(own) / _decoding(rows["target"]))
        if ours and "target" in rows and clock == "wall"
        else None,
        theorem=theorem,
        bound=bound,
    )


def _base(kind: str, name: str, rows: dict[str, pd.DataFrame]) -> str | None:
    """Returns the system of a kind with which `name` is compared."""
    own, _, gamma = name.partition(" ")
    known = [each for each in rows if each.partition(" ")[0] == kind]
    if gamma == AUTO_GAMMA:  # Its rivals are all fixed numbers.
        known = [each for each in known if each != name]
        own = ""
    if own == kind or not known:
        return None
    same = f"{kind} {gamma}"
    return same if same in known else max(known, key=lambda each: _mean(_speed(rows[each])))


def _limits(own: pd.DataFrame, target: pd.DataFrame | None) -> tuple[float | None, float | None]:
    total = own.sum(numeric_only=True)
    if target is None or not total["full_proposed"] or not total["examined"]:
        return None, None
    alone = target.sum(numeric_only=True)
    one = alone["full_target"] / alone["full"]  # Seconds of a forward over one token.
    gamma = total["full_proposed"] / total["full"]
    cost = total["full_draft"] / total["full_proposed"] / one
    scoring = total["full_target"] / total["full"] / one
    rate = total["accepted"] / total["examined"]
    emitted = (1 - rate ** (gamma + 1)) / (1 - rate) if rate < 1 else gamma + 1
    return float(emitted / (gamma * cost + 1)), float(emitted / (gamma * cost + scoring))


def _speed(rows: pd.DataFrame) -> pd.Series[float]:
    return rows["tokens"] / rows["clock"]


def _decoding(rows: pd.DataFrame) -> pd.Series[float]:
    """Returns tokens per second, prefill excluded."""
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
    """Returns logarithms by round, without rounds that only one of two systems has reached."""
    return np.log(values.dropna().to_numpy(dtype=float))


def _mean(values: pd.Series[float]) -> float:
    """Returns the geometric mean."""
    return math.exp(_logs(values).mean())


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _curves(found: Sequence[Line], axis: str) -> dict[str, dict[float, object]]:
    """Returns curve -> place on the axis -> ratio, the other coordinates at their first value."""
    if not found:
        return {}
    first = found[0]
    curves: dict[str, dict] = {}
    for line in found:
        kind, _, gamma = line.system.partition(" ")
        here = (line.batch, line.context, gamma)
        if axis == "gamma" and gamma.isdigit() and here[:2] == (first.batch, first.context):
            curves.setdefault(kind, {})[float(gamma)] = line.over["target"]
        elif axis == "texts at once" and line.context == first.context:
            curves.setdefault(line.system, {})[line.batch] = line.over["target"]
        elif axis == "tokens of a prompt" and line.context and line.batch == first.batch:
            curves.setdefault(line.system, {})[line.context] = line.over["target"]
    return curves
