"""Improvement over the target alone against texts at once, draft length and context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from easd.speed.bench.table import Line

_AXES = ("texts at once", "tokens of a prompt", "gamma")


def plot(found: Sequence[Line], path: Path) -> None:
    """Draws one panel for each axis along which the run has more than one value."""
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


def _curves(found: Sequence[Line], axis: str) -> dict[str, dict[float, object]]:
    """Curve -> place on the axis -> ratio; the other two coordinates stay at their first value."""
    if not found:
        return {}
    first = found[0]
    curves: dict[str, dict] = {}
    for line in found:
        kind, _, gamma = line.system.partition(" ")
        here = (line.batch, line.context, gamma)
        if axis == "gamma" and gamma and here[:2] == (first.batch, first.context):
            curves.setdefault(kind, {})[float(gamma)] = line.over["target"]
        elif axis == "texts at once" and line.context == first.context:
            curves.setdefault(line.system, {})[line.batch] = line.over["target"]
        elif axis == "tokens of a prompt" and line.context and line.batch == first.batch:
            curves.setdefault(line.system, {})[line.context] = line.over["target"]
    return curves
