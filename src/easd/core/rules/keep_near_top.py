"""Keeps draft tokens that are nearly the most probable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.gate import Share
from easd.core.rules.base import Probability, Rule
from easd.core.rules.pool import Pooled, Power
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepNearTop(Pooled):
    """Keeps the draft token if it is nearly the best, and else emits the best.

    With pi the normalised pool p^a q^b, x is kept if max pi - pi(x) <= mu. By default pi is the
    target's distribution.

    Attributes:
        mu: how far below the best token a draft token may be, in probability.
        a: power of the target's probability.
        b: power of the draft's probability.
    """

    name = "keep-near-top"

    plausible: Share = 0.0
    mu: Probability = 0.3
    a: Power = 1.0
    b: Power = 0.0

    @classmethod
    def example(cls) -> Rule:
        return cls(tau_h=0.9, tau_o=0.6, mu=0.1)

    @property
    def powers(self) -> tuple[float, float]:
        return self.a, self.b

    def open_law(self, step: Step) -> Tensor:
        pool = self.scores(step).softmax(-1)
        top, best = pool.max(-1, keepdim=True)
        near = top - pool <= self.mu
        evaluated = step.draft_probs.amax(-1, keepdim=True) > 0
        refused = (step.draft_probs * ~near).sum(-1, keepdim=True)
        law = (step.draft_probs * near).scatter_add(-1, best, refused)
        return torch.where(evaluated, law, pool)
