"""Counts of draft tokens by outcome, and rates defined on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easd.core.gate import Condition, Gate
from easd.runs.reader import Run
from easd.runs.schema import EMITTED, EXAMINED, PARTS

COUNTED = ("blocks", "proposed", "examined", "accepted", "penalised")


@dataclass(slots=True)
class Tally:
    """Sums over steps; a rate without a denominator is None.

    Attributes:
        tokens: emitted.
        blocks: target forwards, counted for each text.
        proposed, accepted, penalised: draft tokens.
        examined: positions up to and including the first refusal of each block.
        gate_open: sum of the gate over examined positions; None for a rule without a gate.
        conditions: examined positions that meet each of the gate's conditions; None without a gate.
        seconds: wall time by part.
    """

    tokens: int = 0
    blocks: int = 0
    proposed: int = 0
    examined: int = 0
    accepted: int = 0
    penalised: int = 0
    gate_open: float | None = None
    conditions: dict[str, int] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def __iadd__(self, other: Tally) -> Tally:
        """Adds another's counts and seconds."""
        for name in ("tokens", *COUNTED):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.gate_open is not None:
            self.gate_open = (self.gate_open or 0.0) + other.gate_open
        if other.conditions is not None:
            mine = self.conditions or {}
            self.conditions = {n: mine.get(n, 0) + met for n, met in other.conditions.items()}
        for part, seconds in other.seconds.items():
            self.seconds[part] += seconds
        return self

    @classmethod
    def of_outcomes(cls, count: dict[str, int]) -> Tally:
        """Sums of the rows of the tokens table by outcome."""
        examined = sum(count.get(name, 0) for name in EXAMINED)
        return cls(
            tokens=sum(count.get(name, 0) for name in EMITTED),
            proposed=examined + count.get("discarded", 0),
            examined=examined,
            accepted=count.get("accepted", 0),
            penalised=count.get("penalised", 0),
        )

    @classmethod
    def of(cls, trace: Run) -> Tally:
        """Counts a whole trace."""
        counts = trace.tokens["outcome"].cast(pa.string()).value_counts().to_pylist()
        found = cls.of_outcomes({row["values"]: row["counts"] for row in counts})
        examined = _examined(trace.tokens)
        gates = examined["gate"].drop_null().to_numpy()
        steps = trace.steps
        found.blocks = _forwards(trace.tokens)
        found.gate_open = float(gates.sum()) if len(gates) else None
        found.seconds = {p: float(steps[f"{p}_ms"].to_numpy().sum()) / 1000 for p in PARTS}
        met = conditions_met(trace.run["config"]["rule"], examined)
        if met is not None:
            found.conditions = {name: int(held.sum()) for name, held in met.items()}
        return found

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
        """Every count and rate by name; conditions as shares of examined positions."""
        met = self.conditions
        return {
            "tokens": self.tokens,
            **{name: getattr(self, name) for name in COUNTED},
            "gate_open": self.gate_open,
            "acceptance_rate": self.acceptance_rate,
            "draft_utilisation": self.draft_utilisation,
            "penalty_rate": self.penalty_rate,
            "gate_opening_rate": self.gate_opening_rate,
            "block_efficiency": self.block_efficiency,
            "conditions": met and {n: _share(count, self.examined) for n, count in met.items()},
            "seconds": dict(self.seconds),
        }


def summary(trace: Run) -> dict[str, Any]:
    """A trace's counts and rates by name."""
    return Tally.of(trace).summary()


def _examined(tokens: pa.Table) -> pa.Table:
    return tokens.filter(pc.field("outcome").cast(pa.string()).isin(EXAMINED))


def _forwards(tokens: pa.Table) -> int:
    """The number of pairs of a text and a step that it took part in."""
    return tokens.select(["sample", "step"]).group_by(["sample", "step"]).aggregate([]).num_rows


def conditions_met(rule: Mapping[str, Any], tokens: Any) -> dict[Condition, np.ndarray] | None:
    """Whether each row of a tokens table or data frame meets the conditions of a rule's gate.

    Args:
        rule: its fields; None is returned where they have no thresholds.
        tokens: with the columns draft_entropy, target_entropy and overlap.
    """
    if "tau_o" not in rule:
        return None
    draft, target, overlap = (
        tokens[name].to_numpy() for name in ("draft_entropy", "target_entropy", "overlap")
    )
    shared = np.rint(overlap * rule["top_n"])
    gate = Gate(tau_h=float(rule["tau_h"]), tau_o=rule["tau_o"], top_n=rule["top_n"])
    return gate.met({"draft_entropy": draft, "target_entropy": target, "shared_top": shared})


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
