"""The gate and its penalty on vLLM's flat tensors.

Shapes: N draft tokens of all rows one after another, B rows, V the vocabulary. No function but
`Tally.read` waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

import torch
from torch import Tensor

from easd.core.gate import ALL_CONDITIONS, Condition
from easd.core.rules import EASD
from easd.core.rules.gated import gate_signals


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """The state of the gate at each draft token."""

    asked: Tensor  # bool [N]: the row has a rule.
    met: dict[Condition, Tensor]  # bool [N], meaningless where not asked.
    open: Tensor  # bool [N], False where not asked.

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
        """Concatenates gates of consecutive draft tokens."""
        return cls(
            asked=torch.cat([gates.asked for gates in parts]),
            met={name: torch.cat([gates.met[name] for gates in parts]) for name in parts[0].met},
            open=torch.cat([gates.open for gates in parts]),
        )


def ask(
    rules: Sequence[EASD],
    rule_of: Tensor,
    draft_tokens: Tensor,
    draft_probs: Tensor,
    target_logits: Tensor,
) -> Gates:
    """Evaluates the gate of `rules[rule_of]` at each draft token.

    Args:
        rules: the different rules of the batch, which differ in their thresholds only.
        rule_of: int64 [N]; tokens with other numbers are not judged.
        draft_tokens: int [N]; -1 is a placeholder, which no rule judges.
        draft_probs: [N, V], what the tokens were drawn from.
        target_logits: [N, V] after all processors and the temperature.
    """
    first, *others = rules
    target_probs = target_logits.softmax(-1, dtype=torch.float32)
    signals = gate_signals(draft_probs, target_probs, first.top_n)
    met = first.gate.met(signals)
    for index, rule in enumerate(others, 1):
        here = rule_of == index
        for condition, holds in rule.gate.met(signals).items():
            met[condition] = torch.where(here, holds, met[condition])
    opened = reduce(and_, (met[condition] for condition in first.conditions))
    asked = (draft_tokens >= 0) & (rule_of >= 0) & (rule_of < len(rules))
    return Gates(asked=asked, met=met, open=opened & asked)


def penalise_(
    gate: Tensor, draft_tokens: Tensor, draft_probs: Tensor, target_logits: Tensor
) -> None:
    """Changes the rows where `gate` bool [N] is open so that the stock kernel penalises there.

    The kernel refuses a token with target probability 0. With a draft row of zeros, the residual
    distribution is the target without the token.
    """
    token = draft_tokens.long().clamp_min(0)[:, None]
    excluded = torch.where(gate, float("-inf"), 0.0).to(target_logits.dtype)
    target_logits.scatter_add_(1, token, excluded[:, None])
    draft_probs.mul_(~gate[:, None])  # Ten times as fast as a masked fill on CPU.


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
        self._counts = torch.zeros(len(self.NAMES), dtype=torch.int64, device=device)
        self._unasked = 0

    def add(
        self,
        gates: Gates,
        row: Tensor,
        position: Tensor,
        num_emitted: Tensor,
        redrawn: Tensor | None = None,
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
        self._counts += (torch.stack(seen) & examined).sum(-1)

    def add_unasked(self, count: int) -> None:
        """Counts draft tokens for which vLLM had no draft probabilities."""
        self._unasked += count

    def read(self) -> dict[str, int]:
        """Returns all counts since the engine started."""
        counts = dict(zip(self.NAMES, self._counts.tolist(), strict=True))
        return {**counts, "unasked": self._unasked}
