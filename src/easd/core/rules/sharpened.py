"""The target at another temperature, at the gate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.rules.gated import EntropyGated
from easd.core.rules.pool import MOST_POWER
from easd.core.signals import log, most_probable
from easd.core.step import Step
from easd.errors import RuleError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpened(EntropyGated):
    """Draws from the target sharpened to p^power, as at temperature 1/power.

    Attributes:
        power: more than 1 sharpens, less flattens.
    """

    name = "sharpened"

    power: float = 2.0

    def __post_init__(self) -> None:
        EntropyGated.__post_init__(self)
        if not 0 < self.power <= MOST_POWER:
            raise RuleError(
                f"power = {self.power} is no sensible power; use a number in (0, {MOST_POWER}]"
            )

    def open_law(self, step: Step) -> Tensor:
        scores = self.power * log(step.target_probs)
        return scores.masked_fill(step.target_probs <= 0, -torch.inf).softmax(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy(EntropyGated):
    """Emits the target's most probable token."""

    name = "greedy-p"

    def open_law(self, step: Step) -> Tensor:
        return most_probable(step.target_probs)
