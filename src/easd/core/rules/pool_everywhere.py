"""The pool p^a q^b of two models at every position, optionally with other powers at a gate.

Sampling at temperature T draws from (p^a q^b)^(1/T), since p and q are at that temperature, and
greedy decoding emits the best token of p^a q^b. With b = 0 these rules are the target alone at
temperature T/a, so their value is what b adds (product of experts; contrastive decoding,
arXiv:2309.09117, for b < 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from easd.core.gate import Share
from easd.core.rules.base import Rule
from easd.core.rules.gated import EntropyGated, best_or_drawn, draft_evaluated
from easd.core.rules.pool import Power, pool_scores
from easd.core.step import Step

_SLICE = 16_384

Powers = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEverywhere(Rule):
    """Draws from p^a q^b at every position; greedy decoding emits the best token.

    `easd tune` fits a and b on reference text. Where the draft is not evaluated, tokens are drawn
    from the target. By default it is evaluated at bonus positions too, so that the law of a text
    does not depend on blocks.

    Attributes:
        a: power of the target's probability.
        b: power of the draft's probability.
        plausible: tokens below this share of the target's most probable one are left out.
        draft_at_bonus: evaluate the draft at the bonus position too.
    """

    name = "pool-everywhere"
    needs_raw = "greedy"
    needs_opinion: ClassVar[bool] = True

    a: Power = 1.0
    b: Power = 0.0
    plausible: Share = 0.1
    draft_at_bonus: bool = True  # type: ignore[misc]

    @classmethod
    def example(cls) -> Rule:
        return cls(a=1.3, b=0.7)

    def law(self, step: Step) -> Tensor:
        return _law(step, (self.a, self.b), self.plausible, bonus=self.draft_at_bonus)

    def law_of(self, step: Step, tokens: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        powers = self.a, self.b
        return _law_of(step, tokens, powers, self.plausible, bonus=self.draft_at_bonus)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolByGate(EntropyGated):
    """Draws from p^a q^b, with other powers where EASD's gate is open.

    Otherwise as `pool-everywhere`. It tests the hypothesis behind the gate: that the draft's
    opinion has another meaning where both models are unsure and agree.

    Attributes:
        a: power of the target's probability where the gate is closed.
        b: power of the draft's probability there.
        open_a: power of the target's probability where the gate is open.
        open_b: power of the draft's probability there.
        plausible: tokens below this share of the target's most probable one are left out.
    """

    name = "pool-by-gate"
    needs_opinion: ClassVar[bool] = True

    a: Power = 1.0
    b: Power = 0.0
    open_a: Power = 1.0
    open_b: Power = 0.0
    plausible: Share = 0.1
    draft_at_bonus: bool = True

    @classmethod
    def example(cls) -> Rule:
        return cls(tau_h=0.9, tau_o=0.6, a=1.3, b=0.7, open_a=1.5, open_b=-0.5)

    def closed_law(self, step: Step) -> Tensor:
        return _law(step, (self.a, self.b), self.plausible, bonus=self.draft_at_bonus)

    def closed_law_of(self, step: Step, tokens: Tensor) -> Tensor:
        powers = self.a, self.b
        return _law_of(step, tokens, powers, self.plausible, bonus=self.draft_at_bonus)

    def open_law(self, step: Step) -> Tensor:
        return _law(step, (self.open_a, self.open_b), self.plausible, bonus=True)

    def open_law_of(self, step: Step, tokens: Tensor) -> Tensor:
        return _law_of(step, tokens, (self.open_a, self.open_b), self.plausible, bonus=True)


def _law(step: Step, powers: Powers, plausible: float, *, bonus: bool) -> Tensor:
    """The pool where the draft was evaluated, else the target; [B, K+1, V]."""
    draft_probs, target_probs = step.opinions()
    least = plausible * target_probs.amax(-1, keepdim=True)
    law = best_or_drawn(step, pool_scores(draft_probs, target_probs, least, powers))
    evaluated = draft_evaluated(step, bonus=bonus)
    return torch.where(evaluated[..., None], law, step.target_probs)


def _law_of(step: Step, tokens: Tensor, powers: Powers, plausible: float, *, bonus: bool) -> Tensor:
    """Probabilities [B, K+1, n] of `tokens` under `_law`, without a table over the vocabulary."""
    draft_probs, target_probs = step.opinions()
    least = plausible * target_probs.amax(-1, keepdim=True)
    parts = zip(draft_probs.split(_SLICE, -1), target_probs.split(_SLICE, -1), strict=True)
    sums, tops, places = [], [], []
    for at, (q, p) in enumerate(parts):
        scores = pool_scores(q, p, least, powers)
        sums.append(scores.logsumexp(-1, keepdim=True))
        if step.greedy is not None:
            top, place = scores.max(-1, keepdim=True)
            tops.append(top)
            places.append(place + at * _SLICE)
    own = (draft_probs.gather(-1, tokens), target_probs.gather(-1, tokens))
    law = (pool_scores(*own, least, powers) - torch.cat(sums, -1).logsumexp(-1, keepdim=True)).exp()
    if step.greedy is not None:
        best = torch.cat(places, -1).gather(-1, torch.cat(tops, -1).argmax(-1, keepdim=True))
        law = torch.where(step.greedy[:, None, None], (tokens == best).to(law.dtype), law)
    evaluated = draft_evaluated(step, bonus=bonus)
    return torch.where(evaluated[..., None], law, step.target_probs.gather(-1, tokens))
