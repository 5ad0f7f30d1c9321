"""How fast servers answered, and what they tell of their drafting."""

from __future__ import annotations

import pandas as pd

from easd.report.metrics.frames import Frames, cells
from easd.report.metrics.intervals import share_of
from easd.report.metrics.speed import drafting, speed

_SPEED = ("batch", "units", "tokens_per_second", "improvement")
_DRAFTING = ("acceptance", "utilisation", "block_efficiency")


def serving(frames: Frames) -> pd.DataFrame:
    """Throughput and waiting times of systems on servers, and drafting where a server tells it.

    Columns: task, system, batch, units, tokens_per_second and improvement with their intervals,
    request_p50, request_p95, acceptance, utilisation, block_efficiency and penalty_rate with their
    intervals. Empty where no server decoded.
    """
    if not frames.is_remote:
        return pd.DataFrame()
    keys = ["task", "system"]
    times = pd.DataFrame(
        {
            "task": task,
            "system": system,
            "request_p50": cell["seconds"].quantile(0.5),
            "request_p95": cell["seconds"].quantile(0.95),
        }
        for task, system, cell in cells(frames.samples)
    )
    penalties = pd.DataFrame(
        {
            "task": task,
            "system": system,
            **share_of("penalty_rate", cell["penalised"], cell["examined"]),
        }
        for task, system, cell in cells(frames.by_problem)
    )
    return (
        _with_intervals(speed(frames), _SPEED)
        .merge(times, on=keys)
        .merge(_with_intervals(drafting(frames), _DRAFTING), on=keys)
        .merge(penalties, on=keys)
    )


def _with_intervals(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    wanted = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    return table[["task", "system", *(name for name in wanted if name in table)]]
