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
    return {
        "draft_entropy": draft_entropy > tau_h,
        "target_entropy": target_entropy > tau_h,
        "overlap": shared_top >= least_shared,
    }


def required_shared(tau_o: float, top_n: int) -> int:
    """The least number of shared top tokens that meets `tau_o`; 4/5 > 0.8 fails in binary."""
    return math.ceil(round(tau_o * top_n, 9))
