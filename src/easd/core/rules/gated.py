"""Rules that differ from lossless speculation only where a gate is open.

A gate is a probability g per position: 0 or 1 for the entropy gate, a constant for the random
control. It is a function of the two distributions and never looks at the draft token. The law is
(1 - g) closed_law + g open_law, where closed_law is the target's distribution by default.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from easd.core import kernels
from easd.core.gate import ALL_CONDITIONS, SIGNALS, Condition, Gate, Nats, Share, TopN
from easd.core.rules.base import Rule
from easd.core.signals import entropy, most_probable, shared_top_tokens
from easd.core.step import NeedsRaw, Step

EntropyOf = Literal["sampling", "raw"]

# The overlap takes more calls, the entropies more arithmetic. Up to this many entries, calls
# dominate the time.
_FEW_ENTRIES = 2**18
_BY_CALLS: tuple[Condition, ...] = ("target_entropy", "overlap", "draft_entropy")
_BY_ARITHMETIC: tuple[Condition, ...] = ("overlap", "target_entropy", "draft_entropy")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedRule(Rule):
    """Emits another law than the target's where a gate is open.

    Attributes:
        draft_at_bonus: evaluate the draft at the bonus position too and gate it; the law of whole
            texts then depends neither on gamma nor on the coupling.
    """

    needs_raw = "greedy"

    draft_at_bonus: bool = False  # type: ignore[misc]

    @abstractmethod
    def measure(self, step: Step) -> Mapping[str, Tensor]:
        """The gate's signals, name -> [B, K+1], and `gate`, the probability that it is open.

        The gate's value where no draft was evaluated does not matter.
        """

    @abstractmethod
    def open_law(self, step: Step) -> Tensor:
        """Distribution [B, K+1, V] of the emitted token where the gate is open.

        The step may be narrowed to some positions as rows with K = 0.
        """

    def open_law_of(self, step: Step, tokens: Tensor) -> Tensor:
        """Probabilities of `tokens` under `open_law`; both [B, K+1, n]."""
        return self.open_law(step).gather(-1, tokens)

    def closed_law(self, step: Step) -> Tensor:
        """Distribution [B, K+1, V] of the emitted token where the gate is closed."""
        return step.target_probs

    def closed_law_of(self, step: Step, tokens: Tensor) -> Tensor:
        """Probabilities of `tokens` under `closed_law`; both [B, K+1, n]."""
        return self.closed_law(step).gather(-1, tokens)

    def signals(self, step: Step) -> Mapping[str, Tensor]:
        measured = self.measure(step)
        gate = measured["gate"]
        if not on_host(gate) or gate.any():
            # Closed where the draft was not evaluated: padding, and most bonus positions.
            gate = gate * draft_evaluated(step, bonus=self.draft_at_bonus)
        return ChainMap({"gate": gate}, measured)  # type: ignore[arg-type]

    def law(self, step: Step) -> Tensor:
        return self.law_given(step, self.signals(step))

    def law_given(self, step: Step, signals: Mapping[str, Tensor]) -> Tensor:
        return self._mixed(step, signals["gate"], None)

    def law_of(self, step: Step, tokens: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return self._mixed(step, signals["gate"], tokens)

    def _mixed(self, step: Step, gate: Tensor, tokens: Tensor | None) -> Tensor:
        closed = self.closed_law(step) if tokens is None else self.closed_law_of(step, tokens)
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
        return self.open_law(step) if tokens is None else self.open_law_of(step, tokens)


class _CheckedGate(Gate):
    """A gate of fields that its rule has checked already; torch can compile its construction."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Checks nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyGated(GatedRule):
    """Emits another law where both models are uncertain and agree; see `easd.core.gate.Gate`.

    Attributes:
        tau_h: entropy threshold in nats, exceeded by both models; infinity never opens the gate.
        tau_o: overlap threshold in [0, 1]: the share of the `top_n` most probable tokens that both
            models must have in common.
        top_n: number of top tokens whose overlap is counted.
        entropy_of: take entropies and overlap from the distribution tokens are drawn from, or from
            the raw one (temperature 1, no truncation). Greedy rows always use the raw one: their
            sampling distribution has no entropy.
        conditions: which of the three conditions are asked; the ablations drop some.
    """

    tau_h: Nats = 1.5
    tau_o: Share = 0.8
    top_n: TopN = 5
    entropy_of: EntropyOf = "sampling"
    conditions: tuple[Condition, ...] = ALL_CONDITIONS

    def __post_init__(self) -> None:
        Rule.__post_init__(self)
        self.gate  # noqa: B018  (constructing the gate checks its fields)

    @property
    def gate(self) -> Gate:
        """The gate as a value."""
        return self._gate_as(Gate)

    def _gate_as(self, kind: type[Gate]) -> Gate:
        return kind(
            tau_h=self.tau_h, tau_o=self.tau_o, top_n=self.top_n, conditions=self.conditions
        )

    @property
    def needs_raw(self) -> NeedsRaw:  # type: ignore[override]
        return "always" if self.entropy_of == "raw" else "greedy"

    @classmethod
    def example(cls) -> Rule:
        return cls(tau_h=0.9, tau_o=0.6)

    def measure(self, step: Step) -> Mapping[str, Tensor]:
        probs = self.gate_probs(step)
        dtype = step.target_probs.dtype
        if on_host(step.target_probs):
            measured = _OnDemand(lambda: gate_signals(*probs, self.top_n))
            # The bonus position is skipped unless the rule gates it; narrowed steps have none.
            bonus = 0 if self.draft_at_bonus or step.drafted is not None else 1
            draft_probs, target_probs = (p[:, : p.shape[1] - bonus] for p in probs)
            gate = self._opens_in_order(draft_probs, target_probs).to(dtype)
            return ChainMap({"gate": pad(gate, (0, bonus))}, measured)  # type: ignore[arg-type]
        signals = gate_signals(*probs, self.top_n)
        return {**signals, "gate": self._gate_as(_CheckedGate).opens(signals).to(dtype)}

    def gate_probs(self, step: Step) -> tuple[Tensor, Tensor]:
        """The draft's and the target's distributions that the gate sees, [B, K+1, V] each."""
        return step.raw() if self.entropy_of == "raw" else step.opinions()

    def _opens_in_order(self, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
        """Evaluates the cheapest condition first, each only where all before hold; bool [B, k]."""
        opens, gate = None, self._gate_as(_CheckedGate)
        order = _BY_CALLS if target_probs.numel() <= _FEW_ENTRIES else _BY_ARITHMETIC
        asked: list[Condition] = [each for each in order if each in self.conditions]
        for condition in asked:
            at: Any = ... if opens is None else opens.nonzero(as_tuple=True)
            met = gate.holds(condition, self._signal(condition, draft_probs[at], target_probs[at]))
            if opens is None:
                opens = met
            else:
                opens[at] = met
            if not opens.any():
                break
        assert opens is not None, "at least one condition is asked"
        return opens

    def _signal(self, condition: Condition, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
        if condition == "overlap":
            return shared_top_tokens(draft_probs, target_probs, self.top_n)
        return entropy(target_probs if condition == "target_entropy" else draft_probs)


class _OnDemand(Mapping[str, Tensor]):
    """`gate_signals`, computed when a signal is first read; decoding without a trace reads none."""

    def __init__(self, measure: Callable[[], dict[str, Tensor]]) -> None:
        self._measure = cache(measure)

    def __getitem__(self, name: str) -> Tensor:
        if name not in SIGNALS:
            raise KeyError(name)
        return self._measure()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SIGNALS)

    def __len__(self) -> int:
        return len(SIGNALS)


def gate_signals(draft_probs: Tensor, target_probs: Tensor, top_n: int) -> dict[str, Tensor]:
    """Entropies in nats and the number of shared top tokens; [..., V] -> name -> [...]."""
    if top_n <= kernels.MOST_TOP and kernels.usable(target_probs):
        return kernels.gate_signals(draft_probs, target_probs, top_n)
    return {
        "draft_entropy": entropy(draft_probs),
        "target_entropy": entropy(target_probs),
        "shared_top": shared_top_tokens(draft_probs, target_probs, top_n),
    }


def draft_evaluated(step: Step, *, bonus: bool) -> Tensor:
    """Drafted positions, and with `bonus` evaluated bonus positions; bool [B, K+1]."""
    drafted = step.has_draft()
    if not bonus:
        return drafted
    position = torch.arange(drafted.shape[1], device=drafted.device)
    at_bonus = position == step.num_draft_tokens[:, None]
    evaluated = step.row(step.num_draft_tokens).draft_probs.amax(-1) > 0  # [B, 1]
    return drafted | (at_bonus & evaluated)


def best_or_drawn(step: Step, scores: Tensor) -> Tensor:
    """The most probable token for greedy rows, and softmax of `scores` [B, K+1, V] for others."""
    if step.greedy is None:
        return scores.softmax(-1)
    return torch.where(step.greedy[:, None, None], most_probable(scores), scores.softmax(-1))


def on_host(values: Tensor) -> bool:
    """Whether branching on values is cheap; on a GPU it would wait for the device."""
    return values.is_cpu and not torch.compiler.is_compiling()
