"""Typical acceptance, as in Medusa."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.gate import Share
from easd.core.rules.base import Rule
from easd.core.signals import entropy, most_probable
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalAcceptance(Rule):
    """Keeps a draft token x if p(x) > min(epsilon, delta exp(-H(p))), else emits the target's best.

    The bonus token is drawn from the target.

    Attributes:
        epsilon: probability that always suffices.
        delta: share of exp(-entropy) that suffices where the target is unsure.
    """

    name = "typical-acceptance"
    source = "arXiv:2401.10774, section 2.3.1"

    epsilon: Share = 0.09
    delta: Share = 0.3

    def law(self, step: Step) -> Tensor:
        unsure = self.delta * torch.exp(-entropy(step.target_probs))
        typical = step.target_probs > unsure.clamp_max(self.epsilon)[..., None]
        refused = (step.draft_probs * ~typical).sum(-1, keepdim=True)
        law = step.draft_probs * typical + refused * most_probable(step.target_probs)
        return torch.where(step.has_draft()[..., None], law, step.target_probs)
