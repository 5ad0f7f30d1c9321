"""Rules without a gate: lossless speculation and the two single models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from easd.core.signals import residual
from easd.core.step import Judgement, Models, NeedsRaw, Step


def drafted(probs: Tensor, step: Step) -> Tensor:
    """Probability of each draft token; [B, K+1, V] -> [B, K]."""
    tokens = step.draft_tokens[..., None]
    return probs[:, : tokens.shape[1]].gather(-1, tokens)[..., 0]


def acceptance(wanted: Tensor, step: Step) -> Tensor:
    """min(1, wanted / draft_probs(x)) for draft tokens x that should have probability `wanted`."""
    proposed = drafted(step.draft_probs, step)
    return (wanted / proposed.clamp_min(torch.finfo(proposed.dtype).tiny)).clamp_max(1.0)


def redrawn(step: Step, at: Tensor, lenience: float = 1.0) -> Tensor:
    """What speculative sampling against l q draws from at positions `at` [B]; [B, V]."""
    row = step.row(at)
    refused = ~step.is_bonus(at)[:, None]
    return residual(row.target_probs[:, 0], lenience * row.draft_probs[:, 0] * refused)


class Ungated:
    """Rules that look at nothing but the sampling distributions of drafted positions."""

    __slots__ = ()

    @property
    def evaluates_bonus(self) -> bool:
        return False

    @property
    def needs_raw(self) -> NeedsRaw:
        return "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculative(Ungated):
    """Lossless speculative sampling (arXiv:2211.17192, Alg. 1); its law is the target's."""

    models: ClassVar[Models] = "both"

    def judge(self, step: Step) -> Judgement:
        accept_prob = acceptance(drafted(step.target_probs, step), step)
        return Judgement(
            accept_prob=accept_prob, penalty_prob=torch.zeros_like(accept_prob), signals={}
        )

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        return redrawn(step, at)

    def law(self, step: Step) -> Tensor:
        return step.target_probs


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOnly(Ungated):
    """The target alone, no drafting: the baseline of every speed and quality comparison."""

    models: ClassVar[Models] = "target"

    def judge(self, step: Step) -> Judgement:
        never = torch.zeros_like(step.draft_tokens, dtype=step.target_probs.dtype)
        return Judgement(accept_prob=never, penalty_prob=never, signals={})

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        return step.row(at).target_probs[:, 0]

    def law(self, step: Step) -> Tensor:
        return step.target_probs


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOnly(Ungated):
    """The draft alone: every proposal is kept. Where the draft was not evaluated, the target's."""

    models: ClassVar[Models] = "draft"

    def judge(self, step: Step) -> Judgement:
        always = torch.ones_like(step.draft_tokens, dtype=step.target_probs.dtype)
        return Judgement(accept_prob=always, penalty_prob=torch.zeros_like(always), signals={})

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        return self.law(step.row(at))[:, 0]

    def law(self, step: Step) -> Tensor:
        evaluated = step.draft_probs.amax(-1, keepdim=True) > 0
        return torch.where(evaluated, step.draft_probs, step.target_probs)
