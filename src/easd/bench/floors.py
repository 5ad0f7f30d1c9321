"""What a step has to move and to compute, what this machine could do it in, and what it took."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from easd.planning import Machine, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """One forward of a whole batch.

    Attributes:
        gigabytes: weights once, and the keys and values of every text.
        gigaflops: products and attention.
        least_ms: the larger of what the bytes and what the arithmetic take at the rates measured.
        forecast_ms: by `easd.planning`.
        taken_ms: as timed.
    """

    what: str
    gigabytes: float
    gigaflops: float
    least_ms: float
    forecast_ms: float
    taken_ms: float


def floors(timings: pd.DataFrame, machine: Machine, batch: int, context: int) -> list[Floor]:
    """The forwards of a cell: target alone, target over a block, draft.

    Args:
        timings: of that cell.
        machine: measured, with the pair's shapes.
        batch: texts at once.
        context: tokens of a text, on average over the run.
    """
    found = []

    def add(what: str, shape: Shape | None, tokens: int, seconds: float) -> None:
        assert shape is not None
        found.append(_floor(what, machine, shape, tokens, batch, context, 1000 * seconds))

    for name, rows in timings.groupby("system", sort=False):
        total = rows.sum(numeric_only=True)
        if not total["full"]:
            continue
        scoring = total["full_target"] / total["full"]
        if name == "target":
            add("target, 1 token", machine.target, 1, scoring)
        elif str(name).startswith("speculative"):
            tokens = round(total["full_proposed"] / total["full"]) + 1
            add(f"target, {tokens} tokens", machine.target, tokens, scoring)
            drafting = total["full_draft"] / total["full_proposed"]
            add(f"draft, 1 token of {tokens - 1}", machine.draft, 1, drafting)
    return found


def _floor(
    what: str, machine: Machine, shape: Shape, tokens: int, batch: int, context: int, taken: float
) -> Floor:
    rows = batch * tokens
    size = (shape.products + batch * context * shape.cached) * shape.width
    operations = rows * (2 * shape.products + context * shape.attended)
    on = machine.hardware
    return Floor(
        what=what,
        gigabytes=size / 1e9,
        gigaflops=operations / 1e9,
        least_ms=1000 * max(on.read_seconds(size), on.compute_seconds(operations)),
        forecast_ms=1000 * machine.forward_seconds(shape, batch, tokens, context),
        taken_ms=taken,
    )
