"""The gate's three conditions on signals of any kind. No torch: tables are judged by them, too."""

from __future__ import annotations

import math
from typing import Any, Literal

Condition = Literal["draft_entropy", "target_entropy", "overlap"]
ALL_CONDITIONS: tuple[Condition, ...] = ("draft_entropy", "target_entropy", "overlap")


def conditions_met(
    draft_entropy: Any, target_entropy: Any, shared_top: Any, *, tau_h: float, least_shared: int
) -> dict[Condition, Any]:
    """Which conditions hold where, asked or not; tensors or arrays in, the same of bools out.

    Args:
        draft_entropy, target_entropy: nats.
        shared_top: how many top tokens both have.
        tau_h: in nats.
        least_shared: see `required_shared`.
    """
    limits: Any = {"tau_h": tau_h, "least_shared": least_shared}
    return {
        "draft_entropy": condition_met("draft_entropy", draft_entropy, **limits),
        "target_entropy": condition_met("target_entropy", target_entropy, **limits),
        "overlap": condition_met("overlap", shared_top, **limits),
    }


def condition_met(condition: Condition, signal: Any, *, tau_h: float, least_shared: int) -> Any:
    """Where a condition holds, given the signal that it asks for."""
    return signal >= least_shared if condition == "overlap" else signal > tau_h


def required_shared(tau_o: float, top_n: int) -> int:
    """The least number of shared top tokens that meets `tau_o`; 4/5 > 0.8 fails in binary."""
    return math.ceil(round(tau_o * top_n, 9))
