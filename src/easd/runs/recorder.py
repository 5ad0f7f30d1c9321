"""From the engine's steps to rows of an evaluation's tables."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from easd.core.gate import ALL_CONDITIONS
from easd.core.rules import Rule
from easd.core.rules.gated import EntropyGated
from easd.engine.engine import StepRecord
from easd.engine.request import Row
from easd.runs.rows import Columns, token_rows
from easd.runs.schema import PARTS, TOP
from easd.runs.tally import outcomes


@dataclass(slots=True)
class Recorder:
    """Watches the engine decode one unit.

    Attributes:
        rule: the system's rule.
        with_tokens: whether to keep every token.
        rows: the texts that ended, by request number.
        gates: sums over examined positions by request number: the gate, then each condition.
        tokens: rows of the tokens table, one mapping a step.
        seconds: wall time by part.
        target_steps, draft_steps: batched forwards.
    """

    rule: Rule
    with_tokens: bool = False
    rows: dict[int, Row] = field(default_factory=dict)
    gates: dict[int, np.ndarray] = field(default_factory=lambda: defaultdict(lambda: np.zeros(4)))
    tokens: list[Columns] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    target_steps: int = 0
    draft_steps: int = 0

    def add(self, record: StepRecord) -> None:
        """Takes in one step."""
        self.rows |= {row.request.number: row for row in record.rows if row.finished}
        for part, seconds in record.seconds.items():
            self.seconds[part] += seconds
        drafted = record.step.draft_tokens.shape[1]
        self.target_steps += 1
        self.draft_steps += drafted + self.rule.draft_at_bonus if drafted else 0
        if drafted and "gate" in record.decision.judgement.signals:
            self._add_gates(record)
        if self.with_tokens:
            self._add_tokens(record)

    def _add_gates(self, record: StepRecord) -> None:
        signals = record.decision.judgement.signals
        proposed = record.step.num_draft_tokens.tolist()
        kept = [min(n, len(c)) for n, c in zip(proposed, record.committed, strict=True)]
        length = record.step.draft_tokens.shape[1]
        examined = torch.arange(length) < torch.tensor(kept)[:, None]
        gate = signals["gate"][:, :length].cpu()
        met = torch.stack([gate, *(m[:, :length].to(gate) for m in self._conditions(record))], -1)
        sums = (met * examined[..., None]).sum(1).double().numpy()
        for row, total in zip(record.rows, sums, strict=True):
            self.gates[row.request.number][: total.size] += total

    def _conditions(self, record: StepRecord) -> list[torch.Tensor]:
        signals: Any = record.decision.judgement.signals
        rule: Any = self.rule
        if not has_conditions(rule):
            return []
        met = rule.gate.met(signals)
        return [met[name].cpu() for name in ALL_CONDITIONS]

    def _add_tokens(self, record: StepRecord) -> None:
        found = token_rows(record, outcomes(record), top_n=getattr(self.rule, "top_n", TOP))
        size = len(found["request"])
        step = np.full(size, self.target_steps - 1)
        self.tokens.append(found | {"step": step, "sample": found["request"]})

    def token_columns(self) -> Columns | None:
        """All token rows by column, or None where none were kept."""
        if not self.tokens:
            return None
        return {n: np.concatenate([chunk[n] for chunk in self.tokens]) for n in self.tokens[0]}


def has_conditions(rule: Any) -> bool:
    """Whether the rule's gate is made of the three conditions."""
    return isinstance(rule, EntropyGated)
