"""Lossless speculative sampling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from easd.core.rules.base import Rule
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculative(Rule):
    """Lossless speculative sampling: the law is the target's."""

    name = "speculative"
    source = "arXiv:2211.17192, Alg. 1"

    @property
    def lossless(self) -> bool:
        return True

    def law(self, step: Step) -> Tensor:
        return step.target_probs
