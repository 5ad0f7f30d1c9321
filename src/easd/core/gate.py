"""The entropy gate as a value without torch, for tensors, NumPy arrays and table columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Annotated, Any, Literal

from easd.errors import RuleError, shown
from easd.fields import Within, check_fields

Condition = Literal["draft_entropy", "target_entropy", "overlap"]
ALL_CONDITIONS: tuple[Condition, ...] = ("draft_entropy", "target_entropy", "overlap")
SIGNALS = ("draft_entropy", "target_entropy", "shared_top")
MOST_TOP_N = 1024

Nats = Annotated[float, Within(0, math.inf, "not an entropy", unit="nats")]
Share = Annotated[float, Within(0, 1, "not a share")]
TopN = Annotated[int, Within(1, MOST_TOP_N, "no number of tokens")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Open where both models are uncertain and agree on their most probable tokens.

    Attributes:
        tau_h: entropy threshold in nats, exceeded by both models; infinity never opens the gate.
        tau_o: overlap threshold in [0, 1]: the share of the `top_n` most probable tokens that both
            models must have in common, compared as a count with `>=`.
        top_n: number of top tokens whose overlap is counted.
        conditions: which of the three conditions are asked.
    """

    tau_h: Nats = 1.5
    tau_o: Share = 0.8
    top_n: TopN = 5
    conditions: tuple[Condition, ...] = ALL_CONDITIONS

    def __post_init__(self) -> None:
        check_fields(self, RuleError)
        if not self.conditions:
            raise RuleError(
                "conditions = () would penalise every token; name at least one of "
                + ", ".join(ALL_CONDITIONS)
            )
        if len(set(self.conditions)) < len(self.conditions):
            raise RuleError(
                f"conditions = {shown(self.conditions)} names one twice; name each at most once"
            )

    @property
    def required_shared(self) -> int:
        """The smallest number of shared top tokens that meets `tau_o`."""
        # Rounded: in binary, 0.28 * 25 is more than 7.
        return math.ceil(round(self.tau_o * self.top_n, 9))

    def holds(self, condition: Condition, signal: Any) -> Any:
        """Where `condition` holds, given its signal."""
        return signal >= self.required_shared if condition == "overlap" else signal > self.tau_h

    def met(self, signals: Mapping[str, Any]) -> dict[Condition, Any]:
        """Where each condition holds, asked or not.

        Args:
            signals: `draft_entropy` and `target_entropy` in nats, `shared_top` as a count of
                tokens; arrays of one shape.
        """
        names = zip(ALL_CONDITIONS, SIGNALS, strict=True)
        return {condition: self.holds(condition, signals[signal]) for condition, signal in names}

    def opens(self, signals: Mapping[str, Any]) -> Any:
        """Where the gate is open; booleans shaped like the signals."""
        met = self.met(signals)
        return reduce(and_, (met[condition] for condition in self.conditions))
