"""How many draft tokens stand, by their place in the block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from easd.errors import ConfigError, TraceError
from easd.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """`rates[i]`: the share of i-th draft tokens kept where all before them were kept.

    Beyond the last place that was seen, its rate goes on.
    """

    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        for rate in self.rates:
            if not 0 <= rate <= 1:
                raise ConfigError(f"an acceptance rate of {rate} is no share; use one in [0, 1]")

    @classmethod
    def of(cls, trace: Run) -> Acceptance:
        """The rates of a trace, under whatever rule it was decoded with.

        Raises:
            TraceError: Nothing was drafted in it.
        """
        outcome = trace.tokens["outcome"].cast(pa.string()).to_numpy(zero_copy_only=False)
        blocks = np.stack([trace.tokens[name].to_numpy() for name in ("sample", "step")], 1)
        drafted = np.isin(outcome, ("accepted", "rejected", "penalised", "discarded"))
        if not drafted.any():
            raise TraceError("nothing was drafted in this trace; record one with a draft")
        _, block = np.unique(blocks[drafted], axis=0, return_inverse=True)
        kept = np.bincount(block, outcome[drafted] == "accepted").astype(int)
        examined = kept + np.bincount(
            block, np.isin(outcome[drafted], ("rejected", "penalised"))
        ).astype(int)
        places = range(int(examined.max()))
        return cls(rates=tuple(float((kept > i)[examined > i].mean()) for i in places))

    def emitted(self, gamma: int) -> float:
        """Expected tokens of a step with `gamma` drafted tokens, the last one drawn included."""
        rates = [self.rates[min(i, len(self.rates) - 1)] for i in range(gamma)]
        return 1 + float(np.cumprod(rates).sum()) if gamma else 1.0
