"""Figures of a report, readable in print, without colour, and by colour-blind readers.

Every function takes a frame of `easd.report.metrics` and returns an SVG element. Labels include
units.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from easd.errors import visible
from easd.report.metrics.frames import records

# Okabe and Ito's palette; hatches and markers make figures readable without colour.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#666666"

# Colours that the page's dark theme changes; a file with the drawing alone keeps these.
_THEMED = {
    "#000000": "ink",
    "#666666": "grey",
    "#dddddd": "grid",
    "#cfcfcf": "pale",
    "#bbbbbb": "rest",
    "#ffffff": "paper",
    "#0072b2": "blue",
}
# Colours of numbers on a heat map, which is the same in both themes.
_ON_DARK, _ON_LIGHT = "#fdfdfd", "#111111"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "easd",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}
_LUMINANCE = (0.2126, 0.7152, 0.0722)
_WIDTH = 7.6
_ROW = 0.25
_NAME = 34
MARKS = "osD^vP*X"
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK, GREY)


def intervals(table: pd.DataFrame, value: str, *, label: str, zero: bool = False) -> str:
    """A dot and its interval for every system, one panel per task.

    The table has task, system, and the fraction `value` with its interval. Columns `unpaired_low`
    and `unpaired_high` are drawn behind. `zero` draws a line at 0.
    """
    systems = list(table["system"].unique())
    height = _rows_of_panels(table) * (_ROW * len(systems) + 0.9)
    with canvas(height) as figure:
        for axes, rows in _panels(figure, table):
            _interval_panel(axes, rows, systems, value)
            axes.set_xlabel(visible(label))
            if zero:
                axes.axvline(0, color=BLACK, linewidth=0.8)
        return svg(figure)


def stacked(table: pd.DataFrame, parts: dict[str, str], *, label: str) -> str:
    """One stacked bar per system; `parts` maps columns to names in the legend."""
    fills = list(zip((SKY, BLUE, ORANGE, "#bbbbbb"), ("//", "", "..", "xx"), strict=True))
    with canvas(_ROW * len(table) + 1.2) as figure:
        axes = figure.subplots()
        place = np.arange(len(table))
        left = np.zeros(len(table))
        for (column, name), (colour, hatch) in zip(parts.items(), fills, strict=False):
            width = table[column].fillna(0).to_numpy()
            axes.barh(
                place,
                width,
                left=left,
                height=0.72,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.5,
                label=name,
            )
            left += width
        _name_rows(axes, table["system"].tolist())
        axes.set_xlabel(visible(label))
        axes.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=len(parts), frameon=False)
        return svg(figure)


def histograms(table: pd.DataFrame, tau_h: float | None) -> str:
    """Entropies of draft and target, shares on a logarithmic scale, and the threshold if any.

    The table has model, low, high and share of one system.
    """
    styles = {"target": (BLUE, "-"), "draft": (RED, "--")}
    with canvas(3.0) as figure:
        axes = figure.subplots()
        for model, (colour, line) in styles.items():
            rows = table[table["model"] == model]
            if rows.empty:
                continue
            edges = [*rows["low"], rows["high"].iloc[-1]]
            heights = (100 * rows["share"]).to_numpy()
            axes.stairs(heights, edges, color=colour, linestyle=line, linewidth=1.6, label=model)
        axes.set_yscale("log")
        top = axes.get_xlim()[1]
        if tau_h is not None and math.isfinite(tau_h):
            top = max(top, 1.15 * tau_h)
            axes.axvline(tau_h, color=BLACK, linewidth=0.9, linestyle=":")
            axes.annotate(
                f"tau_h {tau_h:.3g}",
                (tau_h, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
            )
        axes.set_xlim(0, top)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("entropy, nats")
        axes.set_ylabel("emitted positions, %")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        return svg(figure)


def bars(table: pd.DataFrame, names: str, value: str, *, labels: tuple[str, str]) -> str:
    """Vertical bars of the shares in column `value`, labelled with their percentage."""
    with canvas(2.6) as figure:
        axes = figure.subplots()
        heights = (100 * table[value]).to_numpy()
        drawn = axes.bar(table[names].map(str), heights, width=0.6, color=SKY, edgecolor=BLUE)
        axes.bar_label(drawn, [f"{height:.3g}" for height in heights], padding=2)
        axes.margins(y=0.15)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.grid(axis="y")
        return svg(figure)


def lines(table: pd.DataFrame, across: str, up: str, *, labels: tuple[str, str]) -> str:
    """The share `up` over `across`: one panel per task, one line per system, with intervals."""
    with canvas(2.7 * _rows_of_panels(table) + 0.3) as figure:
        for axes, rows in _panels(figure, table):
            systems = list(rows["system"].unique())
            for index, (system, name) in enumerate(zip(systems, distinct(systems), strict=True)):
                part = rows[rows["system"] == system]
                reaches = np.column_stack([reach(r, up, 100) for r in records(part)])
                axes.errorbar(
                    part[across],
                    100 * part[up],
                    yerr=reaches,
                    color=COLOURS[index],
                    marker=MARKS[index],
                    linestyle=("-", "--", "-.", ":")[index % 4],
                    capsize=2,
                    linewidth=1.3,
                    label=name,
                )
            axes.set_xlabel(labels[0])
            axes.set_ylabel(labels[1])
            axes.grid()
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=2, frameon=False)
        return svg(figure)


def heat_maps(table: pd.DataFrame, values: dict[str, str]) -> str:
    """One map of tau_h and tau_o for each column of shares, with the value in each cell.

    `values` maps columns to titles.
    """
    with canvas(0.5 * table["tau_o"].nunique() + 1.4) as figure:
        panels = figure.subplots(1, len(values), squeeze=False).ravel()
        for axes, (column, title) in zip(panels, values.items(), strict=True):
            grid = 100 * table.pivot(index="tau_o", columns="tau_h", values=column)
            image = axes.imshow(grid.to_numpy(float), cmap="cividis", aspect="auto", origin="lower")
            for (y, x), value in np.ndenumerate(grid.to_numpy(float)):
                if math.isnan(value):
                    text, colour = "—", BLACK
                else:
                    ground = np.array(image.cmap(image.norm(value))[:3])
                    is_dark = float(ground @ _LUMINANCE) < 0.5
                    colour = _ON_DARK if is_dark else _ON_LIGHT
                    text = "never" if column == "gate_rate" and value == 0 else f"{value:.3g}"
                axes.text(x, y, text, ha="center", va="center", color=colour)
            axes.set_xticks(range(grid.shape[1]), [f"{x:g}" for x in grid.columns])
            axes.set_yticks(range(grid.shape[0]), [f"{y:g}" for y in grid.index])
            axes.set_xlabel("tau_h, nats")
            axes.set_ylabel("tau_o")
            axes.set_title(title, loc="left")
        return svg(figure)


@contextmanager
def canvas(height: float) -> Iterator[Figure]:
    """A figure of that height in inches, in the report's style."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(_WIDTH, height), layout="constrained")


def _rows_of_panels(table: pd.DataFrame) -> int:
    return math.ceil(table["task"].nunique() / 2)


def _panels(figure: Figure, table: pd.DataFrame) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """A panel and the rows of each task, two panels in a row."""
    tasks = list(table["task"].unique())
    shape = (_rows_of_panels(table), min(len(tasks), 2))
    panels = figure.subplots(*shape, squeeze=False, sharey=True).ravel()
    titles = dict(zip(tasks, distinct(tasks), strict=True))
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    for axes, task in zip(panels, tasks, strict=False):
        axes.set_title(titles[task] if len(tasks) > 1 else "", loc="left")
        yield axes, table[table["task"] == task]


def _interval_panel(axes: Axes, rows: pd.DataFrame, systems: list[str], value: str) -> None:
    rows = rows.set_index("system").reindex(systems)
    place = np.arange(len(systems))
    if "unpaired_low" in rows:
        low, high = 100 * rows["unpaired_low"], 100 * rows["unpaired_high"]
        axes.hlines(place, low, high, color="#cfcfcf", linewidth=5, zorder=1)
    low, high = (100 * rows[f"{value}_{end}"] for end in ("low", "high"))
    axes.hlines(place, low, high, color=BLUE, linewidth=1.6, zorder=2)
    axes.plot(100 * rows[value], place, "o", color=BLUE, markersize=4.5, zorder=3)
    _name_rows(axes, systems)
    axes.grid(axis="x")


def _name_rows(axes: Axes, systems: list[str]) -> None:
    axes.set_yticks(range(len(systems)), distinct(systems))
    axes.set_ylim(len(systems) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def reach(row: dict, column: str, scale: float) -> np.ndarray:
    """Distances from the value to both ends of its interval, [2, 1]."""
    value = row[column]
    ends = (value - row[f"{column}_low"], row[f"{column}_high"] - value)
    return scale * np.array([[max(0.0, end) if end == end else 0.0] for end in ends])


def distinct(names: Sequence[object], limit: int = _NAME) -> list[str]:
    """Names cut to `limit` characters such that all remain distinct.

    Names whose cut would be the same lose most of their common beginning. If they are still the
    same, they are not cut.
    """
    full = [visible(str(name)) for name in names]
    cut = [_cut(name, limit) for name in full]
    for same in {text for text in cut if cut.count(text) > 1}:
        group = [place for place, text in enumerate(cut) if text == same]
        letters = zip_longest(*(full[place] for place in group))
        begins = next(at for at, each in enumerate(letters) if len(set(each)) > 1)
        ends = [full[place][begins:] for place in group]
        shorter = [f"{full[group[0]][: limit // 3]}…{_cut(end, 2 * limit // 3)}" for end in ends]
        are_distinct = len(set(shorter)) == len(group)
        for place, text in zip(group, shorter, strict=True):
            cut[place] = text if are_distinct else full[place]
    return cut


def _cut(name: str, limit: int) -> str:
    """A name cut in the middle, where long names differ least."""
    if len(name) <= limit:
        return name
    half = (limit - 1) // 2
    return f"{name[:half]}…{name[len(name) - (limit - 1 - half) :]}"


def svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).strip()
    return re.sub(r"(?<=: )#[0-9a-f]{6}(?=[;\"])", _themed, text)


def _themed(match: re.Match[str]) -> str:
    name = _THEMED.get(match[0])
    return f"var(--figure-{name}, {match[0]})" if name else match[0]
