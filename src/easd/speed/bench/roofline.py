"""Compares measured forwards and steps with the machine's roofline, the least possible time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from easd.runs.schema import PARTS
from easd.speed.plan import CostModel, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """One forward or one step of a whole batch.

    Attributes:
        what: which forward or step.
        gigabytes: memory read: weights once, keys and values per text.
        gigaflops: arithmetic of products and attention.
        least_ms: the longer of reading and computing, at the measured rates.
        forecast_ms: prediction of `easd.speed.plan`.
        taken_ms: measured.
    """

    what: str
    gigabytes: float
    gigaflops: float
    least_ms: float
    forecast_ms: float
    taken_ms: float


def rooflines(timings: pd.DataFrame, costs: CostModel, batch: int, context: int) -> list[Roofline]:
    """Returns forwards and steps of the target alone and of each speculative system in a cell.

    Args:
        timings: rows of the cell.
        costs: of the pair on the measured machine.
        batch: batch size.
        context: tokens per text, averaged over the run.
    """
    found = []
    for name, rows in timings.groupby("system", sort=False):
        total = rows.sum(numeric_only=True)
        alone = name == "target"
        if not total["full"] or not (alone or str(name).startswith("speculative")):
            continue
        gamma = round(total["full_proposed"] / total["full"])
        scoring = _forward(costs, costs.target, gamma + 1, batch, context)
        label = f"target, {gamma + 1} token{'s' * (gamma > 0)}"
        found.append(
            replace(scoring, what=label, taken_ms=1000 * total["full_target"] / total["full"])
        )
        whole = scoring
        if not alone:
            assert costs.draft is not None
            drafting = _forward(costs, costs.draft, 1, batch, context)
            drafting = replace(
                drafting,
                what="draft, 1 token",
                forecast_ms=1000 * costs.draft_seconds(batch, context),
                taken_ms=1000 * total["full_draft"] / total["full_proposed"],
            )
            found.append(drafting)
            whole = _sum(scoring, drafting, gamma)
        seconds = sum(total[f"{part}_s"] for part in PARTS if part != "prefill")
        found.append(
            replace(
                whole,
                what=f"step of {name}",
                forecast_ms=1000 * costs.step_seconds(batch, gamma, context),
                taken_ms=1000 * seconds / total["forwards"],
            )
        )
    return found


def _forward(costs: CostModel, shape: Shape, tokens: int, batch: int, context: int) -> Roofline:
    rows = batch * tokens
    size = (shape.products + batch * context * shape.cached) * shape.width
    operations = rows * (2 * shape.products + context * shape.attended)
    on = costs.hardware
    return Roofline(
        what="",
        gigabytes=size / 1e9,
        gigaflops=operations / 1e9,
        least_ms=1000 * max(on.read_seconds(size), on.compute_seconds(operations)),
        forecast_ms=1000 * costs.forward_seconds(shape, batch, tokens, context),
        taken_ms=0.0,
    )


def _sum(scoring: Roofline, drafting: Roofline, gamma: int) -> Roofline:
    return replace(
        scoring,
        gigabytes=scoring.gigabytes + gamma * drafting.gigabytes,
        gigaflops=scoring.gigaflops + gamma * drafting.gigaflops,
        least_ms=scoring.least_ms + gamma * drafting.least_ms,
    )
