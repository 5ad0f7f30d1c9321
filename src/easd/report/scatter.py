"""A scatter plot of systems as SVG: numbered points whose labels do not overlap, and a key."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes

from easd.report.figures import COLOURS, GREY, MARKS, canvas, distinct, reach, svg
from easd.report.metrics.frames import records

_PANEL = (330.0, 250.0)  # approximate size of the panel in points
_TOGETHER = 7.0
_NEAR = 8.0


def scatter(
    table: pd.DataFrame,
    across: str,
    up: str,
    *,
    labels: tuple[str, str],
    scales: tuple[float, float],
) -> str:
    """Systems as numbered points with the intervals of both columns, beside a key.

    `scales` multiply the values of the horizontal and the vertical axis.
    """
    table = table.dropna(subset=[across, up])
    rows = max(len(table) * 0.185 + 0.6, 3.8)
    with canvas(rows) as figure:
        axes, key = figure.subplots(1, 2, width_ratios=(3, 1.55))
        key.set_axis_off()
        spots = []
        names = distinct(table["system"].tolist(), 25)
        for number, (row, name) in enumerate(zip(records(table), names, strict=True), 1):
            colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
            x, y = row[across] * scales[0], row[up] * scales[1]
            axes.errorbar(
                x,
                y,
                xerr=reach(row, across, scales[0]),
                yerr=reach(row, up, scales[1]),
                fmt=mark,
                color=colour,
                markersize=5,
                elinewidth=0.8,
                alpha=0.9,
            )
            spots.append((x, y, number))
            key.plot(0.02, 1 - number, mark, color=colour, markersize=5, clip_on=False)
            key.text(0.08, 1 - number, f"{number}  {name}", va="center")
        key.set_xlim(0, 1)
        key.set_ylim(-max(len(table), 12) - 0.5, 0.5)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.grid()
        _number(axes, spots)
        return svg(figure)


def _number(axes: Axes, spots: list[tuple[float, float, int]]) -> None:
    """Labels each point with its number; points close to each other share a label."""
    if not spots:
        return
    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
    groups: list[tuple[float, float, list[int]]] = []  # positions in points of the panel
    for x, y, number in spots:
        across = _PANEL[0] * (x - x_low) / (x_high - x_low)
        up = _PANEL[1] * (y - y_low) / (y_high - y_low)
        near = (g for g in groups if math.hypot(g[0] - across, g[1] - up) < _TOGETHER)
        group = next(near, None)
        if group is None:
            groups.append((across, up, [number]))
        else:
            group[2].append(number)
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y, _ in groups]
    for x, y, numbers in groups:
        text = _ranges(numbers)
        right, up, box = _free_place(x, y, 6.5 * len(text), taken)
        taken.append(box)
        axes.annotate(
            text,
            (x / _PANEL[0], y / _PANEL[1]),
            xycoords="axes fraction",
            xytext=(right, up),
            textcoords="offset points",
            ha="left" if right > 0 else "right",
            va="center",
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": GREY}
            if abs(up) > _NEAR
            else None,
        )


def _free_place(
    x: float, y: float, width: float, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float, tuple[float, float, float, float]]:
    """Offset and box of a label of that width at the nearest place with the fewest overlaps."""
    boxes = []
    for up in (_NEAR, -_NEAR, 20, -20, 32, -32, 44, -44, 56, -56):
        for right in (6.0, -6.0):
            left = x + right - (width if right < 0 else 0)
            box = (left, y + up - 5, left + width, y + up + 5)
            inside = box[0] > 0 and box[2] < _PANEL[0] and box[1] > 0 and box[3] < _PANEL[1]
            covers = sum(
                box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken
            )
            boxes.append((covers + 10 * (not inside), right, float(up), box))
    _, right, up, box = min(boxes, key=lambda found: found[0])
    return right, up, box


def _ranges(numbers: list[int]) -> str:
    """1, 2, 3, 7 as 1-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
