"""Entropy-aware speculative decoding, its ablations and the overlap-only control."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from easd.core.couplings import Coupling, Procedure
from easd.core.rules.base import Preset
from easd.core.rules.gated import EntropyGated
from easd.core.rules.refusal import AsPublished, CheckedRefusal, GateOn, Penalise, Redraw, Refusal
from easd.core.step import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class EASD(EntropyGated):
    """Refuses the draft token where both models are uncertain and agree too much.

    As in the paper's flow chart and algorithm; every point that they leave open is a field.

    Attributes:
        redraw: what a penalised token's replacement is drawn from: the target without the
            penalised token, or the target itself (the lossless null control).
        penalise: which token is excluded: the drafted one, or the draft's most probable one.
        gate_on: whether the gate is asked of every proposed token or only of those that pass the
            acceptance test.
    """

    name = "easd"
    source = "arXiv:2512.23765"

    redraw: Redraw = "exclude"
    penalise: Penalise = "drafted"
    gate_on: GateOn = "proposed"

    @property
    def refusal(self) -> Refusal:
        """What happens at an open gate, as a value."""
        return CheckedRefusal(self.redraw, self.penalise, self.gate_on)

    @property
    def lossless(self) -> bool:
        return self.refusal.lossless

    @property
    def default_coupling(self) -> Coupling:
        """The paper's own procedure; `maximal` emits the same law and keeps more draft tokens."""
        return "published"

    def published(self) -> Procedure:
        return AsPublished(self, self.refusal)

    def open_law(self, step: Step) -> Tensor:
        return self.refusal.law(step)

    def open_law_of(self, step: Step, tokens: Tensor) -> Tensor:
        return self.refusal.law(step, tokens)


Preset(
    "easd-without-overlap",
    EASD,
    "Ablation: both entropies, whatever the overlap.",
    conditions=("draft_entropy", "target_entropy"),
)
Preset(
    "easd-without-draft-entropy",
    EASD,
    "Ablation: target entropy and overlap only.",
    conditions=("target_entropy", "overlap"),
)
Preset(
    "easd-without-both",
    EASD,
    "Ablation without overlap and without draft entropy.",
    conditions=("target_entropy",),
)
Preset(
    "overlap-only",
    EASD,
    "Control: penalise agreement whatever the entropies.",
    conditions=("overlap",),
)
