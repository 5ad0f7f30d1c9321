"""What all rules with a gate share: where it is asked, and what they answer a decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from easd.core.rules.exact import acceptance
from easd.core.signals import residual
from easd.core.step import Models, NeedsRaw, Step
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
    def signals(self, step: Step) -> Mapping[str, Tensor]:
        """What the gate looks at, name -> [B, K+1]; `gate` is the probability that it is open.

        The gate's value at bonus and padding positions does not matter; see `close_undrafted`.
        """

    @abstractmethod
    def open_law(self, step: Step) -> Tensor:
        """Distribution [B, K+1, V] of the emitted token where the gate is open.

        A function of the distributions and of `greedy` alone: it may be asked of some positions
        only, each as a row of its own with K = 0.
        """

    def open_probs(self, step: Step, tokens: Tensor) -> Tensor:
        """What `open_law` gives `tokens` [B, K+1, n]; [B, K+1, n]."""
        return self.open_law(step).gather(-1, tokens)

    def closed_law(self, step: Step, drafted: Tensor) -> Tensor:
        """The same where it is closed; `drafted` [B, K+1] tells drafted from bonus positions."""
        return step.target_probs

    def mixed_law(
        self, step: Step, gate: Tensor, drafted: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """(1 - g) closed_law + g open_law for gate g [B, K+1]; [B, K+1, V].

        With `tokens` [B, K+1, n], only their probabilities: [B, K+1, n].
        """
        closed = self.closed_law(step, drafted)
        if tokens is not None:
            closed = closed.gather(-1, tokens)
        if not on_host(gate):
            return torch.lerp(closed, self._open(step, tokens), gate[..., None])
        rows, at = gate.nonzero(as_tuple=True)
        if not len(rows):
            return closed
        opened = self._open(
            step.at(rows, at), None if tokens is None else tokens[rows, at][:, None]
        )
        mixed = torch.lerp(closed[rows, at], opened[:, 0], gate[rows, at][:, None])
        return closed.index_put((rows, at), mixed)

    def _open(self, step: Step, tokens: Tensor | None) -> Tensor:
        return self.open_law(step) if tokens is None else self.open_probs(step, tokens)

    def towards_law(self, step: Step, gate: Tensor) -> Tensor:
        """Acceptance probabilities [B, K] of speculative sampling towards the law itself."""
        tokens = pad(step.draft_tokens, (0, 1))[..., None]
        wanted = self.mixed_law(step, gate, step.has_draft(), tokens)[:, :-1, 0]
        return acceptance(wanted, step)

    def redrawn_towards_law(self, step: Step, gate: Tensor, at: Tensor) -> Tensor:
        """What is then drawn from at positions `at` [B]; [B, V]."""
        row, refused = step.row(at), ~step.is_bonus(at)[:, None]
        law = self.mixed_law(row, gate.gather(1, at[:, None]), refused)
        return residual(law[:, 0], row.draft_probs[:, 0] * refused)

    def asked(self, step: Step) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The gate [B, K+1], closed where there is no draft, and all signals with it."""
        signals = self.signals(step)
        gate = signals["gate"]
        if not on_host(gate) or gate.any():
            gate = self.close_undrafted(gate, step)
        return gate, ChainMap({"gate": gate}, signals)  # type: ignore[arg-type]

    def law(self, step: Step) -> Tensor:
        gate, _ = self.asked(step)
        return self.mixed_law(step, gate, step.has_draft())

    def close_undrafted(self, gate: Tensor, step: Step) -> Tensor:
        """Closes the gate where the draft said nothing: padding, bonus rows it did not see."""
        drafted = step.has_draft()
        if not self.gate_bonus:
            return gate * drafted
        position = torch.arange(gate.shape[1], device=gate.device)
        bonus = position == step.num_draft_tokens[:, None]
        evaluated = step.row(step.num_draft_tokens).draft_probs.amax(-1) > 0  # [B, 1]
        return gate * (drafted | (bonus & evaluated))


def on_host(values: Tensor) -> bool:
    """Whether to look at values before going on costs nothing: on a GPU it waits for the device."""
    return values.is_cpu and not torch.compiler.is_compiling()


def check_choice(field: str, value: str, choices: object) -> None:
    """Refuses a `value` of `field` that is none of the `choices`, a Literal type.

    Raises:
        RuleError: The value is not among them.
    """
    allowed = choices.__args__  # type: ignore[attr-defined]
    if value not in allowed:
        raise RuleError(f"{field} = {value!r} is not known; choose one of {', '.join(allowed)}")
