"""Our own rules at EASD's gate: where it is open, speculate towards another law than the target's.

With q the draft's and p the target's distribution and g the gate, law = (1 - g) p + g * open_law.
A draft token x is kept with probability min(1, law(x)/q(x)) and otherwise redrawn from
norm(max(0, law - q)), which is speculative sampling towards the law (arXiv:2211.17192, Alg. 1).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from easd.core.rules.at_gate import AtGate, check_choice
from easd.core.rules.entropy_gate import EntropyGate
from easd.core.rules.relaxed import check_lenience, lenient_law
from easd.core.signals import most_probable
from easd.core.step import Judgement, Step
from easd.errors import RuleError

Pick = Literal["argmax", "sample"]

# A draft probability below this one counts as this one: a power of it must stay finite.
LEAST_DRAFT_PROB = 1e-6
MOST_POWER = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RedirectedRule(EntropyGate, AtGate):
    """Speculates towards `open_law` where the gate is open, and towards the target elsewhere."""

    def judge(self, step: Step) -> Judgement:
        gate, signals = self.asked(step)
        accept_prob = self.towards_law(step, gate)
        penalty_prob = (1 - accept_prob) * gate[:, :-1]
        return Judgement(accept_prob=accept_prob, penalty_prob=penalty_prob, signals=signals)

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        return self.redrawn_towards_law(step, judgement.signals["gate"], at)


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledRule(RedirectedRule):
    """Combines the two opinions as p^a q^b over the tokens that the target finds plausible.

    Attributes:
        plausible: tokens below this share of the target's most probable one are left out.
    """

    plausible: float = 0.1

    def __post_init__(self) -> None:
        EntropyGate.__post_init__(self)
        if not 0 <= self.plausible <= 1:
            raise RuleError(f"plausible = {self.plausible} is not a share; use a number in [0, 1]")
        for name, power in zip("ab", self.powers, strict=True):
            if not abs(power) <= MOST_POWER:
                raise RuleError(
                    f"{name} = {power} is no sensible power; use a number in "
                    f"[-{MOST_POWER}, {MOST_POWER}]"
                )

    @property
    @abstractmethod
    def powers(self) -> tuple[float, float]:
        """a, of the target's probability, and b, of the draft's."""

    def scores(self, step: Step) -> Tensor:
        """Logarithms of p^a q^b, minus infinity at implausible tokens; [B, K+1, V]."""
        draft_probs, target_probs = step.opinions()
        kept = target_probs >= self.plausible * target_probs.amax(-1, keepdim=True)
        a, b = self.powers
        scores = a * _log(target_probs) + b * draft_probs.clamp_min(LEAST_DRAFT_PROB).log()
        return scores.masked_fill(~kept | (target_probs <= 0), -torch.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(PooledRule):
    """Emits the best token of p^a q^b, with a and b fitted on reference text (`easd diagnose`).

    b says what the draft adds: a second opinion where it is positive, a warning where it is
    negative. The default (1, 0) is the target's best token.

    Attributes:
        a, b: powers of the target's and of the draft's probability.
        pick: emit the best token of the pool, or draw from it; greedy rows emit the best.
    """

    a: float = 1.0
    b: float = 0.0
    pick: Pick = "argmax"

    def __post_init__(self) -> None:
        PooledRule.__post_init__(self)
        check_choice("pick", self.pick, Pick)

    @property
    def powers(self) -> tuple[float, float]:
        return self.a, self.b

    def open_law(self, step: Step) -> Tensor:
        scores = self.scores(step)
        best = most_probable(scores)
        return best if self.pick == "argmax" else _where_greedy(step, best, scores.softmax(-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepNearTop(PooledRule):
    """Keeps the draft token if it is nearly the best, and else emits the best.

    With pi the pool p^a q^b, normalised, x is kept if max pi - pi(x) <= mu. By default pi is the
    target's own distribution.

    Attributes:
        mu: how far below the best token a draft token may be, in probability.
        a, b: powers of the target's and of the draft's probability.
    """

    plausible: float = 0.0
    mu: float = 0.3
    a: float = 1.0
    b: float = 0.0

    def __post_init__(self) -> None:
        PooledRule.__post_init__(self)
        if not 0 <= self.mu <= 1:
            raise RuleError(f"mu = {self.mu} is not a probability; use a number in [0, 1]")

    @property
    def powers(self) -> tuple[float, float]:
        return self.a, self.b

    def open_law(self, step: Step) -> Tensor:
        pool = self.scores(step).softmax(-1)
        top, best = pool.max(-1, keepdim=True)
        near = top - pool <= self.mu
        evaluated = step.draft_probs.amax(-1, keepdim=True) > 0
        refused = (step.draft_probs * ~near).sum(-1, keepdim=True)
        law = (step.draft_probs * near).scatter_add(-1, best, refused)
        return torch.where(evaluated, law, pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaxedPool(KeepNearTop):
    """Judges by the pool at the gate and is lenient elsewhere: accuracy won there buys speed here.

    Attributes:
        lenience: l in (0, 1]; where the gate is closed, speculate against l q instead of q, as the
            rule `lenience` does. 1 is lossless there.
    """

    plausible: float = 0.1
    lenience: float = 0.8

    def __post_init__(self) -> None:
        KeepNearTop.__post_init__(self)
        check_lenience(self.lenience)

    def closed_law(self, step: Step, drafted: Tensor) -> Tensor:
        lenient = lenient_law(step.draft_probs, step.target_probs, self.lenience)
        return torch.where(drafted[..., None], lenient, step.target_probs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast(PooledRule):
    """Draws from p (p/q)^beta over plausible tokens: what the target knows beyond the draft.

    Contrastive decoding (arXiv:2210.15097) with its plausibility mask, at the gate only.

    Attributes:
        beta: weight of the contrast; 0 is the target, masked.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise RuleError(f"beta = {self.beta} would follow the draft; use 0 or more")
        PooledRule.__post_init__(self)

    @property
    def powers(self) -> tuple[float, float]:
        return 1 + self.beta, -self.beta

    def open_law(self, step: Step) -> Tensor:
        scores = self.scores(step)
        return _where_greedy(step, most_probable(scores), scores.softmax(-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharpened(RedirectedRule):
    """Draws from the target sharpened to p^power, as at temperature 1/power.

    Attributes:
        power: more than 1 sharpens, less flattens.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        EntropyGate.__post_init__(self)
        if not 0 < self.power <= MOST_POWER:
            raise RuleError(
                f"power = {self.power} is no sensible power; use a number in (0, {MOST_POWER}]"
            )

    def open_law(self, step: Step) -> Tensor:
        scores = self.power * _log(step.target_probs)
        return scores.masked_fill(step.target_probs <= 0, -torch.inf).softmax(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy(RedirectedRule):
    """Emits the target's most probable token."""

    def open_law(self, step: Step) -> Tensor:
        return most_probable(step.target_probs)


def _where_greedy(step: Step, greedy: Tensor, sampled: Tensor) -> Tensor:
    return (
        sampled if step.greedy is None else torch.where(step.greedy[:, None, None], greedy, sampled)
    )


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
