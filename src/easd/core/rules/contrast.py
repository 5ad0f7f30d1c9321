"""Contrastive decoding at the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from easd.core.rules.gated import best_or_drawn
from easd.core.rules.pool import MOST_POWER, Pooled
from easd.core.step import Step
from easd.fields import Within


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast(Pooled):
    """Draws from p (p/q)^beta over plausible tokens: what the target knows beyond the draft.

    Contrastive decoding with its plausibility mask, at the gate only.

    Attributes:
        beta: weight of the contrast; 0 is the target, masked.
    """

    name = "contrast"
    source = "arXiv:2210.15097"

    beta: Annotated[float, Within(0, MOST_POWER - 1, "no sensible weight")] = 0.5

    @property
    def powers(self) -> tuple[float, float]:
        return 1 + self.beta, -self.beta

    def open_law(self, step: Step) -> Tensor:
        return best_or_drawn(step, self.scores(step))
