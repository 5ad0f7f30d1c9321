"""How a drafted block helps to draw from a rule's law.

A coupling decides which draft tokens are kept and what replaces the first one that is not. It
changes neither the law at a position nor what a rule looks at:

* `maximal`: speculative sampling towards the law (arXiv:2211.17192, Alg. 1, with the law in the
  target's place). Keeps as many draft tokens as any coupling of draft and law can.
* `published`: the procedure that a rule was published with, where it has one.
* `shared`: draft and emitted token of a position are sampled with the same numbers, so the text is
  a function of prompt, seed and law alone (arXiv:2408.07978).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from easd.core.signals import residual
from easd.core.step import Judgement, Step

Coupling = Literal["maximal", "published", "shared"]
COUPLINGS: tuple[Coupling, ...] = ("maximal", "published", "shared")


class Procedure(Protocol):
    """Token by token: keep it with some probability, or replace it and end the block."""

    def judge(self, step: Step) -> Judgement:
        """How probable keeping each draft token is."""
        ...

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        """Distribution [B, V] of the token at positions `at` [B], where the block stopped.

        `at` is the first refused position or the bonus position; `penalised` [B] tells a penalty
        from an ordinary rejection.
        """
        ...


class HasLaw(Protocol):
    """What couplings know of a rule; see `easd.core.rules.Rule`."""

    def signals(self, step: Step) -> Mapping[str, Tensor]: ...
    def law(self, step: Step) -> Tensor: ...
    def law_given(self, step: Step, signals: Mapping[str, Tensor]) -> Tensor: ...
    def law_of(self, step: Step, tokens: Tensor, signals: Mapping[str, Tensor]) -> Tensor: ...
    def published(self) -> Procedure | None: ...


@dataclass(frozen=True, slots=True)
class Maximal:
    """Accepts x with min(1, law(x) / q(x)), else draws from norm(max(0, law - q)).

    The bonus token is drawn from the law. A refusal where the rule's gate is open is a penalty.
    """

    rule: HasLaw

    def judge(self, step: Step) -> Judgement:
        signals = self.rule.signals(step)
        tokens = pad(step.draft_tokens, (0, 1))[..., None]
        wanted = self.rule.law_of(step, tokens, signals)[:, :-1, 0]
        accept_prob = acceptance(wanted, step)
        gate = signals.get("gate")
        penalty_prob = (
            torch.zeros_like(accept_prob) if gate is None else (1 - accept_prob) * gate[:, :-1]
        )
        return Judgement(accept_prob=accept_prob, penalty_prob=penalty_prob, signals=signals)

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        row, refused = step.row(at), ~step.is_bonus(at)[:, None]
        gate = judgement.signals.get("gate")
        signals = {} if gate is None else {"gate": gate.gather(1, at[:, None])}
        law = self.rule.law_given(row, signals)[:, 0]
        return residual(law, row.draft_probs[:, 0] * refused)


def procedure(rule: HasLaw, coupling: Coupling) -> Procedure:
    """How a coupling judges draft tokens for a rule.

    Under `shared` noise tokens are kept by comparison; the judgement then serves to tell penalties
    from rejections only.
    """
    published = None if coupling == "maximal" else rule.published()
    return Maximal(rule) if published is None else published


def drafted(probs: Tensor, step: Step) -> Tensor:
    """Probability of each draft token; [B, K+1, V] -> [B, K]."""
    tokens = step.draft_tokens[..., None]
    return probs[:, : tokens.shape[1]].gather(-1, tokens)[..., 0]


def acceptance(wanted: Tensor, step: Step) -> Tensor:
    """min(1, wanted / draft_probs(x)) for draft tokens x that should have probability `wanted`."""
    proposed = drafted(step.draft_probs, step)
    return (wanted / proposed.clamp_min(torch.finfo(proposed.dtype).tiny)).clamp_max(1.0)
