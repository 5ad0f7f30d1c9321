"""Relaxed acceptance of tokens that the target finds nearly as probable as its best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.gate import Share, TopN
from easd.core.rules.base import Rule
from easd.core.signals import residual, top_tokens
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaxedTopK(Rule):
    """Keeps a draft token that is among the target's best, and speculates as usual otherwise.

    Let A be the tokens among the target's `relaxed_top_k` best with p(x) >= max p -
    `relaxed_delta`. x is kept if it is in A, and else replaced from norm(max(0, p - q)), so the law
    is q on A plus the rest of q's mass on that residual. The bonus token is the target's. Greedy
    rows decide by raw probabilities.

    Attributes:
        relaxed_top_k: number of the target's best tokens that may be kept.
        relaxed_delta: how far below the best token they may be, in probability.
    """

    name = "relaxed-top-k"
    source = "TensorRT-LLM, relaxed acceptance of MTP drafts"
    needs_raw = "greedy"

    relaxed_top_k: TopN = 10
    relaxed_delta: Share = 0.6

    @classmethod
    def example(cls) -> Rule:
        return cls(relaxed_top_k=3, relaxed_delta=0.1)

    def law(self, step: Step) -> Tensor:
        target_view = step.opinions()[1]
        values, best = top_tokens(target_view, self.relaxed_top_k)
        kept = (values > 0) & (values >= values[..., :1] - self.relaxed_delta)
        draft, target = step.draft_probs, step.target_probs
        mass = draft.gather(-1, best)
        # Summed rather than subtracted from 1, so that it is exactly 0 where A has all mass.
        rest = draft.scatter(-1, best, mass * ~kept).sum(-1, keepdim=True)
        law = (rest * residual(target, draft)).scatter_add(-1, best, mass * kept)
        return torch.where(step.has_draft()[..., None], law, target)
