"""What a step has to move and to compute, what this machine could do it in, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from easd.runs.schema import PARTS
from easd.speed.plan import Machine, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """One forward, or one step, of a whole batch.

    Attributes:
        gigabytes: weights once, and the keys and values of every text.
        gigaflops: products and attention.
        least_ms: the larger of what the bytes and what the arithmetic take at the rates measured.
        forecast_ms: by `easd.speed.plan`.
        taken_ms: as timed.
    """

    what: str
    gigabytes: float
    gigaflops: float
    least_ms: float
    forecast_ms: float
    taken_ms: float


def floors(timings: pd.DataFrame, machine: Machine, batch: int, context: int) -> list[Floor]:
    """Forwards and whole steps of a cell: of the target alone and of each speculative system.

    Args:
        timings: of that cell.
        machine: measured, with the pair's shapes.
        batch: texts at once.
        context: tokens of a text, on average over the run.
    """
    found = []
    for name, rows in timings.groupby("system", sort=False):
        total = rows.sum(numeric_only=True)
        alone = name == "target"
        if not total["full"] or not (alone or str(name).startswith("speculative")):
            continue
        gamma = round(total["full_proposed"] / total["full"])
        scoring = _forward(machine, machine.target, gamma + 1, batch, context)
        label = f"target, {gamma + 1} token{'s' * (gamma > 0)}"
        found.append(
            replace(scoring, what=label, taken_ms=1000 * total["full_target"] / total["full"])
        )
        whole = scoring
        if not alone:
            assert machine.draft is not None
            drafting = _forward(machine, machine.draft, 1, batch, context)
            drafting = replace(
                drafting,
                what="draft, 1 token",
                forecast_ms=1000 * machine.draft_seconds(batch, context),
                taken_ms=1000 * total["full_draft"] / total["full_proposed"],
            )
            found.append(drafting)
            whole = _sum(scoring, drafting, gamma)
        seconds = sum(total[f"{part}_s"] for part in PARTS if part != "prefill")
        found.append(
            replace(
                whole,
                what=f"step of {name}",
                forecast_ms=1000 * machine.step_seconds(batch, gamma, context),
                taken_ms=1000 * seconds / total["forwards"],
            )
        )
    return found


def _forward(machine: Machine, shape: Shape, tokens: int, batch: int, context: int) -> Floor:
    rows = batch * tokens
    size = (shape.products + batch * context * shape.cached) * shape.width
    operations = rows * (2 * shape.products + context * shape.attended)
    on = machine.hardware
    return Floor(
        what="",
        gigabytes=size / 1e9,
        gigaflops=operations / 1e9,
        least_ms=1000 * max(on.read_seconds(size), on.compute_seconds(operations)),
        forecast_ms=1000 * machine.forward_seconds(shape, batch, tokens, context),
        taken_ms=0.0,
    )


def _sum(scoring: Floor, drafting: Floor, gamma: int) -> Floor:
    return replace(
        scoring,
        gigabytes=scoring.gigabytes + gamma * drafting.gigabytes,
        gigaflops=scoring.gigaflops + gamma * drafting.gigaflops,
        least_ms=scoring.least_ms + gamma * drafting.least_ms,
    )
