"""The control that refuses without looking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.couplings import Coupling, Procedure
from easd.core.rules.base import Probability, Rule
from easd.core.rules.gated import GatedRule
from easd.core.rules.refusal import AsPublished, CheckedRefusal, GateOn, Penalise, Redraw, Refusal
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomRefusal(GatedRule):
    """Penalises each draft token with probability `rate`: what refusing costs by itself.

    Attributes:
        rate: probability that the gate is open, at any position.
        redraw: see `easd`.
        penalise: see `easd`.
        gate_on: see `easd`.
    """

    name = "random-refusal"

    rate: Probability = 0.02
    redraw: Redraw = "exclude"
    penalise: Penalise = "drafted"
    gate_on: GateOn = "proposed"

    @property
    def refusal(self) -> Refusal:
        """What happens at an open gate, as a value."""
        return CheckedRefusal(self.redraw, self.penalise, self.gate_on)

    @property
    def lossless(self) -> bool:
        return self.refusal.lossless

    @property
    def default_coupling(self) -> Coupling:
        """As for `easd`, whose control it is."""
        return "published"

    @classmethod
    def example(cls) -> Rule:
        return cls(rate=0.3)

    def published(self) -> Procedure:
        return AsPublished(self, self.refusal)

    def measure(self, step: Step) -> Mapping[str, Tensor]:
        return {"gate": torch.full_like(step.target_probs[..., 0], self.rate)}

    def open_law(self, step: Step) -> Tensor:
        return self.refusal.law(step)

    def open_law_of(self, step: Step, tokens: Tensor) -> Tensor:
        return self.refusal.law(step, tokens)
