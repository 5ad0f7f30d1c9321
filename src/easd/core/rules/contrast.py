"""Contrastive decoding at the gate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from easd.core.rules.gated import best_or_drawn
from easd.core.rules.pool import Pooled
from easd.core.step import Step
from easd.errors import RuleError


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast(Pooled):
    """Draws from p (p/q)^beta over plausible tokens: what the target knows beyond the draft.

    Contrastive decoding with its plausibility mask, at the gate only.

    Attributes:
        beta: weight of the contrast; 0 is the target, masked.
    """

    name = "contrast"
    source = "arXiv:2210.15097"

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise RuleError(f"beta = {self.beta} would follow the draft; use 0 or more")
        Pooled.__post_init__(self)

    @property
    def powers(self) -> tuple[float, float]:
        return 1 + self.beta, -self.beta

    def open_law(self, step: Step) -> Tensor:
        return best_or_drawn(step, self.scores(step))
