"""Speculative cascades: emits the draft's distribution where it is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from easd.core.gate import Share
from easd.core.rules.base import Rule
from easd.core.step import Step

Deferral = Literal["chow", "diff", "opt", "token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade(Rule):
    """Emits the draft's distribution where it is good enough, and defers to the target elsewhere.

    The law is q + d (p - q), where d is 1 where the draft defers:

        chow:  max q < 1 - alpha
        diff:  max q < max p - alpha
        opt:   max q < max p - alpha TV(p, q), with TV the total variation distance

    `token` decides token by token: with s(v) = 1 where p(v) < (1 - alpha) max p, the law is
    q(v) (1 - s(v)) + p(v) (sum of s q). The bonus token is the target's. Greedy rows decide by
    raw probabilities.

    Attributes:
        deferral: which of the four deferral rules.
        alpha: tolerance in [0, 1]; larger values keep more of the draft.
    """

    name = "cascade"
    source = "arXiv:2405.19261"
    needs_raw = "greedy"

    deferral: Deferral = "opt"
    alpha: Share = 0.2

    def law(self, step: Step) -> Tensor:
        draft, target = step.draft_probs, step.target_probs
        draft_view, target_view = step.opinions()
        draft_best, target_best = (v.amax(-1, keepdim=True) for v in (draft_view, target_view))
        if self.deferral == "token":
            poor = target_view < (1 - self.alpha) * target_best
            law = draft * ~poor + target * (draft * poor).sum(-1, keepdim=True)
        else:
            if self.deferral == "chow":
                defers = draft_best < 1 - self.alpha
            elif self.deferral == "diff":
                defers = draft_best < target_best - self.alpha
            else:
                distance = (target_view - draft_view).clamp_min(0).sum(-1, keepdim=True)
                defers = draft_best < target_best - self.alpha * distance
            law = torch.where(defers, target, draft)
        return torch.where(step.has_draft()[..., None], law, target)
