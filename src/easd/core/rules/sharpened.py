"""The target at another temperature, at the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from easd.core.rules.gated import EntropyGated
from easd.core.rules.pool import MOST_POWER
from easd.core.signals import log, most_probable
from easd.core.step import Step
from easd.fields import Within


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpened(EntropyGated):
    """Draws from the target sharpened to p^power, as at temperature 1/power.

    Attributes:
        power: more than 1 sharpens, less flattens.
    """

    name = "sharpened"

    power: Annotated[float, Within(0, MOST_POWER, "no sensible power", above=True)] = 2.0

    def open_law(self, step: Step) -> Tensor:
        scores = self.power * log(step.target_probs)
        return scores.masked_fill(step.target_probs <= 0, -torch.inf).softmax(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy(EntropyGated):
    """Emits the target's most probable token."""

    name = "greedy-p"

    def open_law(self, step: Step) -> Tensor:
        return most_probable(step.target_probs)
