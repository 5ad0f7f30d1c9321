"""Tokens per second and their price, by batch size and draft length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from easd.engine.auto_gamma import expected_tokens
from easd.errors import ConfigError, TraceError
from easd.runs import Run
from easd.speed.plan.cost_model import CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Acceptance rates by position in the block; positions past the end have the last rate."""

    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        for rate in self.rates:
            if not 0 <= rate <= 1:
                raise ConfigError(f"an acceptance rate of {rate} is no share; use one in [0, 1]")

    @classmethod
    def of(cls, trace: Run) -> Acceptance:
        """Returns the rates of a trace, whatever its rule.

        Raises:
            TraceError: Nothing was drafted in it.
        """
        outcome = trace.tokens["outcome"].cast(pa.string()).to_numpy(zero_copy_only=False)
        blocks = np.stack([trace.tokens[name].to_numpy() for name in ("sample", "step")], 1)
        drafted = np.isin(outcome, ("accepted", "rejected", "penalised", "discarded"))
        if not drafted.any():
            raise TraceError("nothing was drafted in this trace; record one with a draft")
        _, block = np.unique(blocks[drafted], axis=0, return_inverse=True)
        accepted = np.bincount(block, outcome[drafted] == "accepted").astype(int)
        examined = accepted + np.bincount(
            block, np.isin(outcome[drafted], ("rejected", "penalised"))
        ).astype(int)
        positions = range(int(examined.max()))
        return cls(rates=tuple(float((accepted > i)[examined > i].mean()) for i in positions))

    def emitted(self, gamma: int) -> float:
        """Returns the expected tokens per step, replacement or bonus token included."""
        return expected_tokens(self.rates[min(i, len(self.rates) - 1)] for i in range(gamma))[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Predicted throughput at one batch size and draft length.

    Attributes:
        texts: batch size.
        gamma: draft tokens per block; 0 for the target alone.
        tokens_per_second: of the whole batch.
        improvement: over the target alone at the same batch size.
        price: of a million tokens; None where the hardware has no price.
        fits: whether it fits in memory.
    """

    texts: int
    gamma: int
    tokens_per_second: float
    improvement: float
    price: float | None
    fits: bool


def plan(
    costs: CostModel,
    acceptance: Acceptance,
    *,
    texts: Sequence[int],
    gammas: Sequence[int],
    context: int,
) -> list[Forecast]:
    """Returns a forecast per batch size and gamma, gamma 0 (the target alone) first in each."""
    forecasts = []
    for count in texts:
        alone = count / costs.step_seconds(count, 0, context)
        for gamma in (0, *gammas):
            seconds = costs.step_seconds(count, gamma, context)
            speed = count * acceptance.emitted(gamma) / seconds
            forecasts.append(
                Forecast(
                    texts=count,
                    gamma=gamma,
                    tokens_per_second=speed,
                    improvement=speed / alone,
                    price=_price(costs, speed),
                    fits=count <= costs.texts_that_fit(gamma, context),
                )
            )
    return forecasts


def _price(costs: CostModel, tokens_per_second: float) -> float | None:
    hardware = costs.hardware
    if hardware.price is None:
        return None
    return hardware.price * hardware.devices / 3600 / tokens_per_second * 1e6
