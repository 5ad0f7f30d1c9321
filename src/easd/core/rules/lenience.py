"""Speculative sampling that accepts more readily."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.rules.base import PositiveShare, Rule
from easd.core.signals import residual
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Lenient(Rule):
    """Speculates against l q instead of q, so no token becomes more probable than p/l.

    A draft token x is kept with min(1, p(x) / (l q(x))), else replaced from norm(max(0, p - l q)).

    Attributes:
        lenience: l in (0, 1]; 1 is lossless.
    """

    name = "lenience"
    source = "arXiv:2211.17192, appendix A.5"

    lenience: PositiveShare = 0.5

    @property
    def lossless(self) -> bool:
        return self.lenience == 1

    def law(self, step: Step) -> Tensor:
        lenient = lenient_law(step.draft_probs, step.target_probs, self.lenience)
        return torch.where(step.has_draft()[..., None], lenient, step.target_probs)


def lenient_law(draft_probs: Tensor, target_probs: Tensor, lenience: float) -> Tensor:
    """Output distribution [..., V] of speculative sampling against l q at drafted positions."""
    kept = torch.minimum(draft_probs, target_probs / lenience)
    missing = (draft_probs - kept).sum(-1, keepdim=True)
    return kept + missing * residual(target_probs, lenience * draft_probs)
