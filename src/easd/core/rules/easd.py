"""Entropy-aware speculative decoding, its ablations and the overlap-only control."""

from __future__ import annotations

from dataclasses import dataclass

from easd.core.rules.base import Preset
from easd.core.rules.gated import EntropyGated
from easd.core.rules.refusal import Refusing


@dataclass(frozen=True, slots=True, kw_only=True)
class EASD(Refusing, EntropyGated):
    """Refuses the draft token where both models are uncertain and agree too much.

    Follows the paper's flow chart and algorithm; each point that they leave open is a field.
    """

    name = "easd"
    source = "arXiv:2512.23765"


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
