"""The pool p^a q^b of both models over the tokens that the target finds plausible.

The powers are the coefficients of a conditional logit of the right token on log p and log q. b > 0
reinforces the draft, b < 0 contrasts with it (contrastive decoding, arXiv:2210.15097), and b = 0
ignores it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from easd.core.gate import Share
from easd.core.rules.base import Rule
from easd.core.rules.gated import EntropyGated, best_or_drawn
from easd.core.signals import log, most_probable
from easd.core.step import Step
from easd.fields import Within

Pick = Literal["argmax", "sample"]

# Lower bound of draft probabilities, so that their powers stay finite.
LEAST_DRAFT_PROB = 1e-6
MOST_POWER = 100

Power = Annotated[float, Within(-MOST_POWER, MOST_POWER, "no sensible power")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled(EntropyGated):
    """A rule that scores tokens by p^a q^b where the gate is open.

    Attributes:
        plausible: tokens below this share of the target's most probable one are left out.
    """

    plausible: Share = 0.1

    @property
    @abstractmethod
    def powers(self) -> tuple[float, float]:
        """The powers (a, b) of the target's and the draft's probability."""

    def scores(self, step: Step) -> Tensor:
        """Logarithms of p^a q^b, minus infinity at implausible tokens; [B, K+1, V]."""
        draft_probs, target_probs = step.opinions()
        least = self.plausible * target_probs.amax(-1, keepdim=True)
        return pool_scores(draft_probs, target_probs, least, self.powers)


def pool_scores(
    draft_probs: Tensor, target_probs: Tensor, least: Tensor, powers: tuple[float, float]
) -> Tensor:
    """Logarithms of p^a q^b; minus infinity where p is 0 or below `least` [..., 1]."""
    a, b = powers
    scores = a * log(target_probs) + b * draft_probs.clamp_min(LEAST_DRAFT_PROB).log()
    return scores.masked_fill((target_probs < least) | (target_probs <= 0), -torch.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Pooled):
    """Emits the best token of p^a q^b, with a and b fitted on reference text.

    `easd diagnose` fits them; the default (1, 0) is the target's best token.

    Attributes:
        a: power of the target's probability.
        b: power of the draft's probability.
        pick: emit the pool's most probable token, or draw from it; greedy rows emit the former.
    """

    name = "pool"

    a: Power = 1.0
    b: Power = 0.0
    pick: Pick = "argmax"

    @classmethod
    def example(cls) -> Rule:
        return cls(tau_h=0.9, tau_o=0.6, a=1.3, b=-0.7)

    @property
    def powers(self) -> tuple[float, float]:
        return self.a, self.b

    def open_law(self, step: Step) -> Tensor:
        scores = self.scores(step)
        return most_probable(scores) if self.pick == "argmax" else best_or_drawn(step, scores)
