"""Thresholds from the entropies of a pair's own texts, as arXiv:2512.23765 calibrates tau_h.

Everything here is a function of a tokens table (`easd.runs.schema`). Decoding must be lossless and
evaluate the draft at bonus positions too, so that every token of a text has both entropies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from easd.core.gate import Gate
from easd.errors import InputError
from easd.runs.schema import EMITTED
from easd.stats import Estimate, bootstrap, share, top_mean

Source = Literal["pooled", "draft", "target"]
SOURCES: tuple[Source, ...] = ("pooled", "draft", "target")
TOP_SHARE = 0.05
NO_OP_RATE = 0.001  # a gate that opens less often does next to nothing

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """The gate's signals at every emitted position, [N] each.

    Attributes:
        text: number of the position's text, from 0.
        shared: number of top tokens in common.
        top_n: number of top tokens compared.
    """

    text: np.ndarray
    draft_entropy: np.ndarray
    target_entropy: np.ndarray
    shared: np.ndarray
    top_n: int

    @property
    def texts(self) -> int:
        return int(self.text.max()) + 1

    def met(self, tau_h: float, tau_o: float) -> dict[str, np.ndarray]:
        """Whether each condition is met, and whether all are (`gate`); bool [N] each."""
        signals = {
            "draft_entropy": self.draft_entropy,
            "target_entropy": self.target_entropy,
            "shared_top": self.shared,
        }
        found = Gate(tau_h=tau_h, tau_o=tau_o, top_n=self.top_n).met(signals)
        return {"gate": np.logical_and.reduce(list(found.values())), **found}


def signals(tokens: pa.Table, *, top_n: int = 5) -> Signals:
    """The signals of every emitted position that both models evaluated.

    Args:
        tokens: of one lossless system.
        top_n: number of top tokens that the system's rule compared.

    Raises:
        InputError: There is no such position.
    """
    seen = tokens.filter(
        pc.field("outcome").cast(pa.string()).isin(EMITTED) & pc.field("draft_entropy").is_valid()
    )
    if not seen.num_rows:
        raise InputError(
            "no position has both entropies; record tokens (trace) of a system that drafts"
        )
    keys = [name for name in ("task", "seed", "request") if name in seen.column_names]
    frame = seen.select(keys).to_pandas()
    text = frame.groupby(keys, observed=True, sort=False).ngroup().to_numpy()
    return Signals(
        text=text,
        draft_entropy=seen["draft_entropy"].to_numpy(),
        target_entropy=seen["target_entropy"].to_numpy(),
        shared=np.rint(seen["overlap"].to_numpy() * top_n),
        top_n=top_n,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A threshold, and what the gate does there.

    Attributes:
        tau_h: the threshold, in nats.
        by_source: the paper's rule for the entropies of either model, and of both.
        rates: those of `firing` at the threshold.
    """

    tau_h: Estimate
    by_source: Mapping[Source, Estimate]
    rates: Mapping[str, Estimate]
    texts: int
    positions: int

    @property
    def warnings(self) -> list[str]:
        return warnings_of(self.rates)


def calibrate(
    tokens: pa.Table,
    *,
    tau_o: float,
    top_n: int,
    source: Source = "pooled",
    rate: float | None = None,
) -> Calibration:
    """Finds tau_h by the paper's rule, or the one at which the gate opens at a rate.

    Args:
        tokens: of a run as this module needs it.
        tau_o: overlap threshold of the gate.
        top_n: number of top tokens that it compares.
        source: the entropies that the paper's rule takes.
        rate: share of positions, instead of the paper's rule.

    Raises:
        InputError: The rate cannot be reached.
    """
    found = signals(tokens, top_n=top_n)
    by_source: dict[Source, Estimate] = {each: paper_threshold(found, each) for each in SOURCES}
    tau_h = by_source[source] if rate is None else rate_threshold(found, rate, tau_o)
    return Calibration(
        tau_h=tau_h,
        by_source=by_source,
        rates=firing(found, tau_h.value, tau_o),
        texts=found.texts,
        positions=len(found.text),
    )


def paper_threshold(found: Signals, source: Source) -> Estimate:
    """The paper's rule: the mean of the highest 5 % of entropies on a validation set, in nats.

    The paper does not say of which model; `source` chooses.
    """
    entropies = {
        "draft": found.draft_entropy,
        "target": found.target_entropy,
        "pooled": np.concatenate([found.draft_entropy, found.target_entropy]),
    }[source]
    text = np.tile(found.text, 2) if source == "pooled" else found.text
    return top_mean(entropies, text, TOP_SHARE, resamples=_RESAMPLES)


def rate_threshold(found: Signals, rate: float, tau_o: float) -> Estimate:
    """The tau_h, in nats, at which the gate is open at a share `rate` of positions.

    Raises:
        InputError: The overlap condition alone is met less often.
    """
    highest = np.minimum(found.draft_entropy, found.target_entropy)
    highest = np.where(found.met(0.0, tau_o)["overlap"], highest, 0.0)
    possible = float((highest > 0).mean())
    if not 0 < rate < possible:
        raise InputError(
            f"rate = {rate} cannot be reached: the gate is open at {possible:.2%} of positions at "
            f"most (tau_o = {tau_o}, tau_h = 0); use a number in (0, {possible:.4f})"
        )
    order = np.argsort(-highest, kind="stable")
    falling, owner = highest[order], found.text[order]

    def threshold(weights: np.ndarray) -> float:
        copies = np.cumsum(weights[owner])
        return float(falling[np.searchsorted(copies, rate * copies[-1], side="right")])

    return bootstrap(
        lambda weights: [threshold(row) for row in weights],
        found.texts,
        resamples=_RESAMPLES,
        n=len(falling),
    )


def firing(found: Signals, tau_h: float, tau_o: float) -> dict[str, Estimate]:
    """Shares of positions at which the gate is open (`gate`) and at which each condition is met."""
    whole = np.bincount(found.text)
    return {
        name: share(np.bincount(found.text, weights=met), whole)
        for name, met in found.met(tau_h, tau_o).items()
    }


def firing_grid(found: Signals, tau_h: Sequence[float], tau_o: Sequence[float]) -> pd.DataFrame:
    """The gate's opening rate for every pair of thresholds: columns tau_h, tau_o, rate.

    It is computed from recorded signals, so the effect of a threshold on the text is left out.
    """
    return pd.DataFrame(
        [
            {"tau_h": h, "tau_o": o, "rate": float(found.met(h, o)["gate"].mean())}
            for h in tau_h
            for o in tau_o
        ]
    )


def warnings_of(rates: Mapping[str, Estimate]) -> list[str]:
    """Warnings about a threshold with these rates of `firing`."""
    gate = rates["gate"]
    if gate.value >= NO_OP_RATE:
        return []
    rarest = min((n for n in rates if n != "gate"), key=lambda name: rates[name].value)
    return [
        f"the gate is open at {gate.value:.3%} of positions (95 % interval {gate.low:.3%} to "
        f"{gate.high:.3%}), under {NO_OP_RATE:.1%}: this configuration does next to nothing; the "
        f"rarest condition is {rarest} ({rates[rarest].value:.2%}); calibrate to a rate instead"
    ]
