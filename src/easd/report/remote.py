"""The section on servers: what can be said of texts that were written elsewhere."""

from __future__ import annotations

from typing import Any

import pandas as pd

from easd.report.cells import number
from easd.report.metrics import POOLED, Frames
from easd.report.metrics.frames import records
from easd.report.page import Section, tables_by_task

_SERVING = (
    "system",
    "batch",
    "units",
    "tokens_per_second",
    "improvement",
    "request_p50",
    "request_p95",
    "acceptance",
    "utilisation",
    "block_efficiency",
    "penalty_rate",
)


def served(frames: Frames, table: pd.DataFrame) -> Section:
    """How fast the servers answered, and what they do not tell."""
    pooled = table[table["task"] == POOLED]
    sentences = [_speed(row) for row in records(pooled if len(pooled) else table)]
    sentences.append(
        "Times are of requests from this machine, as the servers and the way to them were at that "
        "time; waiting for a request that was sent again counts."
    )
    sentences.append(
        "Each text had noise of its own: two systems' texts of one problem share the problem and "
        "no random numbers, unless their server draws alike from equal seeds."
    )
    sentences.append(
        "Servers tell no tokens and no entropies; firing rates, thresholds, refused tokens and "
        "operations are left out."
    )
    return Section(
        name="serving",
        title="Servers",
        sentences=tuple(sentences),
        tables=tables_by_task(table, _SERVING),
    )


def _speed(row: dict[str, Any]) -> str:
    tokens = row["tokens_per_second"]
    rate = f"{number(tokens, 'number')} tokens a second with " if tokens == tokens else ""
    return (
        f"{row['system']}: {rate}{row['batch']} requests under way, half of them answered within "
        f"{number(row['request_p50'], 'number')} s."
    )
