"""Controls that refuse without looking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.rules.gated import GatedRule
from easd.core.step import Step
from easd.errors import RuleError


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomRefusal(GatedRule):
    """Penalises each draft token with probability `rate`: what refusing costs by itself."""

    rate: float = 0.02

    def __post_init__(self) -> None:
        GatedRule.__post_init__(self)
        if not 0 <= self.rate <= 1:
            raise RuleError(f"rate = {self.rate} is not a probability; use a number in [0, 1]")

    def signals(self, step: Step) -> Mapping[str, Tensor]:
        return {"gate": torch.full_like(step.target_probs[..., 0], self.rate)}
