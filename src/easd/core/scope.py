"""Rules that hold in a part of the text only, with lossless speculation everywhere else.

What relaxes verification may do harm where a text begins (a model that refuses a request does so in
its first tokens) or where the answer stands. So any rule may be kept from the first tokens of a
text, or to what the model writes between its reasoning markers.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.couplings import HasLaw, Maximal, Procedure
from easd.core.rules.speculative import Speculative
from easd.core.step import Judgement, Step

_LOSSLESS = Maximal(Speculative())


@dataclass(frozen=True, slots=True)
class Within:
    """`rule` at the positions of `step.in_scope`, and the target's own law at the others."""

    rule: HasLaw

    def signals(self, step: Step) -> Mapping[str, Tensor]:
        signals = self.rule.signals(step)
        if "gate" not in signals:
            return signals
        return ChainMap({"gate": signals["gate"] * _scope(step)}, signals)  # type: ignore[arg-type]

    def law(self, step: Step) -> Tensor:
        return self.law_given(step, self.signals(step))

    def law_given(self, step: Step, signals: Mapping[str, Tensor]) -> Tensor:
        law = self.rule.law_given(step, signals)
        return torch.where(_scope(step)[..., None], law, step.target_probs)

    def law_of(self, step: Step, tokens: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        law = self.rule.law_of(step, tokens, signals)
        return torch.where(_scope(step)[..., None], law, step.target_probs.gather(-1, tokens))

    def published(self) -> Procedure | None:
        own = self.rule.published()
        return None if own is None else _Published(own)


@dataclass(frozen=True, slots=True)
class _Published:
    """A published procedure in scope, and speculative sampling out of it."""

    own: Procedure

    def judge(self, step: Step) -> Judgement:
        own, scope = self.own.judge(step), _scope(step)
        lossless = _LOSSLESS.judge(step).accept_prob
        signals = own.signals
        if "gate" in signals:
            signals = ChainMap({"gate": signals["gate"] * scope}, signals)  # type: ignore[arg-type]
        return Judgement(
            accept_prob=torch.where(scope[:, :-1], own.accept_prob, lossless),
            penalty_prob=own.penalty_prob * scope[:, :-1],
            signals=signals,
        )

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        own = self.own.replacement(step, judgement, at, penalised)
        lossless = _LOSSLESS.replacement(step, judgement, at, penalised)
        return torch.where(_scope(step).gather(1, at[:, None]), own, lossless)


def _scope(step: Step) -> Tensor:
    assert step.in_scope is not None, "the step says where its rule holds"
    return step.in_scope
