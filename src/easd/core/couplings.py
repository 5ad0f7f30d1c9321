"""How a drafted block helps to draw from a rule's law.

A coupling decides which draft tokens are kept and what replaces the first refused one. It changes
neither the law at a position nor the signals that a rule looks at:

* `maximal`: speculative sampling towards the law (arXiv:2211.17192, Alg. 1, with the law in the
  target's place). No coupling of one position keeps its draft token more often.
* `block`: the block is verified as a whole (arXiv:2403.10444, with the law in the target's place).
  In expectation it keeps at least as many tokens of a block as `maximal`.
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

Coupling = Literal["maximal", "block", "published", "shared"]
COUPLINGS: tuple[Coupling, ...] = ("maximal", "block", "published", "shared")


class Procedure(Protocol):
    """Keep each draft token with some probability, or replace it and end the block."""

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
    """The part of a rule that couplings use; see `easd.core.rules.Rule`."""

    def signals(self, step: Step) -> Mapping[str, Tensor]: ...
    def law(self, step: Step) -> Tensor: ...
    def law_given(self, step: Step, signals: Mapping[str, Tensor]) -> Tensor: ...
    def law_of(self, step: Step, tokens: Tensor, signals: Mapping[str, Tensor]) -> Tensor: ...
    def published(self) -> Procedure | None: ...


@dataclass(frozen=True, slots=True)
class Maximal:
    """Accepts x with min(1, law(x) / r(x)), else draws from norm(max(0, law - r)).

    Here r is the proposal, from which x was drawn. The bonus token is drawn from the law. A refusal
    where the rule's gate is open is a penalty.
    """

    rule: HasLaw

    def judge(self, step: Step) -> Judgement:
        signals = self.rule.signals(step)
        tokens = pad(step.draft_tokens, (0, 1))[..., None]
        wanted = self.rule.law_of(step, tokens, signals)[:, :-1, 0]
        accept_prob = acceptance(wanted, step)
        return Judgement(
            accept_prob=accept_prob,
            penalty_prob=_penalties(accept_prob, signals),
            signals=signals,
        )

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        row, refused = step.row(at), ~step.is_bonus(at)[:, None]
        taken = row.proposal[:, 0] * refused
        if judgement.law_weight is not None:
            taken = taken / _positive(judgement.law_weight.gather(1, at[:, None]))
        gate = judgement.signals.get("gate")
        signals = {} if gate is None else {"gate": gate.gather(1, at[:, None])}
        return residual(self.rule.law_given(row, signals)[:, 0], taken)


@dataclass(frozen=True, slots=True)
class Blockwise(Maximal):
    """Block verification: keeps the longest prefix of the block whose last token passes its test.

    With r the proposal and l the law at each position, w_0 = 1 and w_i = min(1, w_(i-1) l(x_i) /
    r(x_i)) is the probability that at least i tokens of the block x_1 ... x_n are kept. The law's
    mass that further draft tokens after x_i cannot cover is Z_i = sum of max(0, w_i l - r) at the
    next position, so x_i passes with h_i = Z_i / (Z_i + 1 - w_i), and the last token with h_n =
    w_n. The last x_i that passes ends the block, and the next token is drawn from
    norm(max(0, w_i l - r)), or from the law at the bonus position.

    Proof: P(at least i kept) = P(more than i kept) + P(not more) h_i, where P(more than i kept) is
    the sum of min(r, w_i l) = w_i - Z_i over the next token, which gives w_i. A block may end
    anywhere, as long as only its own tokens decide where.
    """

    def judge(self, step: Step) -> Judgement:
        signals = self.rule.signals(step)
        law, proposal = self.rule.law_given(step, signals), step.proposal
        ratio = drafted(law, step) / _positive(drafted(proposal, step))
        weights = [torch.ones_like(law[:, 0, 0])]
        for each in ratio.unbind(1):
            weights.append((weights[-1] * each).clamp_max(1.0))
        weight = torch.stack(weights, 1)  # [B, K+1]
        ends, there = weight[:, 1:], step.has_draft()
        missed = weight[:, 1:-1, None] * law[:, 1:-1] - proposal[:, 1:-1]
        missed = pad(missed.clamp_min_(0).sum(-1), (0, 1))[:, : ends.shape[1]]
        passes = missed / _positive(missed + (1 - ends))
        accept_prob = torch.where(there[:, 1:], passes, ends) * there[:, :-1]
        return Judgement(
            accept_prob=accept_prob,
            penalty_prob=_penalties(accept_prob, signals),
            signals=signals,
            law_weight=weight,
        )


def procedure(rule: HasLaw, coupling: Coupling) -> Procedure:
    """The procedure of a coupling for a rule; `shared` uses it only to tell apart refusals."""
    if coupling == "block":
        return Blockwise(rule)
    published = None if coupling == "maximal" else rule.published()
    return Maximal(rule) if published is None else published


def drafted(probs: Tensor, step: Step) -> Tensor:
    """Probability of each draft token; [B, K+1, V] -> [B, K]."""
    tokens = step.draft_tokens[..., None]
    return probs[:, : tokens.shape[1]].gather(-1, tokens)[..., 0]


def acceptance(wanted: Tensor, step: Step) -> Tensor:
    """min(1, wanted / proposal(x)) for draft tokens x that should have probability `wanted`."""
    return (wanted / _positive(drafted(step.proposal, step))).clamp_max(1.0)


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny)


def _penalties(accept_prob: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
    """Probability [B, K] that a token is refused at an open gate."""
    gate = signals.get("gate")
    return torch.zeros_like(accept_prob) if gate is None else (1 - accept_prob) * gate[:, :-1]
