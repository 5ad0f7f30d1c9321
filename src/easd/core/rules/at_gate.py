"""What all rules with a gate share: where it is asked, and what they answer a decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from easd.core.types import Models, NeedsRaw, Step
from easd.errors import RuleError


@dataclass(frozen=True, slots=True, kw_only=True)
class AtGate(ABC):
    """A rule that differs from lossless speculation at a gate only.

    Attributes:
        gate_bonus: whether the bonus position is gated too; the draft is then evaluated there,
            and the output law no longer depends on gamma.
    """

    models: ClassVar[Models] = "both"

    gate_bonus: bool = False

    @property
    def evaluates_bonus(self) -> bool:
        return self.gate_bonus

    @property
    def needs_raw(self) -> NeedsRaw:
        return "greedy"

    @abstractmethod
    def signals(self, step: Step) -> dict[str, Tensor]:
        """What the gate looks at, name -> [B, K+1]; `gate` is the probability that it is open.

        The gate's value at bonus and padding positions does not matter; see `close_undrafted`.
        """

    def close_undrafted(self, gate: Tensor, step: Step) -> Tensor:
        """Closes the gate where the draft said nothing: padding, bonus rows it did not see."""
        drafted = step.has_draft()
        if not self.gate_bonus:
            return gate * drafted
        position = torch.arange(gate.shape[1], device=gate.device)
        bonus = position == step.num_draft_tokens[:, None]
        evaluated = step.row(step.num_draft_tokens).draft_probs.amax(-1) > 0  # [B, 1]
        return gate * (drafted | (bonus & evaluated))


def check_choice(field: str, value: str, choices: object) -> None:
    """Refuses a `value` of `field` that is none of the `choices`, a Literal type.

    Raises:
        RuleError: The value is not among them.
    """
    allowed = choices.__args__  # type: ignore[attr-defined]
    if value not in allowed:
        raise RuleError(f"{field} = {value!r} is not known; choose one of {', '.join(allowed)}")
