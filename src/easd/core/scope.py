"""Restricts a rule to part of a text, with lossless speculation everywhere else.

Relaxed verification may do harm where a text begins (a model that refuses a request does so in its
first tokens) or where it answers. A rule may therefore leave out the first tokens of a text, or
hold only between the model's reasoning markers.
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
class Scoped:
    """`rule` at the positions of `step.in_scope`, and the target's law at the others."""

    rule: HasLaw

    def signals(self, step: Step) -> Mapping[str, Tensor]:
        return _closed_outside(self.rule.signals(step), step)

    def law(self, step: Step) -> Tensor:
        return self.law_given(step, self.signals(step))

    def law_given(self, step: Step, signals: Mapping[str, Tensor]) -> Tensor:
        law = self.rule.law_given(step, signals)
        return torch.where(_scope(step)[..., None], law, step.target_probs)

    def law_of(self, step: Step, tokens: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        law = self.rule.law_of(step, tokens, signals)
        return torch.where(_scope(step)[..., None], law, step.target_probs.gather(-1, tokens))

    def published(self) -> Procedure | None:
        published = self.rule.published()
        return None if published is None else _ScopedProcedure(published)


@dataclass(frozen=True, slots=True)
class _ScopedProcedure:
    """A published procedure in scope, and speculative sampling elsewhere."""

    published: Procedure

    def judge(self, step: Step) -> Judgement:
        judged, scope = self.published.judge(step), _scope(step)[:, :-1]
        lossless = _LOSSLESS.judge(step).accept_prob
        return Judgement(
            accept_prob=torch.where(scope, judged.accept_prob, lossless),
            penalty_prob=judged.penalty_prob * scope,
            signals=_closed_outside(judged.signals, step),
        )

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        published = self.published.replacement(step, judgement, at, penalised)
        lossless = _LOSSLESS.replacement(step, judgement, at, penalised)
        return torch.where(_scope(step).gather(1, at[:, None]), published, lossless)


def _closed_outside(signals: Mapping[str, Tensor], step: Step) -> Mapping[str, Tensor]:
    """The signals, with the gate closed out of scope."""
    if "gate" not in signals:
        return signals
    return ChainMap({"gate": signals["gate"] * _scope(step)}, signals)  # type: ignore[arg-type]


def _scope(step: Step) -> Tensor:
    assert step.in_scope is not None, "the step says where its rule holds"
    return step.in_scope
