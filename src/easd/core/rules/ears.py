"""Efficient adaptive rejection sampling: more tolerance where the target is unsure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from easd.core.rules.base import Rule
from easd.core.signals import residual
from easd.core.step import Step
from easd.fields import Within

MOST_BETA = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Ears(Rule):
    """Accepts with min(1, p(x) / q(x) + t), where the tolerance t is beta (1 - max p).

    A refused token is replaced from norm(max(0, p - q)), so the law is min(q, p + t q) plus the
    rest of q's mass on that residual. The bonus token is the target's. Greedy rows are lossless,
    since their target is certain.

    Attributes:
        beta: tolerance where the target is entirely unsure; 0 is lossless.
    """

    name = "ears"
    source = "arXiv:2512.13194"

    beta: Annotated[float, Within(0, MOST_BETA, "no tolerance")] = 0.1

    @classmethod
    def example(cls) -> Rule:
        return cls(beta=0.3)

    @property
    def lossless(self) -> bool:
        return self.beta == 0

    def law(self, step: Step) -> Tensor:
        draft, target = step.draft_probs, step.target_probs
        tolerance = self.beta * (1 - target.amax(-1, keepdim=True)).clamp_min(0)
        kept = torch.minimum(draft, target + tolerance * draft)
        missing = (draft - kept).sum(-1, keepdim=True)
        law = kept + missing * residual(target, draft)
        return torch.where(step.has_draft()[..., None], law, target)
