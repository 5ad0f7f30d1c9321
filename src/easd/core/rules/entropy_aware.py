"""Entropy-aware speculative decoding and its ablations (arXiv:2512.23765)."""

from __future__ import annotations

from dataclasses import dataclass

from easd.core.rules.entropy_gate import Condition, EntropyGate
from easd.core.rules.gated import GatedRule


@dataclass(frozen=True, slots=True, kw_only=True)
class EASD(EntropyGate, GatedRule):
    """Refuses the draft token where both models are unsure and agree too much.

    As in the paper's flow chart and algorithm; every point the sources leave open is a field.
    """

    def __post_init__(self) -> None:
        EntropyGate.__post_init__(self)
        GatedRule.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutOverlap(EASD):
    """Ablation: both entropies, whatever the overlap (the seeds' entropy-only penalty)."""

    conditions: tuple[Condition, ...] = ("draft_entropy", "target_entropy")


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutDraftEntropy(EASD):
    """Ablation: target entropy and overlap only."""

    conditions: tuple[Condition, ...] = ("target_entropy", "overlap")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEntropyOnly(EASD):
    """Ablation without overlap and without draft entropy."""

    conditions: tuple[Condition, ...] = ("target_entropy",)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapOnly(EASD):
    """Control: penalise agreement whatever the entropies."""

    conditions: tuple[Condition, ...] = ("overlap",)
