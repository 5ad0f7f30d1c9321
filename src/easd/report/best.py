"""The first sentences of a report: whether EASD or any other system helps, and at what speed."""

from __future__ import annotations

import math
from typing import Any

from easd.report.metrics import POOLED, Frames
from easd.report.metrics.accuracy import BETTER, WORSE
from easd.report.metrics.frames import Tables, records
from easd.report.page import number, p_words

_NOTE = (
    "The target's best temperature is chosen for each half of the problems on the other half; "
    "Holm's adjustment is over all systems compared with it."
)


def answers(frames: Frames, tables: Tables) -> list[str]:
    """Sentences about differences to the target at its best temperature, if there are several."""
    table = tables["differences_to_best"]
    if table.empty:
        return []
    found = records(table)
    pooled = [row for row in found if row["task"] == POOLED] or found
    task = pooled[0]["task"]
    rows = [row for row in pooled if row["task"] == task]
    base = f"the target at its best temperature ({rows[0]['chosen']})"
    easd = [row for row in rows if frames.kind(row["system"]) == "easd"]
    lines = []
    if easd:
        best = max(easd, key=_gain)
        verbs = {BETTER: "helps", WORSE: "hurts"}
        verb = verbs.get(best["finding"], "shows no significant difference")
        lines.append(
            f"Does EASD help? Against {base}, {best['system']} {verb} on {task}: {_told(best)}."
        )
    better = [row for row in rows if row["finding"] == BETTER]
    if better:
        best = max(better, key=_gain)
        lines.append(
            f"Does anything? {best['system']} beats {base} on {task}: {_told(best)}"
            f"{_speed(frames, tables, best)}."
        )
    else:
        nearest = max(rows, key=_gain)
        lines.append(
            f"Does anything? No system is significantly better than {base} on {task}; the highest "
            f"is {nearest['system']}: {_told(nearest)}."
        )
    return [*lines, _NOTE]


def _speed(frames: Frames, tables: Tables, row: dict[str, Any]) -> str:
    """A system's tokens per forward, and those of lossless speculation."""
    table = tables.get("drafting")
    if table is None or "block_efficiency" not in table:
        return ""
    by_system = table[table["task"] == row["task"]].set_index("system")["block_efficiency"]
    efficiency = by_system.get(row["system"], math.nan)
    if math.isnan(efficiency):
        return ""
    clause = f", at {efficiency:.2f} tokens a forward"
    lossless = frames.first_of("speculative")
    if lossless not in by_system.index:
        return clause
    return f"{clause} ({lossless}: {by_system[lossless]:.2f})"


def _gain(row: dict[str, Any]) -> float:
    return row["difference"]


def _told(row: dict[str, Any]) -> str:
    value, low, high = (number(row[f"difference{end}"], "points") for end in ("", "_low", "_high"))
    interval = f"95 % interval {low} to {high}"
    return f"{value} points ({interval}, {p_words(row['p_holm'])}, Holm-adjusted)"
