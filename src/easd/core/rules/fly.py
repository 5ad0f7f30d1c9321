"""FLy: keeps refused draft tokens where the target is unsure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from easd.core.couplings import Coupling, Procedure, acceptance, drafted
from easd.core.gate import Nats
from easd.core.rules.base import Rule
from easd.core.signals import entropy, residual
from easd.core.step import Judgement, Step
from easd.errors import RuleError
from easd.fields import Within

MOST_WINDOW = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FLy(Rule):
    """Keeps a refused draft token where the target is unsure and what follows would be kept.

    The paper's hypothesis is the opposite of EASD's. A refusal is overruled if the target's entropy
    exceeds `tau_h`, the token is possible for the target, and the next `window` draft tokens pass
    the acceptance test (when sampling: with the probability that they do). Without a window the law
    at such positions is the draft's; with one it depends on later draft tokens, and there is no law
    per position.

    Attributes:
        tau_h: entropy threshold in nats. The paper uses a share of log V; vLLM the entropy of the
            top tokens.
        window: number of following draft tokens that must pass; all must be in the block.
    """

    name = "fly"
    source = "arXiv:2511.22972"
    needs_raw = "greedy"

    tau_h: Nats = 1.5
    window: Annotated[int, Within(0, MOST_WINDOW, "no number of tokens")] = 2

    @classmethod
    def example(cls) -> Rule:
        return cls(tau_h=0.9, window=0)

    @property
    def has_law(self) -> bool:
        return self.window == 0

    @property
    def default_coupling(self) -> Coupling:
        """`published` with a window, since there is then no law to couple with."""
        return "maximal" if self.has_law else "published"

    def published(self) -> Procedure:
        return Deferred(self)

    def signals(self, step: Step) -> Mapping[str, Tensor]:
        return {"target_entropy": entropy(step.opinions()[1])}

    def unsure(self, signals: Mapping[str, Tensor]) -> Tensor:
        """Where the target's entropy exceeds the threshold; bool [B, K+1]."""
        return signals["target_entropy"] > self.tau_h

    def law(self, step: Step) -> Tensor:
        if not self.has_law:
            raise RuleError(
                f"fly with window = {self.window} has no law per position, since later draft "
                "tokens decide what is kept; use window = 0, or the coupling published"
            )
        possible = step.opinions()[1] > 0
        impossible = (step.draft_probs * ~possible).sum(-1, keepdim=True)
        rest = residual(step.target_probs, step.draft_probs)
        unsure_law = step.draft_probs * possible + impossible * rest
        unsure = self.unsure(self.signals(step)) & step.has_draft()
        return torch.where(unsure[..., None], unsure_law, step.target_probs)


@dataclass(frozen=True, slots=True)
class Deferred:
    """The paper's procedure: the tokens after a refused one may overrule the refusal."""

    rule: FLy

    def judge(self, step: Step) -> Judgement:
        passes = acceptance(drafted(step.target_probs, step), step)
        signals = self.rule.signals(step)
        possible = drafted(step.opinions()[1], step) > 0
        unsure = self.rule.unsure(signals)[:, : passes.shape[1]]
        overruled = unsure * possible * self._window(passes, step)
        return Judgement(
            accept_prob=passes + (1 - passes) * overruled,
            penalty_prob=torch.zeros_like(passes),
            signals=signals,
        )

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        row, refused = step.row(at), ~step.is_bonus(at)[:, None]
        return residual(row.target_probs[:, 0], row.draft_probs[:, 0] * refused)

    def _window(self, passes: Tensor, step: Step) -> Tensor:
        """Probability [B, K] that the next `window` tokens all pass; 0 if the block has fewer."""
        window, length = self.rule.window, passes.shape[1]
        if not window or not length:
            return torch.ones_like(passes)
        if window >= length:
            return torch.zeros_like(passes)
        there = step.has_draft()[:, :-1]
        ahead = torch.nn.functional.pad(passes * there, (0, window))[:, 1:]
        return ahead.unfold(1, window, 1).prod(-1)
