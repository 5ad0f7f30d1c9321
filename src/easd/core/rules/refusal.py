"""Refusing the draft token at an open gate: the response of EASD and of the random control.

With q the draft's and p the target's distribution, x the draft token, m = min(1, p(x)/q(x)) and g
the gate, the paper's procedure (arXiv:2512.23765) allows two orders:

    proposed:  accept (1 - g) m,  penalise g,    reject (1 - g)(1 - m)
    accepted:  accept (1 - g) m,  penalise g m,  reject 1 - m

A rejected token is replaced from norm(max(0, p - q)), a penalised one from p without it. Summed
over x ~ q, an open gate applied to proposed tokens emits

    sum over x of q(x) p(y) 1[y != x] / (1 - p(x)) = p(y) (A - q(y) / (1 - p(y))),

with A = sum over x of q(x) / (1 - p(x)). Applied to accepted tokens, min(p, q) replaces q and
max(0, p - q)(y) is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from easd.core.couplings import Coupling, Procedure, acceptance, drafted
from easd.core.rules.gated import GatedRule, on_host
from easd.core.signals import exclude, residual, sum_of_odds
from easd.core.step import Judgement, Step

Redraw = Literal["exclude", "target"]
Penalise = Literal["drafted", "draft_top"]
GateOn = Literal["proposed", "accepted"]


@dataclass(frozen=True, kw_only=True)
class Refusing(GatedRule):
    """Refuses draft tokens where its gate is open; what the paper leaves open is a field.

    Attributes:
        redraw: what a penalised token's replacement is drawn from: the target without the
            penalised token, or the target itself (the lossless null control).
        penalise: which token is excluded: the drafted one, or the draft's most probable one.
        gate_on: whether the gate applies to every proposed token or only to those that pass the
            acceptance test.
    """

    # With slots it could not be combined with `EntropyGated`; its rules have them.
    __slots__ = ()

    redraw: Redraw = "exclude"
    penalise: Penalise = "drafted"
    gate_on: GateOn = "proposed"

    @property
    def lossless(self) -> bool:
        return self.redraw == "target" and self.gate_on == "proposed"

    @property
    def default_coupling(self) -> Coupling:
        """The paper's procedure; `maximal` emits the same law and keeps more draft tokens."""
        return "published"

    def published(self) -> Procedure:
        return AsPublished(self)

    def open_law(self, step: Step) -> Tensor:
        return self.open_law_of(step, None)

    def open_law_of(self, step: Step, tokens: Tensor | None) -> Tensor:
        if self.gate_on == "proposed":
            return self._penalised(step, step.draft_probs, tokens)
        passing = torch.minimum(step.target_probs, step.draft_probs)
        law = self._penalised(step, passing, tokens)
        return law + _pick(step.target_probs - passing, tokens)

    def _penalised(self, step: Step, gated: Tensor, tokens: Tensor | None) -> Tensor:
        """Sum over x of gated(x) times the replacement distribution after penalising x."""
        target_probs, total = step.target_probs, gated.sum(-1, keepdim=True)
        if self.redraw == "target":
            return total * _pick(target_probs, tokens)
        if self.penalise == "draft_top":
            return total * _pick(_without_draft_top(step), tokens)
        # p(y) * sum over x != y of gated(x) / (1 - p(x)). Where a token is certain, nothing is left
        # to replace it by, and the law stays p.
        rest, top, top_odds = sum_of_odds(gated, target_probs)
        probs = _pick(target_probs, tokens)
        every = torch.arange(probs.shape[-1], device=top.device) if tokens is None else tokens
        odds = torch.where(every == top, top_odds, _pick(gated, tokens) / (1 - probs))
        others = (rest + (top_odds - odds)).clamp_min(0)
        law = probs * torch.where(top_odds.isfinite(), others, total)
        if step.greedy is None:
            return law
        # A greedy draft is one-hot, so the drafted token is the draft's top token.
        greedy_law = total * _pick(_without_draft_top(step), tokens)
        return torch.where(step.greedy[:, None, None], greedy_law, law)


@dataclass(frozen=True, slots=True)
class AsPublished:
    """The paper's procedure: every gated token is refused and ends its block."""

    rule: Refusing

    def judge(self, step: Step) -> Judgement:
        signals = self.rule.signals(step)
        gate = signals["gate"][:, :-1]
        passes = acceptance(drafted(step.target_probs, step), step)
        return Judgement(
            accept_prob=(1 - gate) * passes,
            penalty_prob=gate if self.rule.gate_on == "proposed" else gate * passes,
            signals=signals,
        )

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        row = step.row(at)
        target_probs, draft_probs = row.target_probs[:, 0], row.draft_probs[:, 0]
        bonus, penalised = step.is_bonus(at)[:, None], penalised[:, None]
        # A rejection subtracts the draft's distribution, a penalty the whole of one token.
        taken = torch.where(bonus | penalised, 0.0, draft_probs)
        excludes_none = self.rule.redraw == "target" or step.draft_tokens.shape[1] == 0
        if excludes_none or (on_host(penalised) and not penalised.any()):
            probs = residual(target_probs, taken)
        else:
            token = self._excluded(step, row, at)
            at_token = torch.where(penalised, target_probs.gather(1, token), taken.gather(1, token))
            probs = residual(target_probs, taken.scatter(1, token, at_token))
            if step.greedy is not None:
                best = _second_best(row, token)[:, 0]
                probs = torch.where(penalised & step.greedy[:, None], best, probs)
        if self.rule.draft_at_bonus:
            gate = judgement.signals["gate"].gather(1, at[:, None])
            probs = torch.where(bonus, self.rule.law_given(row, {"gate": gate})[:, 0], probs)
        return probs

    def _excluded(self, step: Step, row: Step, at: Tensor) -> Tensor:
        """The token that a penalty at positions `at` [B] excludes; [B, 1]."""
        if self.rule.penalise == "draft_top":
            return row.draft_probs.argmax(-1)
        last = step.draft_tokens.shape[1] - 1
        return step.draft_tokens.gather(1, at.clamp_max(last)[:, None])


def _without_draft_top(step: Step) -> Tensor:
    """The replacement after a penalty on the draft's top token, at every position."""
    token = step.draft_probs.argmax(-1)
    sampled = exclude(step.target_probs, token)
    if step.greedy is None:
        return sampled
    return torch.where(step.greedy[:, None, None], _second_best(step, token), sampled)


def _second_best(step: Step, token: Tensor) -> Tensor:
    """The most probable token other than `token` [B, K+1], as a distribution [B, K+1, V]."""
    assert step.raw_target_probs is not None, "greedy rows come with raw probabilities"
    raw = step.raw_target_probs
    second = raw.scatter(-1, token[..., None], -1.0).argmax(-1)
    return torch.zeros_like(raw).scatter(-1, second[..., None], 1.0)


def _pick(values: Tensor, tokens: Tensor | None) -> Tensor:
    """The entries at `tokens`, or all of `values`."""
    return values if tokens is None else values.gather(-1, tokens)
