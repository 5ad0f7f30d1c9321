"""The gate and its penalty on vLLM's flat tensors.

Shapes: N draft tokens of all rows one after another, B rows, V the vocabulary. No function but
`Tally.read` waits for the device.

With small models the time of a gate is the number of calls into torch. On a CPU, values per draft
token are therefore NumPy arrays (`light`), whose calls take a tenth of the time, and work is
skipped where the values show that nothing needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easd.core.gate import ALL_CONDITIONS, SIGNALS, Condition, Gate
from easd.core.rules.gated import gate_signals
from easd.core.signals import entropy, top_tokens

FEW_ENTRIES = 2**15
"""Up to this many entries of [N, V], copying them costs less than the calls that it saves."""
Values = Tensor | np.ndarray[Any, Any]
"""One value per row or draft token, as `light` returns it."""


def light(values: Values) -> Values:
    """Returns a CPU tensor as a NumPy array of the same memory; other values as they are."""
    return values.numpy() if isinstance(values, Tensor) and values.is_cpu else values


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """The state of the gate at each draft token."""

    asked: Any  # bool [N]: the row has a rule.
    met: dict[Condition, Any]  # bool [N], meaningless where not asked.
    open: Any  # bool [N], False where not asked.

    def __or__(self, other: Gates) -> Gates:
        """Merges the gates of rules that judge different draft tokens."""
        return Gates(
            asked=self.asked | other.asked,
            met={
                name: (self.asked & self.met[name]) | (other.asked & other.met[name])
                for name in self.met
            },
            open=self.open | other.open,
        )

    @classmethod
    def cat(cls, parts: Sequence[Gates]) -> Gates:
        """Concatenates gates of consecutive draft tokens, as tensors."""

        def joined(values: Iterable[Any]) -> Tensor:
            return torch.cat([torch.as_tensor(each) for each in values])

        return cls(
            asked=joined(gates.asked for gates in parts),
            met={name: joined(gates.met[name] for gates in parts) for name in parts[0].met},
            open=joined(gates.open for gates in parts),
        )


def ask(
    gates: Sequence[Gate],
    rule_of: Values,
    draft_tokens: Tensor,
    draft_probs: Tensor,
    target_logits: Tensor,
) -> Gates:
    """Evaluates `gates[rule_of]` at each draft token.

    Args:
        gates: those of the batch's rules.
        rule_of: int64 [N]; tokens with other numbers are not judged. The gates are values of its
            kind.
        draft_tokens: int [N]; -1 is a placeholder, which no rule judges.
        draft_probs: [N, V], what the tokens were drawn from.
        target_logits: [N, V] after all processors and the temperature.
    """
    target_probs = target_logits.softmax(-1, dtype=torch.float32)
    on_arrays = isinstance(rule_of, np.ndarray)
    signals_of = light_signals if on_arrays else gate_signals
    tokens = light(draft_tokens) if on_arrays else draft_tokens
    signals = {n: signals_of(draft_probs, target_probs, n) for n in {gate.top_n for gate in gates}}
    met: dict[Condition, Any]
    (met, opened), *others = (_judged(gate, signals[gate.top_n]) for gate in gates)
    for index, (own_met, own_opened) in enumerate(others, 1):
        here, where = rule_of == index, _calls_of(rule_of).where
        met = {name: where(here, own_met[name], met[name]) for name in ALL_CONDITIONS}
        opened = where(here, own_opened, opened)
    asked = (tokens >= 0) & (rule_of >= 0) & (rule_of < len(gates))
    return Gates(asked=asked, met=met, open=opened & asked)


def _judged(gate: Gate, signals: Mapping[str, Any]) -> tuple[dict[Condition, Any], Any]:
    """Where each condition holds, and where those that the gate asks all do."""
    met = gate.met(signals)
    return met, reduce(and_, (met[condition] for condition in gate.conditions))


def _calls_of(values: Any) -> Any:
    """The module whose functions take `values`."""
    return np if isinstance(values, np.ndarray) else torch


def light_signals(
    draft_probs: Tensor, target_probs: Tensor, top_n: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Computes what `gate_signals` does for [N, V] on a CPU, with a quarter of the calls."""
    if draft_probs.numel() <= FEW_ENTRIES:
        entropies, tops = _entropy_and_top(torch.stack([draft_probs, target_probs]), top_n)
    else:
        both = (_entropy_and_top(probs, top_n) for probs in (draft_probs, target_probs))
        entropies, tops = zip(*both, strict=True)
    draft_top, target_top = tops[0][:, :, None], tops[1][:, None, :]
    shared = ((draft_top == target_top) & (draft_top >= 0)).sum((-1, -2))
    return dict(zip(SIGNALS, (*entropies, shared), strict=True))


def _entropy_and_top(probs: Tensor, n: int) -> tuple[Any, Any]:
    """Returns entropies [...] and the n most probable tokens [..., n], -1 for impossible ones."""
    values, tokens = top_tokens(probs, n)
    return entropy(probs).numpy(), np.where(values.numpy() > 0, tokens.numpy(), -1)


def penalise_(
    gate: Values, draft_tokens: Tensor, draft_probs: Tensor, target_logits: Tensor
) -> None:
    """Changes the rows where `gate` bool [N] is open so that the stock kernel penalises there.

    The kernel refuses a token with target probability 0. With a draft row of zeros, the residual
    distribution is the target without the token.
    """
    if isinstance(gate, np.ndarray):
        (at,) = map(torch.from_numpy, gate.nonzero())
        if len(at):
            target_logits[at, draft_tokens[at].long()] = float("-inf")
            draft_probs[at] = 0.0
        return
    token = draft_tokens.long().clamp_min(0)[:, None]
    excluded = torch.where(gate, float("-inf"), 0.0).to(target_logits.dtype)
    target_logits.scatter_add_(1, token, excluded[:, None])
    draft_probs.mul_(~gate[:, None])


def rows_of(num_draft_tokens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Returns each draft token's row, and its position in that row, int64 [N]; N = `total`."""
    row = torch.arange(num_draft_tokens.shape[0], device=num_draft_tokens.device)
    row = row.repeat_interleave(num_draft_tokens, output_size=total)
    start = num_draft_tokens.cumsum(0) - num_draft_tokens
    return row, torch.arange(total, device=row.device) - start[row]


class Tally:
    """Counts of examined positions, kept on the device until they are read.

    In rows with a rule, positions up to and including the first refusal are examined. A refusal at
    an open gate is a penalty.
    """

    NAMES = ("examined", *ALL_CONDITIONS, "penalised")

    def __init__(self, device: torch.device) -> None:
        self._counts = light(torch.zeros(len(self.NAMES), dtype=torch.int64, device=device))
        self._unasked = 0

    def add(
        self,
        gates: Gates,
        row: Values,
        position: Values,
        num_emitted: Values,
        redrawn: Values | None = None,
    ) -> None:
        """Adds a step in which row b emitted `num_emitted[b]` tokens; int64 [B].

        `redrawn` bool [N] marks draft tokens that were replaced unconditionally: no penalties.
        """
        emitted = num_emitted[row]
        examined = gates.asked & (position < emitted)
        penalised = gates.open & (position == emitted - 1)
        if redrawn is not None:
            penalised = penalised & ~redrawn
        seen = [examined, *(gates.met[name] for name in ALL_CONDITIONS), penalised]
        counts = (_calls_of(examined).stack(seen) & examined).sum(-1)
        self._counts += light(counts)

    def add_unasked(self, count: int) -> None:
        """Counts draft tokens for which vLLM had no draft probabilities."""
        self._unasked += count

    def read(self) -> dict[str, int]:
        """Returns all counts since the engine started."""
        counts = dict(zip(self.NAMES, self._counts.tolist(), strict=True))
        return {**counts, "unasked": self._unasked}
