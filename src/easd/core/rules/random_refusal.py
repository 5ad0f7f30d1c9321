"""Refusal at random, the control of EASD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.rules.base import Probability, Rule
from easd.core.rules.refusal import Refusing
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomRefusal(Refusing):
    """Penalises each draft token with probability `rate`, to measure the cost of refusing alone.

    Attributes:
        rate: probability that the gate is open, at any position.
    """

    name = "random-refusal"

    rate: Probability = 0.02

    @classmethod
    def example(cls) -> Rule:
        return cls(rate=0.3)

    def measure(self, step: Step) -> Mapping[str, Tensor]:
        return {"gate": torch.full_like(step.target_probs[..., 0], self.rate)}
