"""One of the two models alone: the baselines of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.rules.base import Rule
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOnly(Rule):
    """The target alone, no drafting: the baseline of every speed and quality comparison."""

    name = "target"
    models = "target"

    @property
    def lossless(self) -> bool:
        return True

    def law(self, step: Step) -> Tensor:
        return step.target_probs


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOnly(Rule):
    """The draft alone: every proposal is kept; the target's law where no draft was evaluated."""

    name = "draft"
    models = "draft"

    def law(self, step: Step) -> Tensor:
        evaluated = step.draft_probs.amax(-1, keepdim=True) > 0
        return torch.where(evaluated, step.draft_probs, step.target_probs)
