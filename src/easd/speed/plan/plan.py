"""Tokens a second and their price, against texts at once and draft length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from easd.speed.plan.acceptance import Acceptance
from easd.speed.plan.steps import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way to serve.

    Attributes:
        texts: decoded at once.
        gamma: draft tokens of a block; 0 for the target alone.
        tokens_per_second: of all texts together.
        improvement: over the target alone with as many texts.
        price: of a million tokens; None where the hardware has no price.
        fits: whether the memory holds it.
    """

    texts: int
    gamma: int
    tokens_per_second: float
    improvement: float
    price: float | None
    fits: bool


def plan(
    machine: Machine,
    acceptance: Acceptance,
    *,
    texts: Sequence[int],
    gammas: Sequence[int],
    context: int,
) -> list[Cell]:
    """Every combination, the target alone (gamma 0) first for each number of texts."""
    cells = []
    for count in texts:
        alone = count / machine.step_seconds(count, 0, context)
        for gamma in (0, *gammas):
            seconds = machine.step_seconds(count, gamma, context)
            speed = count * acceptance.emitted(gamma) / seconds
            cells.append(
                Cell(
                    texts=count,
                    gamma=gamma,
                    tokens_per_second=speed,
                    improvement=speed / alone,
                    price=_price(machine, speed),
                    fits=count <= machine.texts_that_fit(gamma, context),
                )
            )
    return cells


def _price(machine: Machine, tokens_per_second: float) -> float | None:
    hardware = machine.hardware
    if hardware.price is None:
        return None
    return hardware.price * hardware.devices / 3600 / tokens_per_second * 1e6
