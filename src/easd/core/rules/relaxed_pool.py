"""The pool at the gate and lenience elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.gate import Share
from easd.core.rules.base import PositiveShare, Rule
from easd.core.rules.keep_near_top import KeepNearTop
from easd.core.rules.lenience import lenient_law
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaxedPool(KeepNearTop):
    """Keeps draft tokens near the pool's best at the gate, and is lenient elsewhere for speed.

    Attributes:
        lenience: l in (0, 1]; where the gate is closed, speculate against l q instead of q, as the
            rule `lenience` does. 1 is lossless there.
    """

    name = "relaxed-pool"

    plausible: Share = 0.1
    lenience: PositiveShare = 0.8

    @classmethod
    def example(cls) -> Rule:
        return cls(tau_h=0.9, tau_o=0.6, lenience=0.4)

    def closed_law(self, step: Step) -> Tensor:
        lenient = lenient_law(step.draft_probs, step.target_probs, self.lenience)
        return torch.where(step.has_draft()[..., None], lenient, step.target_probs)
