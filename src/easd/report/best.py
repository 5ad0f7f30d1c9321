"""The first screen of a report: does EASD help, does anything, at what speed, and how sure."""

from __future__ import annotations

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
    """Sentences about differences to the target at its best temperature; none without several."""
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
        verb = {BETTER: "helps", WORSE: "hurts"}.get(best["finding"], "makes no difference shown")
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
    """Its tokens a forward, beside those of lossless speculation."""
    table = tables.get("drafting")
    if table is None or "block_efficiency" not in table:
        return ""
    own = table[table["task"] == row["task"]].set_index("system")["block_efficiency"]
    lossless = next((s for s in own.index if frames.kind(str(s)) == "speculative"), None)
    if row["system"] not in own.index or own[row["system"]] != own[row["system"]]:
        return ""
    told = f", at {own[row['system']]:.2f} tokens a forward"
    return told if lossless is None else f"{told} ({lossless}: {own[lossless]:.2f})"


def _gain(row: dict[str, Any]) -> float:
    return row["difference"]


def _told(row: dict[str, Any]) -> str:
    value, low, high = (number(row[f"difference{end}"], "points") for end in ("", "_low", "_high"))
    interval = f"95 % interval {low} to {high}"
    return f"{value} points ({interval}, {p_words(row['p_holm'])}, Holm-adjusted)"
