"""Margin-aware verification: the target's second choice is kept where it is a close second."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.gate import Share
from easd.core.rules.base import Rule
from easd.core.signals import top_tokens
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Mars(Rule):
    """Keeps the target's best token, and its second best where that is nearly as probable.

    Every other draft token is replaced by the best one. The paper tests raw logits, z2 / z1 >
    theta, a ratio that changes when a constant is added to all logits. This rule tests
    probabilities, p2 / p1 > `least_ratio` (a margin z1 - z2 of less than -log `least_ratio`), so
    the paper's theta does not carry over. The bonus token is the target's. Greedy rows decide by
    raw probabilities.

    Attributes:
        least_ratio: least probability of the second best token, as a share of the best.
    """

    name = "mars"
    source = "arXiv:2601.15498"
    needs_raw = "greedy"

    least_ratio: Share = 0.5

    def law(self, step: Step) -> Tensor:
        values, best = top_tokens(step.opinions()[1], 2)
        close = (values > 0) & (values > self.least_ratio * values[..., :1])
        close[..., 0] = True
        mass = step.draft_probs.gather(-1, best)
        kept = mass * close
        kept[..., 0] += step.draft_probs.scatter(-1, best, mass * ~close).sum(-1)
        law = torch.zeros_like(step.target_probs).scatter(-1, best, kept)
        return torch.where(step.has_draft()[..., None], law, step.target_probs)
