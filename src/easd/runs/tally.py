"""Counts of what became of draft tokens, live from step records or from a trace; no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easd.core.gate import Gate
from easd.runs.reader import Trace
from easd.runs.schema import EMITTED, EXAMINED, PARTS

if TYPE_CHECKING:
    from easd.engine.engine import StepRecord


@dataclass(slots=True)
class Tally:
    """Sums over steps, and the rates defined on them; a rate without a denominator is None.

    Attributes:
        outcomes: rows by outcome, as in the tokens table.
        blocks: target forwards, counted for each text.
        gate_open: sum of the gate over examined positions; None for a rule without gate.
        seconds: wall time by part.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    blocks: int = 0
    gate_open: float | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def add(self, record: StepRecord) -> None:
        """Counts one step of the engine."""
        names = outcomes(record)
        self.outcomes.update(name for row in names for name in row)
        self.blocks += len(record.rows)
        for part, seconds in record.seconds.items():
            self.seconds[part] += seconds
        gate = record.decision.judgement.signals.get("gate")
        if gate is None:
            return
        opened = sum(
            value
            for row, values in zip(names, gate.tolist(), strict=True)
            for name, value in zip(row, values, strict=False)
            if name in EXAMINED
        )
        self.gate_open = (self.gate_open or 0.0) + opened

    @classmethod
    def of(cls, trace: Trace) -> Tally:
        """Counts a whole trace."""
        tokens = trace.tokens
        counts = tokens["outcome"].cast(pa.string()).value_counts().to_pylist()
        gates = _examined(tokens)["gate"].drop_null()
        return cls(
            outcomes=Counter({entry["values"]: entry["counts"] for entry in counts}),
            blocks=int(_array(trace.steps, "batch").sum()),
            gate_open=float(gates.to_numpy().sum()) if len(gates) else None,
            seconds={p: float(_array(trace.steps, f"{p}_ms").sum()) / 1000 for p in PARTS},
        )

    @property
    def tokens(self) -> int:
        """Tokens that the texts gained."""
        return sum(self.outcomes[name] for name in EMITTED)

    @property
    def proposed(self) -> int:
        return self.examined + self.outcomes["discarded"]

    @property
    def examined(self) -> int:
        """Positions up to and including the first refusal of each block."""
        return sum(self.outcomes[name] for name in EXAMINED)

    @property
    def accepted(self) -> int:
        return self.outcomes["accepted"]

    @property
    def penalised(self) -> int:
        return self.outcomes["penalised"]

    @property
    def acceptance_rate(self) -> float | None:
        return _share(self.accepted, self.examined)

    @property
    def draft_utilisation(self) -> float | None:
        return _share(self.accepted, self.proposed)

    @property
    def penalty_rate(self) -> float | None:
        return _share(self.penalised, self.examined)

    @property
    def gate_opening_rate(self) -> float | None:
        return None if self.gate_open is None else _share(self.gate_open, self.examined)

    @property
    def block_efficiency(self) -> float | None:
        """Tokens emitted per target forward."""
        return _share(self.tokens, self.blocks)

    def summary(self) -> dict[str, Any]:
        """Every count and rate by name."""
        return {
            "tokens": self.tokens,
            "blocks": self.blocks,
            "proposed": self.proposed,
            "examined": self.examined,
            "accepted": self.accepted,
            "penalised": self.penalised,
            "gate_open": self.gate_open,
            "acceptance_rate": self.acceptance_rate,
            "draft_utilisation": self.draft_utilisation,
            "penalty_rate": self.penalty_rate,
            "gate_opening_rate": self.gate_opening_rate,
            "block_efficiency": self.block_efficiency,
            "seconds": dict(self.seconds),
        }


def summary(trace: Trace) -> dict[str, Any]:
    """A trace's counts and rates; with `conditions`, how often each of the gate's would be met.

    A condition's share is that of examined positions, like the gate's own opening rate.
    """
    rule = trace.run["config"]["rule"]
    return {**Tally.of(trace).summary(), "conditions": _conditions(_examined(trace.tokens), rule)}


def outcomes(record: StepRecord) -> list[list[str]]:
    """What became of each row's draft tokens, and then of the token drawn at its end, if any."""
    decision = record.decision
    names = []
    for committed, accepted, drafted, penalised in zip(
        record.committed,
        decision.num_accepted.tolist(),
        record.step.num_draft_tokens.tolist(),
        decision.penalised.tolist(),
        strict=True,
    ):
        kept = min(accepted, len(committed))
        row = ["accepted"] * kept
        if len(committed) > accepted:  # No stop cut the block: a token was drawn at its end.
            if accepted < drafted:
                row.append("penalised" if penalised else "rejected")
            row += ["discarded"] * (drafted - len(row))
            row.append("replacement" if accepted < drafted else "bonus")
        else:
            row += ["discarded"] * (drafted - kept)
        names.append(row)
    return names


def _examined(tokens: pa.Table) -> pa.Table:
    return tokens.filter(pc.field("outcome").cast(pa.string()).isin(EXAMINED))


def _conditions(examined: pa.Table, rule: dict[str, Any]) -> dict[str, float | None] | None:
    if "tau_o" not in rule:
        return None
    gate = Gate(tau_h=float(rule["tau_h"]), tau_o=rule["tau_o"], top_n=rule["top_n"])
    met = gate.met(
        {
            "draft_entropy": _array(examined, "draft_entropy"),
            "target_entropy": _array(examined, "target_entropy"),
            "shared_top": np.rint(_array(examined, "overlap") * rule["top_n"]),
        }
    )
    return {name: _share(int(held.sum()), len(held)) for name, held in met.items()}


def _array(table: pa.Table, column: str) -> np.ndarray:
    return table[column].to_numpy()


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
