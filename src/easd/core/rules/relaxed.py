"""Lossy rules that users know from elsewhere: they keep more draft tokens than the target would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from easd.core.rules.exact import Ungated, acceptance, drafted, redrawn
from easd.core.signals import entropy, most_probable, residual
from easd.core.step import Judgement, Models, NeedsRaw, Step
from easd.errors import RuleError


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalAcceptance(Ungated):
    """Keeps a draft token x if p(x) > min(epsilon, delta exp(-H(p))), else emits the target's best.

    Medusa (arXiv:2401.10774, section 2.3.1). The bonus token is drawn from the target.

    Attributes:
        epsilon: a probability that is always enough.
        delta: how much of exp(-entropy) is enough where the target is unsure.
    """

    models: ClassVar[Models] = "both"

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        _check_share("epsilon", self.epsilon)
        _check_share("delta", self.delta)

    def judge(self, step: Step) -> Judgement:
        kept = drafted(self._typical(step).to(step.draft_probs.dtype), step)
        return Judgement(accept_prob=kept, penalty_prob=torch.zeros_like(kept), signals={})

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        probs = step.row(at).target_probs[:, 0]
        return torch.where(step.is_bonus(at)[:, None], probs, most_probable(probs))

    def law(self, step: Step) -> Tensor:
        typical = self._typical(step)
        refused = (step.draft_probs * ~typical).sum(-1, keepdim=True)
        law = step.draft_probs * typical + refused * most_probable(step.target_probs)
        return _before_bonus(step, law)

    def _typical(self, step: Step) -> Tensor:
        """Which tokens would be kept, bool [B, K+1, V]."""
        unsure = self.delta * torch.exp(-entropy(step.target_probs))
        return step.target_probs > unsure.clamp_max(self.epsilon)[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lenient(Ungated):
    """Speculative sampling against l q instead of q (arXiv:2211.17192, appendix A.5).

    No token becomes more probable than p/l.

    Attributes:
        lenience: l in (0, 1]; 1 is lossless.
    """

    models: ClassVar[Models] = "both"

    lenience: float = 0.5

    def __post_init__(self) -> None:
        check_lenience(self.lenience)

    def judge(self, step: Step) -> Judgement:
        accept_prob = acceptance(drafted(step.target_probs / self.lenience, step), step)
        return Judgement(
            accept_prob=accept_prob, penalty_prob=torch.zeros_like(accept_prob), signals={}
        )

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        return redrawn(step, at, self.lenience)

    def law(self, step: Step) -> Tensor:
        lenient = lenient_law(step.draft_probs, step.target_probs, self.lenience)
        return _before_bonus(step, lenient)


def lenient_law(draft_probs: Tensor, target_probs: Tensor, lenience: float) -> Tensor:
    """What speculative sampling against l q emits at drafted positions, [..., V]."""
    kept = torch.minimum(draft_probs, target_probs / lenience)
    missing = (draft_probs - kept).sum(-1, keepdim=True)
    return kept + missing * residual(target_probs, lenience * draft_probs)


def check_lenience(lenience: float) -> None:
    """Refuses a lenience outside (0, 1].

    Raises:
        RuleError: It is.
    """
    if not 0 < lenience <= 1:
        raise RuleError(f"lenience = {lenience} is not a share; use a number in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble(Ungated):
    """Speculates towards the mixture w p + (1 - w) q, as transformers' `assistant_ensemble_weight`.

    Greedy rows emit the mixture's best token. The bonus token is the target's.

    Attributes:
        weight: w in (0, 1], the target's share; 1 is lossless.
    """

    models: ClassVar[Models] = "both"

    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise RuleError(f"weight = {self.weight} is not a share; use a number in (0, 1]")

    @property
    def needs_raw(self) -> NeedsRaw:
        return "greedy"

    def judge(self, step: Step) -> Judgement:
        accept_prob = acceptance(drafted(self.law(step), step), step)
        return Judgement(
            accept_prob=accept_prob, penalty_prob=torch.zeros_like(accept_prob), signals={}
        )

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        row = step.row(at)
        bonus = step.is_bonus(at)[:, None]
        mixed = residual(self._mixture(row)[:, 0], row.draft_probs[:, 0])
        return torch.where(bonus, row.target_probs[:, 0], mixed)

    def law(self, step: Step) -> Tensor:
        return _before_bonus(step, self._mixture(step))

    def _mixture(self, step: Step) -> Tensor:
        mixture = torch.lerp(step.draft_probs, step.target_probs, self.weight)
        if step.greedy is None:
            return mixture
        raw = torch.lerp(*step.raw(), self.weight)
        return torch.where(step.greedy[:, None, None], most_probable(raw), mixture)


@dataclass(frozen=True, slots=True, kw_only=True)
class FLy(Ungated):
    """Keeps a refused draft token where the target is unsure and what follows would be kept.

    The entropy gate and deferred window of arXiv:2511.22972, the opposite hypothesis to EASD's. A
    refusal is overruled if the target's entropy is over `tau_h`, the token is possible for the
    target, and the next `window` draft tokens pass the acceptance test (when sampling: with the
    probability that they do). Without a window the law at such positions is the draft's; with one
    it depends on tokens drafted later, and there is no law per position.

    Attributes:
        tau_h: entropy threshold in nats. The paper uses a share of log V; vLLM the entropy of the
            top tokens.
        window: draft tokens that must pass behind the refused one; they must all be in the block.
    """

    models: ClassVar[Models] = "both"

    tau_h: float = 1.5
    window: int = 2

    def __post_init__(self) -> None:
        if not self.tau_h >= 0:
            raise RuleError(f"tau_h = {self.tau_h} is not an entropy; use nats, 0 or more")
        if self.window < 0:
            raise RuleError(f"window = {self.window} is no number of tokens; use 0 or more")

    @property
    def needs_raw(self) -> NeedsRaw:
        return "greedy"

    @property
    def has_law(self) -> bool:
        """Whether the emitted token has a law that the step's distributions decide."""
        return self.window == 0

    def judge(self, step: Step) -> Judgement:
        passes = acceptance(drafted(step.target_probs, step), step)
        target_entropy, gate = self._gate(step)
        possible = drafted(step.opinions()[1], step) > 0
        overruled = gate[:, : passes.shape[1]] * possible * self._window(passes, step)
        signals = {"target_entropy": target_entropy, "gate": gate}
        return Judgement(
            accept_prob=passes + (1 - passes) * overruled,
            penalty_prob=torch.zeros_like(passes),
            signals=signals,
        )

    def replacement(
        self, step: Step, judgement: Judgement, at: Tensor, penalised: Tensor
    ) -> Tensor:
        return redrawn(step, at)

    def law(self, step: Step) -> Tensor:
        if not self.has_law:
            raise RuleError(
                f"fly with window = {self.window} has no law per position: what is kept depends on "
                "tokens drafted later; use window = 0, or independent noise"
            )
        _, gate = self._gate(step)
        possible = step.opinions()[1] > 0
        impossible = (step.draft_probs * ~possible).sum(-1, keepdim=True)
        rest = residual(step.target_probs, step.draft_probs)
        open_law = step.draft_probs * possible + impossible * rest
        return _before_bonus(step, torch.lerp(step.target_probs, open_law, gate[..., None]))

    def _gate(self, step: Step) -> tuple[Tensor, Tensor]:
        target_entropy = entropy(step.opinions()[1])
        return target_entropy, (target_entropy > self.tau_h).to(step.target_probs.dtype)

    def _window(self, passes: Tensor, step: Step) -> Tensor:
        """Probability that the next `window` tokens all pass; 0 where the block has fewer."""
        if not self.window or not passes.shape[1]:
            return torch.ones_like(passes)
        there = step.has_draft()[:, :-1]
        ahead = torch.nn.functional.pad(passes * there, (0, self.window))[:, 1:]
        return ahead.unfold(1, self.window, 1).prod(-1)


def _before_bonus(step: Step, law: Tensor) -> Tensor:
    """`law` at drafted positions, the target's at the bonus position and behind."""
    return torch.where(step.has_draft()[..., None], law, step.target_probs)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise RuleError(f"{name} = {value} is not a share; use a number in [0, 1]")
