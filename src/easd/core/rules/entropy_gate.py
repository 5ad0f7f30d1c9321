"""Where draft and target are both unsure and agree too much (arXiv:2512.23765)."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from easd.core import kernels
from easd.core.gate import (
    ALL_CONDITIONS,
    Condition,
    condition_met,
    conditions_met,
    required_shared,
)
from easd.core.rules.at_gate import check_choice, on_host
from easd.core.signals import entropy, shared_top_tokens
from easd.core.step import NeedsRaw, Step
from easd.errors import RuleError

EntropyOf = Literal["sampling", "raw"]

_SIGNALS = ("draft_entropy", "target_entropy", "shared_top")
# The overlap takes more calls and the entropies more arithmetic; up to this many entries calls
# decide which is cheaper.
_FEW_ENTRIES = 2**18
_BY_CALLS: tuple[Condition, ...] = ("target_entropy", "overlap", "draft_entropy")
_BY_ARITHMETIC: tuple[Condition, ...] = ("overlap", "target_entropy", "draft_entropy")


@dataclass(frozen=True, kw_only=True)
class EntropyGate:
    """The gate of entropy-aware rules, to be mixed into one that says what happens there.

    It is open where draft entropy > `tau_h` and target entropy > `tau_h` and at least
    `tau_o * top_n` of the `top_n` most probable tokens are shared. It looks at the two
    distributions, never at the token.

    Attributes:
        tau_h: entropy threshold in nats; infinity never opens the gate.
        tau_o: overlap threshold in [0, 1], compared as a count with `>=`.
        top_n: how many top tokens the overlap counts.
        entropy_of: take entropies and overlap from the distribution tokens are drawn from, or from
            the raw one (temperature 1, no truncation). Greedy rows always use the raw one: their
            sampling distribution has no entropy.
        conditions: which of the three conditions are asked; the ablations drop some.
    """

    tau_h: float = 1.5
    tau_o: float = 0.8
    top_n: int = 5
    entropy_of: EntropyOf = "sampling"
    conditions: tuple[Condition, ...] = ALL_CONDITIONS

    if TYPE_CHECKING:  # what it is mixed into says

        @property
        def evaluates_bonus(self) -> bool: ...

    def __post_init__(self) -> None:
        if not self.tau_h >= 0:
            raise RuleError(f"tau_h = {self.tau_h} is not an entropy; use nats, 0 or more")
        if not 0 <= self.tau_o <= 1:
            raise RuleError(f"tau_o = {self.tau_o} is not a share; use a number in [0, 1]")
        if self.top_n < 1:
            raise RuleError(f"top_n = {self.top_n} counts no token; use 1 or more")
        check_choice("entropy_of", self.entropy_of, EntropyOf)
        if not self.conditions:
            raise RuleError(
                "conditions = () would penalise every token; name at least one of "
                + ", ".join(ALL_CONDITIONS)
            )
        for condition in self.conditions:
            check_choice("conditions", condition, Condition)

    @property
    def needs_raw(self) -> NeedsRaw:
        return "always" if self.entropy_of == "raw" else "greedy"

    @property
    def required_shared(self) -> int:
        """The least number of shared top tokens that meets `tau_o`."""
        return required_shared(self.tau_o, self.top_n)

    def signals(self, step: Step) -> Mapping[str, Tensor]:
        probs = self.gate_probs(step)
        dtype = step.target_probs.dtype
        if on_host(step.target_probs):
            measured = _OnDemand(lambda: gate_signals(*probs, self.top_n))
            # The bonus position is asked where the rule gates it.
            bonus = 0 if self.evaluates_bonus else 1
            draft_probs, target_probs = (p[:, : p.shape[1] - bonus] for p in probs)
            gate = self._opens_in_order(draft_probs, target_probs).to(dtype)
            return ChainMap({"gate": pad(gate, (0, bonus))}, measured)  # type: ignore[arg-type]
        signals = gate_signals(*probs, self.top_n)
        return {**signals, "gate": self.opens(self.conditions_met(signals)).to(dtype)}

    def _opens_in_order(self, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
        """Asks the conditions by their price, each only where all before it hold; bool [B, k]."""
        gate = None
        order = _BY_CALLS if target_probs.numel() <= _FEW_ENTRIES else _BY_ARITHMETIC
        asked: list[Condition] = [each for each in order if each in self.conditions]
        for condition in asked:
            at = ... if gate is None else gate.nonzero(as_tuple=True)
            signal = self._signal(condition, draft_probs, target_probs, at)
            met = condition_met(
                condition, signal, tau_h=self.tau_h, least_shared=self.required_shared
            )
            if gate is None:
                gate = met
            else:
                gate[at] = met
            if not gate.any():
                break
        assert gate is not None, "at least one condition is asked"
        return gate

    def _signal(
        self, condition: Condition, draft_probs: Tensor, target_probs: Tensor, at: Any
    ) -> Tensor:
        if condition == "overlap":
            return shared_top_tokens(draft_probs[at], target_probs[at], self.top_n)
        return entropy((target_probs if condition == "target_entropy" else draft_probs)[at])

    def conditions_met(self, signals: Mapping[str, Tensor]) -> dict[Condition, Tensor]:
        """Which conditions hold where, asked or not; from `gate_signals` with this `top_n`."""
        return conditions_met(
            signals["draft_entropy"],
            signals["target_entropy"],
            signals["shared_top"],
            tau_h=self.tau_h,
            least_shared=self.required_shared,
        )

    def opens(self, met: dict[Condition, Tensor]) -> Tensor:
        """Whether all conditions that are asked are met; bool, shaped like them."""
        gate = torch.ones_like(met["overlap"])
        for condition in self.conditions:
            gate = gate & met[condition]
        return gate

    def gate_probs(self, step: Step) -> tuple[Tensor, Tensor]:
        """The draft's and the target's distributions that the gate looks at, [B, K+1, V] each."""
        return step.raw() if self.entropy_of == "raw" else step.opinions()


class _OnDemand(Mapping[str, Tensor]):
    """The answers of `gate_signals`, computed when one is first read; decoding alone reads none."""

    def __init__(self, measure: Callable[[], dict[str, Tensor]]) -> None:
        self._measure = cache(measure)

    def __getitem__(self, name: str) -> Tensor:
        if name not in _SIGNALS:
            raise KeyError(name)
        return self._measure()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_SIGNALS)

    def __len__(self) -> int:
        return len(_SIGNALS)


def gate_signals(draft_probs: Tensor, target_probs: Tensor, top_n: int) -> dict[str, Tensor]:
    """Entropies in nats and the number of shared top tokens; [..., V] -> name -> [...]."""
    if top_n <= kernels.MOST_TOP and kernels.usable(target_probs):
        return kernels.gate_signals(draft_probs, target_probs, top_n)
    return {
        "draft_entropy": entropy(draft_probs),
        "target_entropy": entropy(target_probs),
        "shared_top": shared_top_tokens(draft_probs, target_probs, top_n),
    }
