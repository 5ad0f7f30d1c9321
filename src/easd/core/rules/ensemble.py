"""A mixture of both models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.rules.base import PositiveShare, Rule
from easd.core.signals import most_probable
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble(Rule):
    """Draws from the mixture w p + (1 - w) q.

    Greedy rows emit the mixture's best token. The bonus token is the target's.

    Attributes:
        weight: w in (0, 1], the target's share; 1 is lossless.
    """

    name = "ensemble"
    source = "transformers, assistant_ensemble_weight"
    needs_raw = "greedy"

    weight: PositiveShare = 0.5

    @property
    def lossless(self) -> bool:
        return self.weight == 1

    def law(self, step: Step) -> Tensor:
        mixture = torch.lerp(step.draft_probs, step.target_probs, self.weight)
        if step.greedy is not None:
            best = most_probable(torch.lerp(*step.raw(), self.weight))
            mixture = torch.where(step.greedy[:, None, None], best, mixture)
        return torch.where(step.has_draft()[..., None], mixture, step.target_probs)
