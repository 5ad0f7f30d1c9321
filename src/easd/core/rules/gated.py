"""Accept, replace and law of every rule that refuses draft tokens at a gate.

A gate is a probability of refusal per position: 0 or 1 for entropy-aware rules, a constant for
the random control. With q the draft's and p the target's distribution, x the draft token,
m = min(1, p(x)/q(x)) and g the gate, METHOD's two orders of asking are

    proposed:  accept (1 - g) m,  penalise g,    reject (1 - g)(1 - m)
    accepted:  accept (1 - g) m,  penalise g m,  reject 1 - m

and both lead to law = (1 - g) p + g * open_law, with open_law below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from easd.core.rules.at_gate import AtGate, check_choice, on_host
from easd.core.rules.exact import acceptance, drafted
from easd.core.signals import exclude, residual, sum_of_odds
from easd.core.step import Judgement, Step

Redraw = Literal["exclude", "target"]
Penalise = Literal["drafted", "draft_top"]
GateOn = Literal["proposed", "accepted"]
Coupling = Literal["auto", "as_published", "maximal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedRule(AtGate):
    """Refuses draft tokens at a gate; subclasses say where it is open.

    Attributes:
        redraw: what a penalised token's replacement is drawn from: the target without the
            penalised token, or the target itself (the lossless null control).
        penalise: which token is excluded: the drafted one, or the draft's most probable one.
        gate_on: whether the gate is asked of every proposed token or only of those that pass the
            acceptance test.
        coupling: `as_published` refuses every gated token; `maximal` runs speculative sampling
            towards the law itself, which keeps the law and most of the tokens. `auto` is `maximal`
            with `gate_bonus`, where whole texts keep their law too, and else `as_published`.
    """

    redraw: Redraw = "exclude"
    penalise: Penalise = "drafted"
    gate_on: GateOn = "proposed"
    coupling: Coupling = "auto"

    def __post_init__(self) -> None:
        check_choice("redraw", self.redraw, Redraw)
        check_choice("penalise", self.penalise, Penalise)
        check_choice("gate_on", self.gate_on, GateOn)
        check_choice("coupling", self.coupling, Coupling)

    @property
    def speculates_towards_law(self) -> bool:
        """Whether draft tokens are tested against the law, and not refused at an open gate."""
        return self.coupling == "maximal" or (self.coupling == "auto" and self.gate_bonus)

    def judge(self, step: Step) -> Judgement:
        gate, signals = self.asked(step)
        asked = gate[:, :-1]
        if self.speculates_towards_law:
            accept_prob = self.towards_law(step, gate)
            penalty_prob = (1 - accept_prob) * asked
        else:
            passes = acceptance(drafted(step.target_probs, step), step)
            accept_prob = (1 - asked) * passes
            penalty_prob = asked if self.gate_on == "proposed" else asked * passes
        return Judgement(accept_prob=accept_prob, penalty_prob=penalty_prob, signals=signals)

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        gate = judgement.signals["gate"]
        if self.speculates_towards_law:
            return self.redrawn_towards_law(step, gate, at)
        row = step.row(at)
        target_probs, draft_probs = row.target_probs[:, 0], row.draft_probs[:, 0]
        bonus, penalised = step.is_bonus(at)[:, None], penalised[:, None]
        # A rejection takes away what the draft has, a penalty all the target has at one token.
        taken = torch.where(bonus | penalised, 0.0, draft_probs)
        nothing_zeroed = self.redraw == "target" or step.draft_tokens.shape[1] == 0
        if nothing_zeroed or (on_host(penalised) and not penalised.any()):
            probs = residual(target_probs, taken)
        else:
            token = self._zeroed(step, row, at)
            all_of_it = torch.where(
                penalised, target_probs.gather(1, token), taken.gather(1, token)
            )
            probs = residual(target_probs, taken.scatter(1, token, all_of_it))
            if step.greedy is not None:
                best = self._second_best(row, token)[:, 0]
                probs = torch.where(penalised & step.greedy[:, None], best, probs)
        if self.gate_bonus:
            law = self.mixed_law(row, gate.gather(1, at[:, None]), ~bonus)
            probs = torch.where(bonus, law[:, 0], probs)
        return probs

    def _zeroed(self, step: Step, row: Step, at: Tensor) -> Tensor:
        """Which token a penalty at positions `at` [B] takes away; [B, 1]."""
        if self.penalise == "draft_top":
            return row.draft_probs.argmax(-1)
        last = step.draft_tokens.shape[1] - 1
        return step.draft_tokens.gather(1, at.clamp_max(last)[:, None])

    def open_law(self, step: Step) -> Tensor:
        return self._emitted(step, None)

    def open_probs(self, step: Step, tokens: Tensor) -> Tensor:
        return self._emitted(step, tokens)

    def _emitted(self, step: Step, tokens: Tensor | None) -> Tensor:
        asked = step.draft_probs
        if self.gate_on == "accepted":
            asked = torch.minimum(step.target_probs, asked)
        law = self._penalised_law(step, asked, tokens)
        if self.gate_on == "accepted":
            law = law + _pick(step.target_probs - asked, tokens)
        return law

    def _penalised_law(self, step: Step, asked: Tensor, tokens: Tensor | None) -> Tensor:
        """Sum over x of asked(x) times the replacement distribution after penalising x."""
        target_probs, total = step.target_probs, asked.sum(-1, keepdim=True)
        if self.redraw == "target":
            return total * _pick(target_probs, tokens)
        if self.penalise == "draft_top":
            return total * _pick(self._redrawn_without_top(step), tokens)
        # p(y) * sum over x != y of asked(x) / (1 - p(x)); a certain x leaves nothing to redraw
        # from, and keeps p.
        rest, top, top_odds = sum_of_odds(asked, target_probs)
        probs = _pick(target_probs, tokens)
        at_top = (
            torch.arange(probs.shape[-1], device=top.device) if tokens is None else tokens
        ) == top
        own = torch.where(at_top, top_odds, _pick(asked, tokens) / (1 - probs))
        others = (rest + (top_odds - own)).clamp_min(0)
        law = probs * torch.where(top_odds.isfinite(), others, total)
        if step.greedy is None:
            return law
        # A greedy draft is one-hot, so the drafted token is the draft's top token.
        greedy_law = total * _pick(self._redrawn_without_top(step), tokens)
        return torch.where(step.greedy[:, None, None], greedy_law, law)

    def _redrawn_without_top(self, step: Step) -> Tensor:
        """Replacement after a penalty on the draft's top token, at every position."""
        token = step.draft_probs.argmax(-1)
        sampled = exclude(step.target_probs, token)
        if step.greedy is None:
            return sampled
        return torch.where(step.greedy[:, None, None], self._second_best(step, token), sampled)

    @staticmethod
    def _second_best(step: Step, token: Tensor) -> Tensor:
        """The most probable token other than `token` [B, K+1], as a distribution [B, K+1, V]."""
        assert step.raw_target_probs is not None, "greedy rows come with raw probabilities"
        raw = step.raw_target_probs
        second = raw.scatter(-1, token[..., None], -1.0).argmax(-1)
        return torch.zeros_like(raw).scatter(-1, second[..., None], 1.0)


def _pick(values: Tensor, tokens: Tensor | None) -> Tensor:
    """The entries at `tokens`; all of `values` without."""
    return values if tokens is None else values.gather(-1, tokens)
